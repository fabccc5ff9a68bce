"""Errors of monocular depth estimation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import torch

from ..measures.depth_error import depth_scores, depth_sums
from .base import StatisticsMetric
from .inputs import stacks

_DESCRIPTION = """
Errors of predicted depth maps: RMSE in metres of each image, then averaged, or of all pixels together; mean relative
error; and the share of pixels within a factor of 1.25.
"""

_INPUTS = """
Args:
    predictions: depth maps in metres, (B, H, W) or a list of (H, W) of any sizes; finite.
    references: depth maps in metres of the same sizes; pixels that are 0, negative, not finite or above max_depth do
        not count.

Returns:
    rmse: RMSE of each image, then the mean over images, in metres.
    rmse_pooled: RMSE over all pixels that count, in metres.
    abs_rel: mean of |prediction - reference| / reference of each image, then the mean over images.
    delta1: share of pixels with max(prediction / reference, reference / prediction) < 1.25 of each image, then the
        mean over images.
    images_without_depth: number of images without a single pixel that counts; they are left out.
"""

_CITATION = """
@inproceedings{eigen2014depth,
    title={Depth Map Prediction from a Single Image using a Multi-Scale Deep Network},
    author={Eigen, David and Puhrsch, Christian and Fergus, Rob},
    booktitle={Advances in Neural Information Processing Systems},
    year={2014}
}
"""


class DepthError(StatisticsMetric):
    """Errors of depth maps; stores of each image the sums of [`depth_sums`].

    Args:
        max_depth: metres; reference pixels above it do not count (predictions are taken as they are). None: all count.
        options: as of [`StatisticsMetric`].

    Raises:
        ValueError: `max_depth` is not positive.
    """

    def __init__(self, max_depth: float | None = None, **options: Any) -> None:
        if max_depth is not None and not max_depth > 0:
            raise ValueError(f"max_depth must be positive, in metres, got {max_depth}.")
        self.max_depth = max_depth
        super().__init__(**options)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            # Sums of errors; number of valid pixels.
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value("float64")), "references": datasets.Value("float64")}
            ),
        )

    def _reduce(self, predictions: Sequence, references: Sequence) -> tuple[list, list]:
        sums = torch.cat(
            [
                depth_sums(prediction, reference, self.max_depth)
                for prediction, reference in stacks(predictions, references, "a map (H, W)")
            ]
        )
        return sums[:, :3].tolist(), sums[:, 3].tolist()

    def _compute(self, predictions: list, references: list) -> dict[str, float | int]:
        if not predictions:
            raise ValueError("Depth error of no images: nothing was added.")
        errors, pixels = (torch.tensor(rows, dtype=torch.float64) for rows in (predictions, references))
        scores = depth_scores(torch.cat([errors, pixels[:, None]], dim=1))
        return {name: value.item() for name, value in scores.items()}
