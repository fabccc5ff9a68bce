"""Distance of two models' patch similarities."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
import torch

from ..losses import gram_distance
from .base import StatisticsMetric
from .inputs import stacks

_DESCRIPTION = """
Gram distance of the patch features of two models: the Frobenius norm of the difference of the matrices of cosine
similarities between the patches of an image, averaged over images; the models' widths may differ.
"""

_INPUTS = """
Args:
    predictions: patch features of one model without prefix tokens, (B, n, d) or a list of (n, d).
    references: patch features of the other model of the same patches, (B, n, d') or a list of (n, d').

Returns:
    gram_distance: mean over images of the distance divided by the number of patches n (the paper's Table 2).
    gram_distance_undivided: mean over images of the distance (the paper's Table 5b).
    gram_distance_undivided_std, gram_distance_undivided_median: its standard deviation over images (of the set, not
        an estimate from a sample) and its median (the lower of two middle values), also in that table.
"""

_CITATION = """
@inproceedings{yu2026singer,
    title={SiNGER: A Clearer Voice Distills Vision Transformers Further},
    author={Yu, Geunhyeok and Jeong, Sunjae and Choi, Yoonyoung and Kim, Jaeseung and Hwang, Hyoseok},
    booktitle={The Fourteenth International Conference on Learning Representations},
    year={2026}
}
"""


class GramDistance(StatisticsMetric):
    """‖G(X) − G(Y)‖_F of each image, with and without division by its number of patches.

    Stores of each image the divided distance and the number of patches.

    Args:
        options: as of [`StatisticsMetric`].
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _reduce(self, predictions: Sequence, references: Sequence) -> tuple[list, list]:
        distances, patches = [], []
        for x, y in stacks(predictions, references, "patch features (n, d)"):
            if x.shape[1] != y.shape[1]:
                raise ValueError(
                    f"The models must have the same patches, got {x.shape[1]} and {y.shape[1]}: leave out prefix "
                    "tokens, and resize one model's patch grid if they differ."
                )
            if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
                raise ValueError("Gram distance needs finite features, got NaN or infinite values.")
            distances += gram_distance(x, y).tolist()
            patches += [x.shape[1]] * len(x)
        return distances, patches

    def _compute(self, predictions: list[float], references: list[int]) -> dict[str, float]:
        if not predictions:
            raise ValueError("Gram distance of no images: nothing was added.")
        divided = torch.tensor(predictions, dtype=torch.float64)
        undivided = divided * torch.tensor(references)
        return {
            "gram_distance": divided.mean().item(),
            "gram_distance_undivided": undivided.mean().item(),
            "gram_distance_undivided_std": undivided.std(correction=0).item(),
            "gram_distance_undivided_median": undivided.median().item(),
        }
