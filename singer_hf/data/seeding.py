"""Random numbers that belong to a sample, not to the process that happens to load it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def sample_seed(seed: int, epoch: int, sample_id: int) -> int:
    """Seed in [0, 2**63) of one sample in one epoch, the same in every process, on every machine, after every resume.

    `sample_id` is the index of a map-style dataset's sample, or a hash of a streamed sample's bytes.
    """
    digest = hashlib.blake2b(f"{int(seed)},{int(epoch)},{int(sample_id)}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within, torch's default CPU generator is seeded with `seed`; afterwards it is as it was before.

    torchvision's v2 transforms draw from that generator alone. `torch.manual_seed` would seed CUDA too, which starts
    it in worker processes and disturbs dropout in the main process.
    """
    generator = torch.default_generator
    state = generator.get_state()
    try:
        generator.manual_seed(seed)
        yield
    finally:
        generator.set_state(state)
