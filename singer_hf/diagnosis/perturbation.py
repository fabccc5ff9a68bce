"""How much a block's real output changes when its input is perturbed in null directions (the paper's Table 8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbones import VisionBackbone
from ..losses import full_precision, patch_norms
from ..measures.similarity import LinearCKAStatistics
from ..nullspace import initial_basis
from .cka import trusted_cka
from .effect import patch_cosine
from .jacobian import PRODUCTS_PER_WIDTH, jacobian_nullspace, mean_outer_product
from .statistics import LogHistogram, Moments


@dataclass(frozen=True)
class BasisContext:
    """What a basis may be made from.

    Args:
        backbone: the teacher.
        layer: features behind it are perturbed; block `layer + 1` is the one that sees it.
        rank: r.
        batches: (F_l (B, N, d), block_inputs) of each batch of the images that bases are made from.
        seed: of everything random.
    """

    backbone: VisionBackbone
    layer: int
    rank: int
    batches: Sequence[tuple[Tensor, dict[str, Any]]]
    seed: int


def _feed_forward(context: BasisContext) -> Tensor:
    return initial_basis(context.backbone, context.layer, context.rank)


def _feed_forward_folded(context: BasisContext) -> Tensor:
    return initial_basis(context.backbone, context.layer, context.rank, fold_layer_norm=True)


def _jacobian(context: BasisContext) -> Tensor:
    images = sum(len(hidden) for hidden, _ in context.batches)
    outer = 0
    for index, (hidden, block_inputs) in enumerate(context.batches):
        share = len(hidden) / images
        outer = outer + share * mean_outer_product(
            context.backbone,
            context.layer + 1,
            hidden,
            block_inputs,
            products_per_width=PRODUCTS_PER_WIDTH * share,
            seed=context.seed + index,
        )
    return jacobian_nullspace(outer, context.rank)


def _random(context: BasisContext) -> Tensor:
    generator = torch.Generator().manual_seed(context.seed)
    width = context.backbone.hidden_size
    return torch.linalg.qr(torch.randn(width, context.rank, generator=generator, dtype=torch.float64))[0]


BASES: dict[str, Callable[[BasisContext], Tensor]] = {
    "feed-forward surrogate": _feed_forward,
    "feed-forward surrogate, norms folded": _feed_forward_folded,
    "full Jacobian": _jacobian,
    "random": _random,
}
"""Name -> N (d, r), orthonormal: the paper's basis, ours, the paper's comparison, and what chance gives."""


def random_perturbation(patches: Tensor, basis: Tensor, size: float, generator: torch.Generator) -> Tensor:
    """δ (B, n, d): a random direction in the span of N (d, r) for every patch, of norm `size · ‖F_i‖`.

    Equally long for every basis, so that only the directions differ.
    """
    coefficients = torch.randn(*patches.shape[:2], basis.shape[1], generator=generator)
    directions = F.normalize(coefficients.to(patches) @ basis.T.to(patches), dim=-1)
    return size * patch_norms(patches)[..., None] * directions


@torch.no_grad()
def measure_perturbations(
    backbone: VisionBackbone,
    layers: Sequence[int],
    pixels: Tensor,
    *,
    rank: int,
    size: float = 0.2,
    batch_size: int = 16,
    seed: int = 0,
    bases: dict[str, Callable[[BasisContext], Tensor]] | None = None,
) -> dict[int, dict[str, dict[str, float]]]:
    """Deviation of block l+1's output under perturbations of F_l in the directions of each basis.

    The bases are made from the first half of the images and measured on the second, so that the Jacobian's is not
    measured on the tokens it was fitted to.

    Args:
        backbone: the teacher.
        layers: behind which features are perturbed; the last block is left out, no block sees its output.
        pixels: (images, 3, H, W), normalised; at least two.
        rank: r of every basis.
        size: norm of a perturbation relative to its patch.
        batch_size: images a pass.
        seed: of directions and tokens.
        bases: default: all in `BASES`.

    Returns:
        Layer -> basis -> `basis_images` and `images` (how many it was made from and measured on), `l2` (mean over
        patches of ‖ΔB‖ / ‖B‖), `cosine` (mean patch cosine of both outputs), `cka` (`None` on too few images, see
        [`trusted_cka`]), and `update_l2`: as `l2`, of what the block adds to the stream, into which the perturbation
        itself does not enter: mean ‖Δ(B − F)‖ / median ‖B − F‖.

    Raises:
        ValueError: fewer than two images, a size that is not positive.
    """
    if len(pixels) < 2:
        raise ValueError(f"Perturbations are fitted on some images and measured on others: got {len(pixels)}, need 2.")
    if size <= 0:
        raise ValueError(f"size must be positive, got {size}.")
    weight, half = next(backbone.model.parameters()), max(1, len(pixels) // 2)
    device, dtype = weight.device, weight.dtype
    results = {}
    for layer in layers:
        if layer + 1 >= backbone.num_blocks:
            continue
        batches = []
        for batch in pixels[:half].split(batch_size):
            features = backbone.features(batch.to(device, dtype), [layer], adapters=False)
            batches.append((features.hidden[layer], features.block_inputs))
        context = BasisContext(backbone, layer, rank, batches, seed)
        results[layer] = {
            name: {"basis_images": half, "images": len(pixels) - half}
            | _deviation(backbone, layer, pixels[half:].split(batch_size), basis(context), size, seed)
            for name, basis in (BASES if bases is None else bases).items()
        }
    return results


def _deviation(
    backbone: VisionBackbone, layer: int, batches: Sequence[Tensor], basis: Tensor, size: float, seed: int
) -> dict[str, float]:
    generator, prefix = torch.Generator().manual_seed(seed), backbone.num_prefix_tokens
    width, weight = backbone.hidden_size, next(backbone.model.parameters())
    l2, cosine, change, update = Moments(), Moments(), Moments(), LogHistogram()
    cka = LinearCKAStatistics(width, width)
    for pixels in batches:
        features = backbone.features(pixels.to(weight), [layer, layer + 1], adapters=False)
        hidden, output = features.hidden[layer], full_precision(features.hidden[layer + 1][:, prefix:])
        patches = full_precision(hidden[:, prefix:])
        delta = random_perturbation(patches, basis, size, generator)
        changed = torch.cat([hidden[:, :prefix], (patches + delta).to(hidden)], dim=1)
        perturbed = full_precision(
            backbone.run_block(layer + 1, changed, features.block_inputs, adapters=False)[:, prefix:]
        )
        l2.add(patch_norms(perturbed - output) / patch_norms(output))
        cosine.add(patch_cosine(output, perturbed))
        change.add(patch_norms(perturbed - output - delta))
        update.add(patch_norms(output - patches))
        cka.add(output.flatten(0, 1).cpu(), perturbed.flatten(0, 1).cpu())
    return {
        "l2": l2.mean,
        "cosine": cosine.mean,
        "cka": trusted_cka(cka),
        "update_l2": change.mean / update.median,
    }
