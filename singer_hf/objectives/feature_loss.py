"""What a student's tokens are compared with the teacher's by: L_KD of one layer, and its options beyond the paper."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..losses import check_median_ratio, far_above_median, full_precision, kd_loss, patch_norms
from .target_normalization import target_normalization


class FeatureLoss(nn.Module):
    """`mean((P(F_S) − target)²)` over batch, tokens and channels, L_KD of METHOD.md section 4.

    Args:
        normalize_target: a name in `TARGET_NORMALIZATIONS`; "none" in the paper.
        mask_ratio: patches of the target longer than so many times the batch's median patch norm (see
            [`far_above_median`]) add nothing to the loss: what the student puts there, it is not told. `None` in the
            paper: every token counts. Ours; where no patch is that long the loss is the paper's to the bit.

    Raises:
        ValueError: an unknown name, a ratio of 1 or less (which would mask half of the patches of any image).
    """

    def __init__(self, normalize_target: str = "none", mask_ratio: float | None = None):
        super().__init__()
        check_median_ratio("outlier_mask_ratio", mask_ratio)
        self.normalize_target = target_normalization(normalize_target)
        self.mask_ratio = mask_ratio

    def forward(self, projected: Tensor, target: Tensor, num_prefix_tokens: int) -> Tensor:
        """The scalar loss of (B, N, d) projected student tokens and teacher tokens, prefix tokens first."""
        return kd_loss(*self.compared(projected, target, num_prefix_tokens))

    def compared(self, projected: Tensor, target: Tensor, num_prefix_tokens: int) -> tuple[Tensor, Tensor]:
        """The two features that the loss compares: the target normalised, the projected one equal to it where masked.

        Masked tokens stay in the mean's count, which is then the same in every process.
        """
        normalized = self.normalize_target(target)
        if self.mask_ratio is None:
            return projected, normalized
        kept = self._kept(target.detach(), num_prefix_tokens)[..., None]
        return torch.where(kept, full_precision(projected), full_precision(normalized)), normalized

    def _kept(self, target: Tensor, num_prefix_tokens: int) -> Tensor:
        """(B, N, d) -> (B, N), False for patches of too high a norm."""
        kept = ~far_above_median(patch_norms(target[:, num_prefix_tokens:]), self.mask_ratio)
        return F.pad(kept, (num_prefix_tokens, 0), value=True)
