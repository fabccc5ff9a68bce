"""The spectrum of a block's linear surrogate W̃ (METHOD.md section 3): its null directions and its leading one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backbones import VisionBackbone
from ..nullspace import linear_surrogate

NULL_ENERGY = 1e-3
"""Share of ‖W̃‖²_F that null directions may pass together. For a random W̃ of d → 4d → d, this gives r = 0.067 d, close
to the paper's 64 of 1,024; the null directions then pass 3 % of the amplitude that all directions pass together."""


@dataclass(frozen=True)
class SurrogateSpectrum:
    """SVD of W̃ = U Σ Vᵀ in row-vector convention (a token x passes as x W̃), of one block.

    Args:
        values: (d,) singular values, descending.
        left: U (d, d): columns are directions of the input; the last are the null directions.
        leading_output: (d,) first right singular vector: the direction that W̃ amplifies most *into*.
    """

    values: Tensor
    left: Tensor
    leading_output: Tensor

    @property
    def leading_input(self) -> Tensor:
        """(d,) first left singular vector: the direction of the input that W̃ amplifies most."""
        return self.left[:, 0]


def surrogate_spectrum(backbone: VisionBackbone, block: int, *, fold_layer_norm: bool = False) -> SurrogateSpectrum:
    """Spectrum of a block's own surrogate, float64 on the CPU. `fold_layer_norm`: see [`linear_surrogate`]."""
    surrogate = linear_surrogate(backbone.feed_forward(block), fold_layer_norm=fold_layer_norm).cpu()
    left, values, right = torch.linalg.svd(surrogate, full_matrices=False)
    return SurrogateSpectrum(values, left, right[0])


def effective_nullity(values: Tensor, energy: float = NULL_ENERGY) -> int:
    """Greatest r for which the r smallest singular values hold at most `energy` of Σ σ².

    ‖NᵀW̃‖²_F / ‖W̃‖²_F ≤ energy then holds for the nullspace basis N of rank r, and for no greater rank.
    """
    squares = values.double().square().sort().values
    total = squares.sum()
    if total == 0:
        return len(squares)
    return int((squares.cumsum(0) / total <= energy).sum())


def null_energy(values: Tensor, rank: int) -> float:
    """Share of Σ σ² that the `rank` smallest singular values hold."""
    squares = values.double().square().sort().values
    return (squares[:rank].sum() / squares.sum()).item()


def stable_rank(values: Tensor) -> float:
    """‖W̃‖²_F / σ₁²: 1 where one direction is all, d where all are equal."""
    largest = values.max().item()
    return (values.double().square().sum() / largest**2).item() if largest else math.nan
