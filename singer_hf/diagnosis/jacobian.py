"""The null basis of a block's full Jacobian, in place of the feed-forward surrogate's (the paper's Table 8).

J_i = ∂(block(F)_i − F_i) / ∂F_i (d, d), row-vector convention: a small perturbation δ of token i changes the block's
update of that token by δ J_i. `J Jᵀ` averaged over patch tokens; the eigenvectors of its smallest eigenvalues are the
directions that the block notices least on average.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..backbones import VisionBackbone

EXACT_UP_TO = 256
"""Widths up to which all d rows of each Jacobian are computed; above, random products J v take their place."""

PRODUCTS_PER_WIDTH = 4
"""Random products of a basis, in multiples of d."""


def token_jacobians(
    backbone: VisionBackbone, block: int, hidden: Tensor, tokens: Tensor, block_inputs: dict[str, Any] | None = None
) -> Tensor:
    """J (B, d, d) of one token of each image, exactly. Entry [b, j, k] is ∂(update)_k / ∂F_j.

    Args:
        backbone: the model.
        block: which block.
        hidden: its input (B, N, d).
        tokens: (B,) int64, the token of each image.
        block_inputs: of the same pass.
    """

    def update(token: Tensor, image: Tensor, index: Tensor) -> Tensor:
        place = torch.arange(image.shape[0], device=image.device) == index
        changed = torch.where(place[:, None], token[None], image)
        output = backbone.run_block(block, changed[None], block_inputs, adapters=False)[0]
        return (output * place[:, None]).sum(dim=0) - token

    own = hidden[torch.arange(len(hidden), device=hidden.device), tokens]
    # torch.func has no batching rule for fused attention (torch 2.14); the plain one is the same function.
    with sdpa_kernel(SDPBackend.MATH):
        jacobian = torch.func.vmap(torch.func.jacrev(update))(own, hidden, tokens)
    return jacobian.transpose(1, 2).detach()  # jacrev gives (output, input)


def jacobian_products(
    backbone: VisionBackbone,
    block: int,
    hidden: Tensor,
    tokens: Tensor,
    directions: Tensor,
    block_inputs: dict[str, Any] | None = None,
) -> Tensor:
    """J v (B, d) of one token of each image and one direction v (B, d) each: one backward pass for all.

    Only the token's own update is weighed, so what reaches its own input is J v; what reaches other tokens is not
    looked at.
    """
    rows = torch.arange(len(hidden), device=hidden.device)
    with torch.enable_grad():
        hidden = hidden.detach().requires_grad_(True)
        output = backbone.run_block(block, hidden, block_inputs, adapters=False)
        score = ((output - hidden)[rows, tokens] * directions).sum()
        (gradient,) = torch.autograd.grad(score, hidden)
    return gradient[rows, tokens]


def mean_outer_product(
    backbone: VisionBackbone,
    block: int,
    hidden: Tensor,
    block_inputs: dict[str, Any] | None = None,
    *,
    tokens_per_image: int = 4,
    products_per_width: float = PRODUCTS_PER_WIDTH,
    exact_up_to: int = EXACT_UP_TO,
    seed: int = 0,
) -> Tensor:
    """E[J Jᵀ] (d, d) over random patch tokens, float64 on the CPU.

    Exactly for those tokens where d ≤ `exact_up_to`; above, by `products_per_width · d` products J v with v normal,
    since E_v[(J v)(J v)ᵀ] = J Jᵀ. At least d of them are needed for any direction's energy to be seen.

    Args:
        backbone: the model.
        block: which block.
        hidden: its input (B, N, d) for some images.
        block_inputs: of the same pass.
        tokens_per_image: tokens of each image (exact way).
        products_per_width: see above (random way).
        exact_up_to: greatest width of the exact way.
        seed: of tokens and directions.
    """
    width, prefix = hidden.shape[-1], backbone.num_prefix_tokens
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        tokens = torch.randint(prefix, hidden.shape[1], (len(hidden),), generator=generator)
        return tokens.to(hidden.device)

    total, count = torch.zeros(width, width, dtype=torch.float64), 0
    if width <= exact_up_to:
        for _ in range(tokens_per_image):
            jacobians = token_jacobians(backbone, block, hidden, draw(), block_inputs).cpu().double()
            total += torch.einsum("bjk,blk->jl", jacobians, jacobians)
            count += len(hidden)
    else:
        while count < products_per_width * width:
            directions = torch.randn(len(hidden), width, generator=generator).to(hidden)
            products = jacobian_products(backbone, block, hidden, draw(), directions, block_inputs).cpu().double()
            total += products.T @ products
            count += len(hidden)
    return total / count


def jacobian_nullspace(outer: Tensor, rank: int) -> Tensor:
    """N (d, r): eigenvectors of E[J Jᵀ] with the r smallest eigenvalues, smallest last."""
    if not 1 <= rank <= len(outer):
        raise ValueError(f"rank r={rank} must lie between 1 and the width d={len(outer)}.")
    return torch.linalg.eigh(outer).eigenvectors[:, :rank].flip(1)
