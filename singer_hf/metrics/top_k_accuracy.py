"""Top-k accuracy of a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import torch

from ..measures.label_rank import label_rank
from .base import StatisticsMetric
from .inputs import as_tensor

_DESCRIPTION = """
Top-k accuracy: the share of samples whose class is among the k classes of the greatest scores. Of equal scores that of
the lower class index counts as greater, as argmax has it.
"""

_INPUTS = """
Args:
    predictions: (n, C) scores, logits or probabilities.
    references: (n,) class indices.

Returns:
    top{k}_accuracy for each k, between 0 and 1.
"""

_CITATION = """
@article{russakovsky2015imagenet,
    title={{ImageNet} Large Scale Visual Recognition Challenge},
    author={Russakovsky, Olga and Deng, Jia and Su, Hao and Krause, Jonathan and Satheesh, Sanjeev and Ma, Sean and
            Huang, Zhiheng and Karpathy, Andrej and Khosla, Aditya and Bernstein, Michael and Berg, Alexander C. and
            Fei-Fei, Li},
    journal={International Journal of Computer Vision},
    volume={115},
    year={2015}
}
"""


class TopKAccuracy(StatisticsMetric):
    """Top-k accuracy; stores of each sample its label and the rank of its label, [`label_rank`].

    Args:
        k: one or more of k.
        options: as of [`StatisticsMetric`].

    Raises:
        ValueError: k that are not positive, or above the number of classes.
    """

    def __init__(self, k: int | Sequence[int] = (1, 5), **options: Any) -> None:
        self.k = (k,) if isinstance(k, int) else tuple(k)
        if not self.k or not all(isinstance(value, int) and value > 0 for value in self.k):
            raise ValueError(f"k must be one or more positive integers, got {k!r}.")
        super().__init__(**options)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")},
            ),
        )

    def _reduce(self, predictions: Sequence, references: Sequence) -> tuple[list, list]:
        scores = as_tensor(predictions)
        labels = as_tensor(references).to(scores.device)
        ranks = label_rank(scores, labels)
        if max(self.k) > scores.shape[1]:
            raise ValueError(
                f"Top-{max(self.k)} accuracy needs at least {max(self.k)} classes, the scores have {scores.shape[1]}: "
                f"choose k, now {self.k}, accordingly."
            )
        return ranks.tolist(), labels.tolist()

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        if not predictions:
            raise ValueError("Top-k accuracy of no samples: nothing was added.")
        ranks = torch.tensor(predictions)
        return {f"top{k}_accuracy": (ranks < k).double().mean().item() for k in self.k}
