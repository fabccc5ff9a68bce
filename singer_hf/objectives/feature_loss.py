"""What a student's tokens are compared with the teacher's by: L_KD of one layer, and its options beyond the paper."""

from __future__ import annotations

from collections.abc import Sequence

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
        prefix_share: share ρ of the loss that the prefix tokens of both models have together, whatever their number:
            `ρ mean_prefix + (1 − ρ) mean_patches`. Registers, whose norms may be high, are among them where both
            models have them, and no mask covers them. `None` in the paper: their share of the tokens, which for CLS
            alone is 1 in 197 at 224 pixels and patch 16. Ours.

    Raises:
        ValueError: an unknown name, a ratio of 1 or less (which would mask half of the patches of any image), a share
            outside (0, 1).
    """

    def __init__(
        self, normalize_target: str = "none", mask_ratio: float | None = None, prefix_share: float | None = None
    ):
        super().__init__()
        check_prefix_share(prefix_share)
        check_median_ratio("outlier_mask_ratio", mask_ratio)
        self.normalize_target = target_normalization(normalize_target)
        self.mask_ratio, self.prefix_share = mask_ratio, prefix_share

    def forward(self, projected: Tensor, target: Tensor, num_prefix_tokens: int) -> Tensor:
        """The scalar loss of (B, N, d) projected student tokens and teacher tokens, prefix tokens first.

        Raises:
            ValueError: a `prefix_share`, and no prefix tokens.
        """
        projected, target = self.compared(projected, target, num_prefix_tokens)
        if self.prefix_share is None:
            return kd_loss(projected, target)
        if num_prefix_tokens == 0:
            raise ValueError(
                f"prefix_share={self.prefix_share}, but student and teacher share no prefix token (CLS, registers): "
                "leave it out."
            )
        prefix = kd_loss(projected[:, :num_prefix_tokens], target[:, :num_prefix_tokens])
        patches = kd_loss(projected[:, num_prefix_tokens:], target[:, num_prefix_tokens:])
        return self.prefix_share * prefix + (1 - self.prefix_share) * patches

    def compared(self, projected: Tensor, target: Tensor, num_prefix_tokens: int) -> tuple[Tensor, Tensor]:
        """The two features that the loss compares: the target normalised, the projected one equal to it where masked.

        Masked tokens stay in the mean's count, which is then the same in every process.
        """
        normalized = self.normalize_target(target)
        if self.mask_ratio is None:
            return projected, normalized
        kept = self._kept(target.detach(), num_prefix_tokens)[..., None]
        return torch.where(kept, full_precision(projected), full_precision(normalized)), normalized

    def statistics(self, targets: Sequence[Tensor], num_prefix_tokens: int) -> dict[str, Tensor]:
        """With a `mask_ratio`, `masked_share`: of the targets' patches that are left out, mean over layers, scalar."""
        if self.mask_ratio is None:
            return {}
        kept = [self._kept(target.detach(), num_prefix_tokens)[:, num_prefix_tokens:].float() for target in targets]
        return {"masked_share": 1 - sum(layer.mean() for layer in kept) / len(kept)}

    def _kept(self, target: Tensor, num_prefix_tokens: int) -> Tensor:
        """(B, N, d) -> (B, N), False for patches of too high a norm."""
        kept = ~far_above_median(patch_norms(target[:, num_prefix_tokens:]), self.mask_ratio)
        return F.pad(kept, (num_prefix_tokens, 0), value=True)


def check_prefix_share(share: float | None) -> None:
    """Raises ValueError unless the share is `None` or strictly between 0 and 1."""
    if share is not None and not 0 < share < 1:
        raise ValueError(f"prefix_share must lie strictly between 0 and 1, got {share}.")
