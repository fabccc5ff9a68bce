"""Linear CKA of two models' features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import torch

from ..measures.similarity import LinearCKAStatistics
from .base import StatisticsMetric
from .inputs import as_tensor

_DESCRIPTION = """
Linear centred kernel alignment of two models' features of the same samples: between 0 and 1, and 1 for features that
are equal up to an orthogonal map, a shift and a common scale. It is biased towards 1 unless there are many more
samples than channels.
"""

_INPUTS = """
Args:
    predictions: (n, d) features of one model, one vector a sample (pooled, or one a token).
    references: (n, d') features of the other model, of the same samples.

Returns:
    linear_cka.
"""

_CITATION = """
@inproceedings{kornblith2019similarity,
    title={Similarity of Neural Network Representations Revisited},
    author={Kornblith, Simon and Norouzi, Mohammad and Lee, Honglak and Hinton, Geoffrey},
    booktitle={International Conference on Machine Learning},
    year={2019}
}
"""


class LinearCKA(StatisticsMetric):
    """Linear CKA; keeps [`LinearCKAStatistics`] of all samples of this process, and exchanges one row a process.

    Args:
        options: as of [`StatisticsMetric`].
    """

    def __init__(self, **options: Any) -> None:
        self._statistics: LinearCKAStatistics | None = None
        super().__init__(**options)

    def __len__(self) -> int:
        return 0 if self._statistics is None else self._statistics.count

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            # The sums of the statistics; the two widths.
            features=datasets.Features(
                {
                    "predictions": datasets.List(datasets.Value("float64")),
                    "references": datasets.List(datasets.Value("int64")),
                }
            ),
        )

    def _reduce(self, predictions: Sequence, references: Sequence) -> tuple[list, list]:
        x, y = as_tensor(predictions), as_tensor(references)
        if self._statistics is None:
            if x.ndim != 2 or y.ndim != 2:
                raise ValueError(
                    f"CKA compares features (n, d) and (n, d'), got shapes {tuple(x.shape)} and {tuple(y.shape)}: "
                    "pool or flatten tokens first."
                )
            statistics = LinearCKAStatistics(x.shape[1], y.shape[1], device=x.device)
        else:
            statistics = self._statistics
        statistics.add(x, y)
        self._statistics = statistics
        return [], []

    def compute(self, *, predictions: Sequence | None = None, references: Sequence | None = None) -> dict | None:
        """The value of all samples added since the last call, and of those given here; None in processes but 0."""
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        statistics, self._statistics = self._statistics, None
        if statistics is not None:
            row = statistics.sums.flatten().cpu().numpy()
            evaluate.Metric.add_batch(self, predictions=[row], references=[[statistics.width, statistics.other_width]])
        return super().compute()

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        if not predictions:
            raise ValueError("CKA of no samples: nothing was added.")
        total = LinearCKAStatistics(*references[0], device="cpu")
        for row, widths in zip(predictions, references, strict=True):
            part = LinearCKAStatistics(*widths, device="cpu")
            part.sums = torch.tensor(row, dtype=torch.float64).view_as(part.sums)
            total.merge(part)
        return {"linear_cka": total.compute()}
