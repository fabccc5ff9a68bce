"""What dense tasks predict, from a cell of a dataset to a tensor: masks of class indices, depth maps in metres."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data import DataError
from ..data.images import read_cell, truncated_images_refused

IGNORE = -1
"""Index, in a mask of ours, of pixels that count for nothing."""


class AnnotationError(DataError):
    """An annotation that is missing, cannot be read, or does not fit its image or task."""


def read_map(cell: Any) -> np.ndarray:
    """One channel (H, W) of numbers from a PIL image, encoded bytes or a path in a dict, or a nested list or array.

    A palette image gives its indices, not its colours.

    Args:
        cell: value of the annotation column.

    Raises:
        AnnotationError: nothing there, unreadable, or of more than one channel.
    """
    if cell is None or (isinstance(cell, dict) and not cell.get("bytes") and not cell.get("path")):
        raise AnnotationError(
            "it has no annotation (None). Leave such images out, e.g. by dataset.filter, or name the column that "
            "holds them in target_column."
        )
    if isinstance(cell, Image.Image | bytes | bytearray | dict):
        try:
            source = read_cell(cell, "its annotation")
            image = source if isinstance(source, Image.Image) else Image.open(BytesIO(source["bytes"]))
            with truncated_images_refused():
                values = np.asarray(image)
            if values.ndim == 3:
                raise ValueError(f"it has {values.shape[2]} channels (mode {image.mode}); expected one")
        except MemoryError:
            raise
        except Exception as error:  # PIL's plugins raise many kinds
            raise AnnotationError(f"its annotation cannot be read: {error}.") from error
    else:
        try:
            values = np.asarray(cell)
        except ValueError as error:
            raise AnnotationError(f"its annotation is no array: {error}") from error
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values.squeeze(0 if values.shape[0] == 1 else 2)
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise AnnotationError(
            f"its annotation has shape {values.shape} and type {values.dtype}; expected one channel (height, "
            "width) of numbers."
        )
    return values


def class_mask(values: np.ndarray, *, num_labels: int, ignore_label: int | None, reduce_labels: bool) -> Tensor:
    """(H, W) class indices -> int16, in which pixels that count for nothing are `IGNORE`.

    Args:
        values: as [`read_map`] gives them.
        num_labels: classes 0 to num_labels − 1, after `reduce_labels`.
        ignore_label: stored index of pixels without a class.
        reduce_labels: 0 stands for "no class" and class c is stored as c + 1, as in ADE20K.

    Raises:
        AnnotationError: an index that is neither a class nor `ignore_label`.
    """
    if values.dtype.kind == "f" and not np.array_equal(values, np.round(values)):
        raise AnnotationError("its annotation holds fractions; expected class indices.")
    mask = torch.from_numpy(values.astype(np.int64))
    ignored = torch.zeros_like(mask, dtype=torch.bool) if ignore_label is None else mask == ignore_label
    if reduce_labels:
        ignored = ignored | (mask == 0)
        mask = mask - 1
    wrong = ~ignored & ((mask < 0) | (mask >= num_labels))
    if wrong.any():
        found = sorted(set((mask[wrong] + int(reduce_labels)).tolist()))
        raise AnnotationError(
            f"its annotation holds the class indices {found[:5]}; expected "
            f"{int(reduce_labels)} to {num_labels - 1 + int(reduce_labels)}"
            + (f" or {ignore_label} (ignore_label)." if ignore_label is not None else ", and no ignore_label is set.")
        )
    return mask.masked_fill_(ignored, IGNORE).to(torch.int16)


def depth_map(values: np.ndarray, *, scale: float, max_depth: float) -> Tensor:
    """(H, W) stored depths -> float32 metres, in which pixels without a valid depth are 0.

    Args:
        values: as [`read_map`] gives them; 0, negative and non-finite values are no measurement.
        scale: metres of one stored unit.
        max_depth: metres beyond which nothing counts.
    """
    depth = torch.from_numpy(values.astype(np.float32)) * scale
    valid = torch.isfinite(depth) & (depth > 0) & (depth <= max_depth)
    return depth.masked_fill_(~valid, 0.0)
