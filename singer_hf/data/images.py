"""From an encoded image, or a PIL image of any mode, to an RGB image whose pixels are all there."""

from __future__ import annotations

from contextlib import contextmanager
from io import BytesIO
from typing import Any

import fsspec
import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

from .errors import CorruptImageError, ImageColumnError


def load_rgb(value: Any, where: str) -> Image.Image:
    """A cell of an image column -> RGB image, fully decoded.

    Args:
        value: PIL image, encoded bytes, or `{"bytes": …, "path": …}` as `datasets.Image(decode=False)` gives.
        where: names the sample in errors, e.g. "Image 7".

    Raises:
        CorruptImageError: nothing there, unreadable, truncated, or of a mode without a known range of values.
        ImageColumnError: a value of another type.
    """
    check_cell(value, where)
    cell = read_cell(value, where)
    try:
        image = cell if isinstance(cell, Image.Image) else Image.open(BytesIO(cell["bytes"]))
        with truncated_images_refused():
            image.load()
        return to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # PIL's plugins raise OSError, SyntaxError, struct.error, zlib.error, IndexError, …
        raise corrupt_image(where, value, error) from error


def corrupt_image(where: str, value: Any, cause: BaseException | str) -> CorruptImageError:
    """The error for the sample `where`, with its path where `value` names one."""
    path = value.get("path") if isinstance(value, dict) else getattr(value, "filename", None)
    cause = cause if isinstance(cause, str) else f"{type(cause).__name__}: {cause}"
    return CorruptImageError(
        f"{where}{f' ({path})' if path else ''} cannot be read: {cause}. Repair or remove it (in "
        "training, skip_corrupt_images=True skips such images and counts them)."
    )


def check_cell(value: Any, where: str) -> None:
    """Raises `ImageColumnError` if `value` is of a type that can never be an image; empty cells pass."""
    is_struct = isinstance(value, dict) and ("bytes" in value or "path" in value)
    if not (value is None or is_struct or isinstance(value, Image.Image | bytes | bytearray)):
        raise ImageColumnError(
            f"{where} is of type {type(value).__name__}; expected a PIL image, encoded bytes, or a dict with 'bytes' "
            "or 'path'. Set image_column to the column of images."
        )


def read_cell(value: Any, where: str) -> Image.Image | dict[str, Any]:
    """A PIL image as it is; anything else as `{"bytes": not empty, "path": str or None}`.

    A file is read from its path, which may be local or any address that fsspec opens.

    Raises:
        CorruptImageError: nothing there, or the file cannot be read.
    """
    if isinstance(value, Image.Image):
        return value
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if content is None and path:
        try:
            with fsspec.open(path, "rb") as file:
                content = file.read()
        except (OSError, ValueError) as error:  # ValueError: an address of no known protocol
            raise corrupt_image(where, value, error) from error
    if content is None:
        raise corrupt_image(where, value, "the cell is empty (None)")
    if len(content) == 0:
        raise corrupt_image(where, value, "it has 0 bytes")
    return {"bytes": bytes(content), "path": path}


def to_rgb(image: Image.Image) -> Image.Image:
    """Any 8-bit or 16-bit PIL image -> mode RGB, upright (EXIF orientation applied, as `datasets` does).

    Transparency is dropped; 16-bit gray keeps its upper byte. A float image raises ValueError: its range is unknown.
    """
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise ValueError("its pixels are floats (mode F) of unknown range; expected 8-bit or 16-bit integers")
    if image.mode == "I" or image.mode.startswith("I;16"):
        # PIL's own conversion clips 16-bit values at 255: nearly all white.
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"its pixels go from {values.min()} to {values.max()}; expected 8-bit or 16-bit integers")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL warns when it goes straight to RGB; the colours are the same
    return image.convert("RGB")


@contextmanager
def truncated_images_refused():
    """Within, PIL refuses an image whose end is missing, also where another library has set PIL's global to the
    contrary, with which half a JPEG decodes to half an image without an error."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
