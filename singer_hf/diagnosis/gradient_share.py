"""How much of a plain feature loss, and of its gradient, falls on outlier patches: the paper's argument for SiNGER.

The gradient of mean((P(F_S) − F_T)²) at patch i is `2/n (P(F_S,i) − F_T,i)` (n: number of elements of the mean). At
the start of training the student's prediction is small beside the target, so patch i gets gradient in proportion to
its residual's norm ‖F_T,i‖ and loss in proportion to its square.
"""

from __future__ import annotations

from torch import Tensor

from ..losses import patch_norms


def outlier_gradient_share(prediction: Tensor, target: Tensor, outliers: Tensor) -> Tensor:
    """Share of Σ_i ‖∂L/∂P_i‖ that falls on outliers, L = mean((P − F)²); scalar.

    Args:
        prediction: P(F_S), (B, n, d).
        target: F_T, (B, n, d).
        outliers: (B, n) bool.
    """
    residuals = patch_norms(prediction - target)
    return residuals[outliers].sum() / residuals.sum()


def outlier_loss_share(prediction: Tensor, target: Tensor, outliers: Tensor) -> Tensor:
    """Share of L = mean((P − F)²) that outliers make up; scalar. Arguments as of [`outlier_gradient_share`]."""
    squares = patch_norms(prediction - target).square()
    return squares[outliers].sum() / squares.sum()
