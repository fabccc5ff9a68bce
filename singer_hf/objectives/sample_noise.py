"""Uniform noise that depends on the sample, not on the process or device that draws it."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_noise(sample_seeds: Tensor, count: int) -> Tensor:
    """(B,) int64 seeds -> (B, count) float32 in [0, 1), row b a function of `sample_seeds[b]` alone.

    The finaliser of SplitMix64 (Steele et al. 2014) over a counter. torch's generators give one stream a device, so
    a row would depend on the batch it is in; this is a few integer operations that run, and compile, anywhere.
    """
    counter = torch.arange(1, count + 1, device=sample_seeds.device) * -7046029254386353131  # 0x9E3779B97F4A7C15
    bits = sample_seeds[:, None] + counter[None]
    bits = (bits ^ _shift(bits, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    bits = (bits ^ _shift(bits, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    bits = bits ^ _shift(bits, 31)
    return _shift(bits, 40).float() / 2**24


def _shift(bits: Tensor, by: int) -> Tensor:
    """Logical right shift of int64 (torch's own keeps the sign)."""
    return (bits >> by) & ((1 << (64 - by)) - 1)
