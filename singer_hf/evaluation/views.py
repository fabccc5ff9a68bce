"""What is done to an image before the backbone sees it, in evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torchvision.transforms import v2

from ..data import eval_transform, train_transform
from .protocol import Protocol


@dataclass(frozen=True)
class Views:
    """A transform and how many different views of an image it gives.

    Args:
        transform: of an image, or for dense tasks of (image, annotation) together. Its `repr` is part of the key under
            which features are cached.
        count: K; 1 where nothing is random.
        seed: of random views: view v of image i is the same in every run with it. `None` where nothing is random.
    """

    transform: Any
    count: int = 1
    seed: int | None = None


def image_views(size: tuple[int, int], protocol: Protocol, *, augmented: bool, seed: int) -> Views:
    """Classification: the paper's test transform (resize, centre crop), or RandomResizedCrop and flip."""
    if not augmented:
        return Views(eval_transform(size))
    low, high = protocol.crop_scale
    transform = train_transform(size, min_scale=low, max_scale=high, ratio=protocol.crop_ratio)
    return Views(transform, protocol.views, seed)


def annotated_views(size: tuple[int, int], protocol: Protocol, *, augmented: bool, seed: int) -> Views:
    """Dense tasks: the whole image resized to `size`, whatever its proportions; or a random crop and flip."""
    steps = [CentreSquare()] if protocol.square else []
    if not augmented:
        return Views(v2.Compose([*steps, v2.Resize(size, antialias=True)]))
    crop = v2.RandomResizedCrop(size, scale=protocol.crop_scale, ratio=protocol.crop_ratio, antialias=True)
    return Views(v2.Compose([*steps, crop, v2.RandomHorizontalFlip()]), protocol.views, seed)


class CentreSquare(torch.nn.Module):
    """The largest square in the middle, of images and annotations alike: (..., H, W) -> (..., s, s)."""

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...] | torch.Tensor:
        side = min(inputs[0].shape[-2:])
        outputs = tuple(v2.functional.center_crop(tensor, [side, side]) for tensor in inputs)
        return outputs if len(outputs) > 1 else outputs[0]
