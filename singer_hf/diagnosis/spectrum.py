"""The spectrum of a block's linear surrogate W̃ (METHOD.md section 3): its null directions and its leading one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backbones import VisionBackbone
from ..nullspace import linear_surrogate

NULL_ENERGY = 3e-4
"""Energy that null directions may pass together, relative to d typical directions (see [`effective_nullity`]). For a
random W̃ of 1,024 → 4,096 → 1,024 it gives r = 66: the paper's 64 of 1,024 is what a spectrum without any structure
allows."""


@dataclass(frozen=True)
class SurrogateSpectrum:
    """What is kept of the SVD W̃ = U Σ Vᵀ in row-vector convention (a token x passes as x W̃), of one block.

    Args:
        values: (d,) singular values, descending.
        leading_input: (d,) first left singular vector u₁: the direction of the input that W̃ amplifies most.
        leading_output: (d,) first right singular vector v₁: the direction that W̃ amplifies most *into*.
    """

    values: Tensor
    leading_input: Tensor
    leading_output: Tensor


def surrogate_spectrum(backbone: VisionBackbone, block: int, *, fold_layer_norm: bool = False) -> SurrogateSpectrum:
    """Spectrum of a block's own surrogate, float64 on the CPU. `fold_layer_norm`: see [`linear_surrogate`]."""
    surrogate = linear_surrogate(backbone.feed_forward(block), fold_layer_norm=fold_layer_norm).cpu()
    left, values, right = torch.linalg.svd(surrogate, full_matrices=False)
    return SurrogateSpectrum(values, left[:, 0].clone(), right[0].clone())  # clones: not all of U and V with them


def left_singular_vectors(backbone: VisionBackbone, block: int, *, fold_layer_norm: bool = False) -> Tensor:
    """U (d, d) of a block's surrogate: columns are directions of the input, the last are the null directions."""
    surrogate = linear_surrogate(backbone.feed_forward(block), fold_layer_norm=fold_layer_norm).cpu()
    return torch.linalg.svd(surrogate)[0]


def effective_nullity(values: Tensor, energy: float = NULL_ENERGY) -> int:
    """Greatest r for which the r smallest singular values together hold at most `energy` · d · median(σ)².

    The median and not the mean of σ²: one massive direction, as artifacts are made by, holds nearly all of ‖W̃‖²_F, and
    beside it every other direction would count as null.
    """
    squares = values.double().square().sort().values
    return int((squares.cumsum(0) <= energy * _typical_energy(values)).sum())


def null_energy(values: Tensor, rank: int) -> float:
    """Energy of the `rank` smallest singular values over d · median(σ)²."""
    squares = values.double().square().sort().values
    return (squares[:rank].sum() / _typical_energy(values)).item()


def _typical_energy(values: Tensor) -> Tensor:
    return len(values) * values.double().median().square()


def stable_rank(values: Tensor) -> float:
    """‖W̃‖²_F / σ₁²: 1 where one direction is all, d where all are equal."""
    largest = values.max().item()
    return (values.double().square().sum() / largest**2).item() if largest else math.nan
