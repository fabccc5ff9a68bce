"""CKA only where there are patches enough for it."""

from __future__ import annotations

import math

from ..measures.similarity import LinearCKAStatistics

PATCHES_PER_CHANNEL = 5
"""Least number of patches for each channel of the wider features. CKA of n independent normal features of width d is
about d / (n + d), not 0 (that of equal ones is 1): 0.17 at n = 5 d, nearly 1 where n is below d."""


def trusted_cka(statistics: LinearCKAStatistics) -> float | None:
    """Linear CKA of what was added; `None` where that is fewer than [`PATCHES_PER_CHANNEL`] patches a channel."""
    enough = statistics.count >= PATCHES_PER_CHANNEL * max(statistics.width, statistics.other_width)
    return statistics.compute() if enough else None


def images_for_cka(width: int, patches_per_image: int) -> int:
    """Least number of images for a CKA of features of this width."""
    return math.ceil(PATCHES_PER_CHANNEL * width / patches_per_image)
