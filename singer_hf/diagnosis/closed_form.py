"""Refinement without training: scale down, within the null basis, only what outliers carry.

With the null basis N (d, r) of the next block's surrogate, let z = F N (r,) be what a token carries there, and C_o,
C_n (r, r) the second moments zᵀz of outliers and of all other patches. A linear map M of that space that takes z away
from outliers and leaves it with the others minimises

    E_outliers ‖z + z M‖² + ω E_others ‖z M‖²        =>        M = −(C_o + ω C_n)⁻¹ C_o,

so that `Φ_down = N`, `Φ_up = M Nᵀ`: it lies in the null space, needs two passes and one linear system, and can be
saved as an adapter. In a direction where outliers carry c_o and the others c_n, it scales by ω c_n / (c_o + ω c_n).
What it cannot do is reach what outliers carry outside of N, and an artifact has no reason to lie in a null space; the
trained adapter may leave N.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..backbones import VisionBackbone
from ..losses import full_precision, patch_norms
from ..nullspace import initial_basis
from .refinement import Refinement
from .teacher import TeacherDiagnosis
from .walk import Walk


def suppression(outliers: Tensor, others: Tensor, weight: float = 1.0) -> Tensor:
    """M (r, r) from the second moments C_o, C_n (r, r), float64.

    Directions in which neither carries anything stay as they are (least-norm solution).
    """
    outliers, others = outliers.double(), others.double()
    return -torch.linalg.lstsq(outliers + weight * others, outliers, driver="gelsd").solution


@torch.no_grad()
def fit_closed_form(
    backbone: VisionBackbone,
    layers: Sequence[int],
    diagnosis: TeacherDiagnosis,
    batches: Iterable[Tensor],
    *,
    rank: int,
    weight: float = 1.0,
    fold_layer_norm: bool = False,
) -> dict[int, Refinement]:
    """The refinement above for each of `layers` that has outliers, in one pass; layers without any are left out.

    Args:
        backbone: the teacher.
        layers: blocks to refine behind.
        diagnosis: the teacher's, for the thresholds of outliers.
        batches: normalised pixels (B, 3, H, W), to estimate the moments on.
        rank: r of the null basis.
        weight: ω, how much leaving other patches alone counts.
        fold_layer_norm: see [`linear_surrogate`].

    Raises:
        ValueError: ω not positive.
    """
    if weight <= 0:
        raise ValueError(f"weight must be positive, got {weight}: with 0 nothing holds the other patches back.")
    bases = {layer: initial_basis(backbone, layer, rank, fold_layer_norm=fold_layer_norm) for layer in layers}
    moments = {layer: torch.zeros(2, rank, rank, dtype=torch.float64) for layer in layers}
    counts = {layer: [0, 0] for layer in layers}
    walk = Walk(backbone)
    for pixels in batches:
        walk.layout_of(pixels)
        features = backbone.features(pixels.to(walk.dtype), layers, adapters=False)
        for layer, hidden in features.hidden.items():
            patches = full_precision(hidden[:, backbone.num_prefix_tokens :])
            is_outlier = diagnosis.is_outlier(layer, patch_norms(patches))
            inside = (patches @ bases[layer].to(patches)).cpu().double()
            for index, mask in enumerate((is_outlier.cpu(), ~is_outlier.cpu())):
                chosen = inside[mask]
                moments[layer][index] += chosen.T @ chosen
                counts[layer][index] += len(chosen)
    refinements = {}
    for layer, (outliers, others) in counts.items():
        if outliers == 0:
            continue
        inner = suppression(moments[layer][0] / outliers, moments[layer][1] / max(others, 1), weight)
        basis = bases[layer].cpu()
        refinements[layer] = Refinement(basis.float(), (inner @ basis.T).float(), fold_layer_norm)
    return refinements
