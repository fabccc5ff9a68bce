"""Small images, and datasets of them, good and bad."""

from io import BytesIO

import datasets
import numpy as np
import torch
from PIL import Image


def make_image(number: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """A smooth image, of (width, height), that no other number gives."""
    width, height = size
    noise = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG") -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def jpegs(count: int) -> list[bytes]:
    return [encoded(make_image(number)) for number in range(count)]


def image_dataset(cells: list, labels: list[int] | None = None) -> datasets.Dataset:
    """A `datasets.Dataset` with the cells (bytes, dicts or None) as they are, good or bad."""
    columns = {"image": [{"bytes": cell, "path": None} if isinstance(cell, bytes) else cell for cell in cells]}
    features = {"image": datasets.Image()}
    if labels is not None:
        columns["label"], features["label"] = labels, datasets.ClassLabel(num_classes=max(labels) + 1)
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def same_items(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
