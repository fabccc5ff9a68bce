"""Feature losses beyond the package's own, to be tried: a recipe names them in `feature_loss`.

What gained is an option of the package now (see docs/study.md); the rest stays here, so that its cells can be run
again, and so do `prefix_share` and `detach_target` beside it, under which cells were recorded.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from singer_hf.losses import full_precision, gram_loss, patch_norms
from singer_hf.objectives.feature_loss import FeatureLoss
from singer_hf.objectives.projectors import PROJECTORS


def standardize(target: Tensor) -> Tensor:
    """Each channel with mean 0 and variance 1 over the batch's tokens (batch normalisation without parameters)."""
    flat = target.flatten(0, 1)
    return (target - flat.mean(0)) / (flat.std(0) + 1e-6)


def whiten(target: Tensor) -> Tensor:
    """ZCA over the batch's tokens: no direction of the features has more variance than another.

    (PHI-S of RADIO, arXiv 2410.01680, gives every *channel* the same variance by a rotation and one scale; under a
    linear projector and a squared error that is a factor, and a rotation that the projector absorbs.)
    """
    centred = target - target.mean((0, 1))
    flat = centred.flatten(0, 1)
    values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    return centred @ (vectors * (values + 1e-2 * values.mean()).rsqrt()) @ vectors.T


TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "standardize": standardize,
    "whiten": whiten,
}


def median_ratio(target: Tensor, num_prefix_tokens: int) -> Tensor:
    """(B, N, d) -> (B, N): each token's norm in multiples of the batch's median patch norm; 1 for prefix tokens.

    Of the batch, not of the image: in images of much plain background most patches may be artifacts.
    """
    norms = patch_norms(target[:, num_prefix_tokens:].detach())
    ratio = norms / norms.median()
    return F.pad(ratio, (num_prefix_tokens, 0), value=1.0)


CRITERIA: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": lambda projected, target: (projected - target).square().mean(-1),
    "smooth_l1": lambda projected, target: F.smooth_l1_loss(projected, target, reduction="none").mean(-1),
    "cosine": lambda projected, target: 1 - F.cosine_similarity(projected, target, dim=-1),
}
"""(B, N, d) and (B, N, d) -> (B, N)."""


class CandidateLoss(FeatureLoss):
    """A squared error with one thing changed.

    Args:
        normalize_target: as in the package, applied first.
        transform: a name in `TRANSFORMS`, applied to the normalised target.
        criterion: a name in `CRITERIA`.
        prefix_share: share of the loss that prefix tokens (CLS) have; default: their share of the tokens.
        clip_ratio: patches longer than so many medians of the batch are scaled down to that: refinement without an
            adapter.
        relation_weight: of the Gram matrices of projected patches against the target's.
        detach_target: whether the adapter learns from L_outlier and L_info alone, so that it cannot make its target
            easier for the student; the paper trains all jointly.
    """

    def __init__(
        self,
        normalize_target: str = "none",
        *,
        transform: str | None = None,
        criterion: str = "mse",
        prefix_share: float | None = None,
        clip_ratio: float | None = None,
        relation_weight: float = 0.0,
        detach_target: bool = False,
    ):
        super().__init__(normalize_target)
        self.transform = TRANSFORMS[transform] if transform else None
        self.criterion, self.prefix_share, self.relation_weight = CRITERIA[criterion], prefix_share, relation_weight
        self.detach_target, self.clip_ratio = detach_target, clip_ratio

    def forward(self, projected: Tensor, target: Tensor, num_prefix_tokens: int) -> Tensor:
        if self.detach_target:
            target = target.detach()
        if self.clip_ratio is not None:
            target = target * (self.clip_ratio / median_ratio(target, num_prefix_tokens)).clamp(max=1)[..., None]
        projected, target = full_precision(projected), full_precision(self.normalize_target(target))
        if self.transform is not None:
            target = self.transform(target)
        tokens = self.criterion(projected, target)
        if self.prefix_share is None:
            loss = tokens.mean()
        else:
            prefix, patches = tokens[:, :num_prefix_tokens].mean(), tokens[:, num_prefix_tokens:].mean()
            loss = self.prefix_share * prefix + (1 - self.prefix_share) * patches
        if self.relation_weight:
            loss = loss + self.relation_weight * gram_loss(
                projected[:, num_prefix_tokens:], target[:, num_prefix_tokens:]
            )
        return loss


def mlp_projector(student_width: int, teacher_width: int) -> nn.Module:
    """Two layers with GELU, hidden as wide as the teacher."""
    return nn.Sequential(nn.Linear(student_width, teacher_width), nn.GELU(), nn.Linear(teacher_width, teacher_width))


CANDIDATE_PROJECTORS = {"mlp": mlp_projector}


def register_projectors() -> None:
    """Makes the candidates known by name, in this process alone."""
    PROJECTORS.update(CANDIDATE_PROJECTORS)
