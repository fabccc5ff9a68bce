"""Views of an image: PIL image of any mode and size -> uint8 (3, H, W). Normalisation comes later, on the device."""

from __future__ import annotations

from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from .images import to_rgb

Size = int | tuple[int, int]


def train_transform(
    size: Size,
    *,
    min_scale: float = 0.08,
    max_scale: float = 1.0,
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
) -> v2.Transform:
    """Random crop of `min_scale` to `max_scale` of the area, resized to `size`, mirrored with probability `flip`.

    Under the same seed two of these that differ in `size` alone take the same crop box and the same mirroring: what
    is drawn depends on the image's size, not on the output's.

    Args:
        size: side in pixels, or (height, width).
        min_scale, max_scale: in (0, 1].
        ratio: least and greatest width / height of a crop.
        flip: in [0, 1].
    """
    if not 0 < min_scale <= max_scale <= 1:
        raise ValueError(
            f"min_scale is {min_scale} and max_scale {max_scale}; expected shares of the image's area in (0, 1]."
        )
    if not 0 <= flip <= 1:
        raise ValueError(f"flip is {flip}; expected a probability in [0, 1].")
    # Cropping and resizing the uint8 tensor is faster than PIL's (64×64 to 224²: by a quarter, decoding included).
    return v2.Compose(
        [
            RgbTensor(),
            v2.RandomResizedCrop(height_width(size), scale=(min_scale, max_scale), ratio=ratio, antialias=True),
            v2.RandomHorizontalFlip(flip),
        ]
    )


def eval_transform(size: Size) -> v2.Transform:
    """The paper's test protocol: 224 is the centre of the image resized to 256; other sizes in proportion.

    Args:
        size: side in pixels, or (height, width).
    """
    height, width = height_width(size)
    resize = ResizeToCover(int(height * 256 / 224), int(width * 256 / 224))
    return v2.Compose([RgbTensor(), resize, v2.CenterCrop((height, width))])


def height_width(size: Size) -> tuple[int, int]:
    """Side or (height, width) -> (height, width), both positive."""
    height, width = (size, size) if isinstance(size, int) else size
    if height <= 0 or width <= 0:
        raise ValueError(f"The image size is {size}; expected a positive side, or (height, width).")
    return int(height), int(width)


class RgbTensor(nn.Module):
    """PIL image of any mode -> uint8 (3, H, W)."""

    def forward(self, image: Image.Image) -> Tensor:
        return functional.pil_to_tensor(to_rgb(image))


class ResizeToCover(nn.Module):
    """(3, H, W) -> the least size of the same proportions that is at least height × width; bilinear, antialiased.

    For height = width this is `v2.Resize(height)`, the shortest edge.
    """

    def __init__(self, height: int, width: int):
        super().__init__()
        self.height, self.width = height, width

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        if self.height * width >= self.width * height:  # the height decides
            size = [self.height, self.height * width // height]
        else:
            size = [self.width * height // width, self.width]
        return functional.resize(image, size, antialias=True)

    def extra_repr(self) -> str:
        return f"height={self.height}, width={self.width}"
