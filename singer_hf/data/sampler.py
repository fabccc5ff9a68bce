"""The order of samples, and the channel by which the epoch reaches worker processes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from .seeding import sample_seed

_ORDER = -1  # in place of a sample id, which is never negative: the order must not share a sample's random numbers


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields the keys `(epoch, index)` of `num_samples` samples, in an order that (seed, epoch) alone determines.

    A persistent worker keeps the copy of the dataset that it started with, so that `dataset.set_epoch` never reaches
    it; indices do, and here they carry the epoch. accelerate's `prepare` and `skip_first_batches` only regroup keys.

    Args:
        num_samples: n > 0.
        seed: of the order.
        shuffle: a new permutation each epoch; False: 0 … n − 1.
    """

    # No attribute `generator`: accelerate would reseed it and synchronise its state between processes.

    def __init__(self, num_samples: int, *, seed: int = 0, shuffle: bool = True):
        if num_samples <= 0:
            raise ValueError(f"EpochSampler got num_samples = {num_samples}; it needs at least one sample.")
        self.num_samples, self.seed, self.shuffle = num_samples, seed, shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """From the next `iter` on, keys and order are those of `epoch` (from 0)."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch  # fixed here: a set_epoch while this iterator is in use is for the next one
        if self.shuffle:
            generator = torch.Generator().manual_seed(sample_seed(self.seed, epoch, _ORDER))
            order = torch.randperm(self.num_samples, generator=generator)
        else:
            order = torch.arange(self.num_samples)
        return ((epoch, int(index)) for index in order)
