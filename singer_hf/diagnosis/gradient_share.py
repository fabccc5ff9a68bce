"""How much of a plain feature loss, and of its gradient, falls on outlier patches: the paper's argument for SiNGER.

The gradient of mean((P(F_S) − F_T)²) at patch i is `2/n (P(F_S,i) − F_T,i)` (n: number of elements of the mean). At
the start of training the student's prediction is small beside the target, so patch i gets gradient in proportion to
its residual's norm ‖F_T,i‖ and loss in proportion to its square.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..losses import patch_norms


def outlier_gradient_share(prediction: Tensor, target: Tensor, outliers: Tensor) -> float:
    """Share of Σ_i ‖∂L/∂P_i‖ that falls on outliers, L = mean((P − F)²).

    Args:
        prediction: P(F_S), (B, n, d).
        target: F_T, (B, n, d).
        outliers: (B, n) bool.
    """
    share = RunningShare()
    share.add(patch_norms(prediction - target), outliers)
    return share.value


def outlier_loss_share(prediction: Tensor, target: Tensor, outliers: Tensor) -> float:
    """Share of L = mean((P − F)²) that outliers make up. Arguments as of [`outlier_gradient_share`]."""
    share = RunningShare()
    share.add(patch_norms(prediction - target).square(), outliers)
    return share.value


class RunningShare:
    """Share of a sum over patches that falls on outliers, over batches."""

    def __init__(self) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64)

    def add(self, values: Tensor, outliers: Tensor) -> None:
        """`values`, not negative, and `outliers` (bool), both (B, n)."""
        values = values.detach().double()
        self._sums += torch.stack([values[outliers].sum(), values.sum()]).cpu()

    @property
    def value(self) -> float | None:
        """In 0 to 1; `None` where there is nothing to share."""
        part, total = self._sums.tolist()
        return part / total if total > 0 else None
