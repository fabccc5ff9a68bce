"""Images of dense tasks together with their annotation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from ..data import CorruptImageError, sample_seed, seeded
from ..data.columns import check_column
from ..data.images import load_rgb
from .targets import AnnotationError, read_map


class AnnotatedImages(Dataset):
    """Item `(view, index)` -> `pixel_values` uint8 (3, H, W) and `target` (H, W).

    Args:
        dataset: a split.
        transform: of (image, annotation) together; random by torch's default CPU generator alone, which is seeded with
            (seed, view, index).
        image_column: images, encoded or as arrays (3, h, w) or (h, w, 3): uint8, or floats from 0 to 1.
        target_column: annotations, see [`read_map`].
        read_target: stored array (h, w) -> tensor (h, w).
        seed: of the views.

    Raises:
        MissingColumnError: here.
        CorruptImageError: an image that cannot be read, on access.
        AnnotationError: an annotation that is missing, unreadable, or of another size than its image, on access.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        transform: Callable[..., Any],
        *,
        image_column: str,
        target_column: str,
        read_target: Callable[[np.ndarray], Tensor],
        seed: int = 0,
    ):
        check_column(dataset.features, image_column, "image_column")
        check_column(dataset.features, target_column, "target_column")
        dataset = dataset.with_format(None).select_columns([image_column, target_column])
        for column in (image_column, target_column):
            if isinstance(dataset.features[column], datasets.Image):
                dataset = dataset.cast_column(column, datasets.Image(decode=False))
        self.dataset, self.transform, self.seed = dataset, transform, seed
        self.image_column, self.target_column, self.read_target = image_column, target_column, read_target

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        view, index = key
        row, where = self.dataset[index], f"Image {index}"
        pixels = _read_pixels(row[self.image_column], where)
        try:
            target = self.read_target(read_map(row[self.target_column]))
        except AnnotationError as error:
            raise AnnotationError(f"{where}: {error}") from error
        if target.shape != pixels.shape[1:]:
            raise AnnotationError(
                f"{where} has {pixels.shape[1]}x{pixels.shape[2]} pixels (height x width), but its annotation "
                f"{target.shape[0]}x{target.shape[1]}. Bring both to one size before evaluation."
            )
        with seeded(sample_seed(self.seed, view, index)):
            pixels, target = self.transform(tv_tensors.Image(pixels), tv_tensors.Mask(target))
        return {"pixel_values": pixels.as_subclass(Tensor), "target": target.as_subclass(Tensor)}


def _read_pixels(cell: Any, where: str) -> Tensor:
    """Encoded image or array -> uint8 (3, h, w)."""
    if not isinstance(cell, list | np.ndarray):
        return functional.pil_to_tensor(load_rgb(cell, where))
    values = np.asarray(cell)
    if values.ndim == 3 and values.shape[0] != 3 and values.shape[2] == 3:
        values = values.transpose(2, 0, 1)
    if values.ndim != 3 or values.shape[0] != 3:
        raise CorruptImageError(f"{where} is an array of shape {values.shape}; expected (3, h, w) or (h, w, 3).")
    if values.dtype.kind == "f":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise CorruptImageError(f"{where} is an array of floats outside 0 to 1; expected 0 to 1, or uint8.")
        values = (values * 255).round()
    elif values.min() < 0 or values.max() > 255:
        raise CorruptImageError(f"{where} is an array of integers outside 0 to 255.")
    return torch.from_numpy(values.astype(np.uint8))
