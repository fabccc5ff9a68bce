"""Mean intersection over union of semantic segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import torch

from ..measures.iou import class_counts, segmentation_scores
from .base import StatisticsMetric
from .inputs import stacks

_DESCRIPTION = """
Intersection over union of each class, over all pixels of all images together, and its mean over the classes that occur
in the predictions or the references; with pixel accuracies.
"""

_INPUTS = """
Args:
    predictions: maps of class indices, (B, H, W) or a list of (H, W) of any sizes.
    references: maps of class indices of the same sizes; pixels of ignore_index do not count.

Returns:
    mean_iou: mean over the classes that occur in predictions or references.
    overall_accuracy: share of pixels that are right.
    mean_accuracy: mean accuracy over the classes that occur in the references.
    per_category_iou, per_category_accuracy: a list of num_labels, None for classes left out of the mean.
"""

_CITATION = """
@article{everingham2010pascal,
    title={The {PASCAL} Visual Object Classes ({VOC}) Challenge},
    author={Everingham, Mark and Van Gool, Luc and Williams, Christopher K. I. and Winn, John and Zisserman, Andrew},
    journal={International Journal of Computer Vision},
    volume={88},
    year={2010}
}
"""


class MeanIoU(StatisticsMetric):
    """Mean IoU; stores of each image the counts of [`class_counts`].

    Args:
        num_labels: C.
        ignore_index: value of pixels that do not count; None where all do. 255 is the default of transformers'
            segmentation models (`semantic_loss_ignore_index`).
        options: as of [`StatisticsMetric`].

    Raises:
        ValueError: `num_labels` is not positive.
    """

    def __init__(self, num_labels: int, ignore_index: int | None = 255, **options: Any) -> None:
        if num_labels < 1:
            raise ValueError(f"num_labels must be positive, got {num_labels}.")
        self.num_labels, self.ignore_index = num_labels, ignore_index
        super().__init__(**options)
        self.info.module_name = "mean_iou"  # evaluate makes mean_io_u of the class's name

    def _info(self) -> evaluate.MetricInfo:
        counts = datasets.List(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            # Pixels agreed on and pixels predicted; pixels of the reference.
            features=datasets.Features({"predictions": datasets.List(counts), "references": counts}),
        )

    def _reduce(self, predictions: Sequence, references: Sequence) -> tuple[list, list]:
        counts = torch.cat(
            [
                class_counts(prediction, reference, self.num_labels, self.ignore_index)
                for prediction, reference in stacks(predictions, references, "a map (H, W)")
            ]
        )
        return counts[:, :2].tolist(), counts[:, 2].tolist()

    def _compute(self, predictions: list, references: list) -> dict[str, Any]:
        if not predictions:
            raise ValueError("Mean IoU of no images: nothing was added.")
        counts = torch.cat([torch.tensor(predictions), torch.tensor(references)[:, None]], dim=1)
        scores = segmentation_scores(counts.sum(dim=0))
        return {
            name: [None if each != each else each for each in value.tolist()] if value.ndim else value.item()
            for name, value in scores.items()
        }
