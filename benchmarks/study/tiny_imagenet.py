"""The study's images: some classes of Tiny ImageNet, and corrupted copies of its test images."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from singer_hf.data import find_label_column, load_images

CORRUPTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "noise": v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.GaussianNoise(sigma=0.1)]),
    "blur": v2.GaussianBlur(kernel_size=7, sigma=1.5),
    "contrast": lambda image: functional.adjust_contrast(image, 0.35),
    "pixelate": lambda image: functional.resize(
        functional.resize(image, [24, 24]), [64, 64], interpolation=v2.InterpolationMode.NEAREST
    ),
}
"""uint8 (3, 64, 64) -> uint8 or float: about the severity 3 of ImageNet-C's kinds (arXiv 1903.12261) at 64 pixels."""


def prepare_images(folder: Path, source: Path, *, classes: int, train_images: int, test_images: int) -> None:
    """Writes `train`, `test` and `corrupted.parquet` into `folder`, unless they are there.

    Args:
        folder: of the grid.
        source: folder of Tiny ImageNet's parquet files, `train-*` and `valid-*`.
        classes: evenly spaced among its 200.
        train_images, test_images: of a class.
    """
    if (folder / "corrupted.parquet").exists():  # the last to be written
        return
    folder.mkdir(parents=True, exist_ok=True)
    train = _of_classes(source / "train-*.parquet", classes, train_images)
    test = _of_classes(source / "valid-*.parquet", classes, test_images)
    train.to_parquet(folder / "train.parquet")
    test.to_parquet(folder / "test.parquet")
    _corrupted(test).to_parquet(folder / "corrupted.parquet")


def _of_classes(files: Path, classes: int, images: int) -> datasets.Dataset:
    """The first `images` of each of `classes` classes, labels 0 to `classes` − 1."""
    dataset = load_images(str(files), split="train")
    column = find_label_column(dataset)
    names, labels = dataset.features[column].names, np.asarray(dataset[column])
    chosen = [index * len(names) // classes for index in range(classes)]
    rows = [np.flatnonzero(labels == label)[:images] for label in chosen]
    few = min(len(part) for part in rows)
    if few < images:
        raise ValueError(f"{files}: a class has {few} images, {images} are asked for: bring more shards.")
    order = np.sort(np.concatenate(rows))
    new = {old: position for position, old in enumerate(chosen)}
    picked = dataset.select(order).remove_columns(column)
    feature = datasets.ClassLabel(names=[names[label] for label in chosen])
    return picked.add_column("label", [new[int(label)] for label in labels[order]]).cast_column("label", feature)


def _corrupted(test: datasets.Dataset) -> datasets.Dataset:
    """Every test image once by each corruption, as PNG."""
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    images, labels = [], []
    for corrupt in CORRUPTIONS.values():
        for row in test:
            image = corrupt(functional.pil_to_tensor(row["image"].convert("RGB")))
            images.append(
                _png(
                    functional.to_dtype(image.clamp(0, 1), torch.uint8, scale=True)
                    if image.is_floating_point()
                    else image
                )
            )
            labels.append(row["label"])
    torch.random.set_rng_state(generator_state)
    features = datasets.Features({"image": datasets.Image(), "label": test.features["label"]})
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def _png(image: torch.Tensor) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}
