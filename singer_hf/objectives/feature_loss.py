"""What a student's tokens are compared with the teacher's by: L_KD of one layer, and its option beyond the paper."""

from __future__ import annotations

from torch import Tensor, nn

from ..losses import kd_loss
from .target_normalization import target_normalization


class FeatureLoss(nn.Module):
    """`mean((P(F_S) − target)²)` over batch, tokens and channels, L_KD of METHOD.md section 4.

    Args:
        normalize_target: a name in `TARGET_NORMALIZATIONS`; "none" in the paper.

    Raises:
        ValueError: an unknown name.
    """

    def __init__(self, normalize_target: str = "none"):
        super().__init__()
        self.normalize_target = target_normalization(normalize_target)

    def forward(self, projected: Tensor, target: Tensor, num_prefix_tokens: int) -> Tensor:
        """The scalar loss of (B, N, d) projected student tokens and teacher tokens, prefix tokens first."""
        return kd_loss(projected, self.normalize_target(target))
