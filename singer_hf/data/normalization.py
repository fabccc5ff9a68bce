"""From uint8 pixels to the numbers a model was trained on, on the model's device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


class PixelNormalization(nn.Module):
    """`(x · rescale − mean) / std`, channel by channel.

    Args:
        mean, std: three numbers, or one for all channels; they apply after rescaling.
        rescale: factor of the raw pixels, 1/255 for most models.
    """

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float], rescale: float = 1 / 255):
        super().__init__()
        self.image_mean = _per_channel(mean, "mean")
        """Mean as Python floats, since the buffer rounds to float32."""
        self.image_std = _per_channel(std, "std")
        """Standard deviation as Python floats."""
        if min(self.image_std) <= 0:
            raise ValueError(f"The standard deviation is {self.image_std}; expected positive numbers.")
        self.rescale = float(rescale)
        # Not persistent: they belong to the image processor, which is saved by itself.
        self.register_buffer("mean", torch.tensor(self.image_mean), persistent=False)
        self.register_buffer("std", torch.tensor(self.image_std), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 or float (B, 3, H, W) in 0 … 255 -> float32 (B, 3, H, W) on the same device."""
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"Pixels have shape {tuple(pixels.shape)}; expected (B, 3, H, W).")
        mean, std = (values.float()[:, None, None] for values in (self.mean, self.std))
        return (pixels.float() * self.rescale - mean) / std

    def extra_repr(self) -> str:
        return f"mean={self.image_mean}, std={self.image_std}, rescale={self.rescale:g}"

    @classmethod
    def imagenet(cls) -> PixelNormalization:
        """The mean and standard deviation of ImageNet-1k's training images."""
        return cls(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)

    @classmethod
    def from_image_processor(cls, processor: Any) -> PixelNormalization:
        """What a transformers image processor does to an image after resizing and cropping.

        Raises:
            ValueError: not an image processor, or one that does something else (rescale_offset).
        """
        timm_config = getattr(processor, "data_config", None)
        if timm_config is not None:  # TimmWrapperImageProcessor; timm's ToTensor divides by 255
            return cls(timm_config["mean"], timm_config["std"])
        if not (hasattr(processor, "do_rescale") and hasattr(processor, "do_normalize")):
            raise ValueError(
                f"{type(processor).__name__} has no do_rescale and do_normalize; expected an image processor (of a "
                "multi-modal processor, pass processor.image_processor)."
            )
        if getattr(processor, "rescale_offset", False):
            raise ValueError(f"{type(processor).__name__} has rescale_offset=True, which is not supported here.")
        rescale = processor.rescale_factor if processor.do_rescale else 1.0
        if not processor.do_normalize:
            return cls(0.0, 1.0, rescale)
        return cls(processor.image_mean, processor.image_std, rescale)


def _per_channel(values: float | Sequence[float] | None, name: str) -> tuple[float, float, float]:
    channels = (values,) * 3 if isinstance(values, int | float) else tuple(values or ())
    if len(channels) != 3:
        raise ValueError(f"The image {name} is {values}; expected one number, or three for red, green, blue.")
    return tuple(float(value) for value in channels)
