"""Nullspace initialisation (METHOD.md section 3): pure functions of weights.

Row-vector convention throughout: a token x (d,) passes a linear map as x W, so what a perturbation x N adds to the
map's output is x N W, and the *left* nullspace of W is where perturbations vanish.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .backbones import FeedForward, VisionBackbone


def linear_surrogate(feed_forward: FeedForward, *, fold_layer_norm: bool = False) -> Tensor:
    """W̃ (d, d) in float64, the linear surrogate of a block: its feed-forward part without the non-linearity.

    `W̃ = W_in W_out`; with `fold_layer_norm`, `W̃ = (I − 11ᵀ/d) diag(γ) W_in W_out diag(λ)`, where the centring is left
    out for a norm that does not subtract the mean, and γ or λ where the block has none. Gated feed-forwards give
    `W_up W_down`.
    """
    surrogate = feed_forward.w_in.detach().double() @ feed_forward.w_out.detach().double()
    if not fold_layer_norm:
        return surrogate
    if feed_forward.norm_scale is not None:
        surrogate = feed_forward.norm_scale.detach().double()[:, None] * surrogate
    if feed_forward.norm_centers:
        surrogate = surrogate - surrogate.mean(dim=0, keepdim=True)
    if feed_forward.layer_scale is not None:
        surrogate = surrogate * feed_forward.layer_scale.detach().double()
    return surrogate


def surrogate_layer(layer: int, num_blocks: int) -> int:
    """The block whose surrogate a refinement at `layer` must not disturb: the next, or for the last block its own."""
    return min(layer + 1, num_blocks - 1)


@dataclass(frozen=True)
class InitializationContext:
    """What an initialisation may use.

    Args:
        surrogate: W̃ (d, d), float64.
        rank: r.
        null_threshold: singular values below it count as null (the released code's rule alone uses it).
        generator: source of random numbers, on the CPU.
    """

    surrogate: Tensor
    rank: int
    null_threshold: float
    generator: torch.Generator


def left_nullspace(surrogate: Tensor, rank: int) -> Tensor:
    """N (d, r): the left singular vectors of W̃ (d, d') with the r smallest singular values, smallest last.

    Orthonormal, and ‖NᵀW̃‖_F is the least that any r orthonormal columns reach: the root of the sum of the r smallest
    σ². Each vector's largest entry is positive, so that the result does not depend on the SVD driver's choice of sign.

    Raises:
        ValueError: rank outside 1..d.
    """
    if not 1 <= rank <= surrogate.shape[0]:
        raise ValueError(f"rank r={rank} must lie between 1 and the width d={surrogate.shape[0]}.")
    basis = torch.linalg.svd(surrogate, full_matrices=True)[0][:, -rank:]
    peaks = basis.gather(0, basis.abs().argmax(dim=0, keepdim=True))
    return basis * peaks.sign()


def nullspace_init(context: InitializationContext) -> Tensor:
    """The paper's basis: the r smallest singular vectors."""
    return left_nullspace(context.surrogate, context.rank)


def random_init(context: InitializationContext) -> Tensor:
    """The paper's baseline: r random unit vectors, the same for both factors."""
    return _random_unit_columns(context.surrogate.shape[0], context.rank, context.generator)


def reference_init(context: InitializationContext) -> Tensor:
    """The released code's rule: the first r vectors with σ < threshold in *descending* order of σ.

    They are not the smallest; where there are fewer than r, random unit vectors fill up.
    """
    left, values, _ = torch.linalg.svd(context.surrogate, full_matrices=True)
    basis = left[:, values < context.null_threshold][:, : context.rank]
    missing = context.rank - basis.shape[1]
    padding = _random_unit_columns(basis.shape[0], missing, context.generator).to(basis)
    return torch.cat([basis, padding], dim=1)


def _random_unit_columns(width: int, count: int, generator: torch.Generator) -> Tensor:
    return F.normalize(torch.randn(width, count, generator=generator, dtype=torch.float64), dim=0)


INITIALIZATIONS: dict[str, Callable[[InitializationContext], Tensor]] = {
    "nullspace": nullspace_init,
    "random": random_init,
    "reference": reference_init,
}


def initial_basis(
    backbone: VisionBackbone,
    layer: int,
    rank: int,
    *,
    init: str = "nullspace",
    fold_layer_norm: bool = False,
    own_block: bool = False,
    null_threshold: float = 0.05,
    seed: int = 0,
) -> Tensor:
    """N (d, r), float64 on the CPU or the weights' GPU: `Φ_down = N`, `Φ_up = Nᵀ` for a refinement at `layer`.

    Args:
        backbone: the teacher.
        layer: block behind which features are refined.
        rank: r, at most the width.
        init: a name in `INITIALIZATIONS`.
        fold_layer_norm: see [`linear_surrogate`].
        own_block: take the block's own surrogate in place of the next block's (the last block always does).
        null_threshold: see [`reference_init`]; 0.05 in the released code.
        seed: of the random vectors; each layer draws its own.
    """
    source = layer if own_block else surrogate_layer(layer, backbone.num_blocks)
    surrogate = linear_surrogate(backbone.feed_forward(source), fold_layer_norm=fold_layer_norm)
    if rank > surrogate.shape[0]:
        raise ValueError(f"rank r={rank} is above the teacher's width d={surrogate.shape[0]}.")
    if surrogate.device.type != "cuda":
        surrogate = surrogate.cpu()  # float64 SVD is missing on some accelerators
    generator = torch.Generator().manual_seed(seed * 1_000_003 + layer)
    return INITIALIZATIONS[init](InitializationContext(surrogate, rank, null_threshold, generator))
