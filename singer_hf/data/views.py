"""The views of one image that a sample consists of, alike for stored and streamed data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from .seeding import seeded

Transform = Callable[[Image.Image], Tensor]
"""RGB image -> uint8 (3, H, W), random by torch's default CPU generator alone."""


def make_views(
    image: Image.Image,
    seed: int,
    transform: Transform,
    teacher_transform: Transform | None,
) -> dict[str, Tensor]:
    """`pixel_values`, `teacher_pixel_values` if there is a teacher_transform, and `sample_seed` (int64 scalar).

    Both transforms start from the same seed, so that teacher and student see the same crop, mirrored alike.
    """
    with seeded(seed):
        item = {"pixel_values": transform(image)}
    if teacher_transform is not None:
        with seeded(seed):
            item["teacher_pixel_values"] = teacher_transform(image)
    item["sample_seed"] = torch.tensor(seed)
    return item
