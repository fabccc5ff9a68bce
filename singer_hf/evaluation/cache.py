"""Features of a frozen backbone on disk: shards that are memory-mapped, checked and shared between runs.

A shard is one safetensors file of named tensors whose first dimension counts images. Its header holds what it was made
from (the key) and a checksum of its tensors, so that a shard of other data, a damaged one and half of one are told
from a good one by the file alone; they are made again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

logger = logging.getLogger(__name__)

FORMAT = 1
"""Raised when what is stored changes its meaning, so that older shards are not used."""

DEFAULT_CACHE = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "singer_hf" / "features"


class CacheError(OSError):
    """The cache folder cannot be used; the message says why and what to do."""


class FeatureCache:
    """Shards of one model on one split of images.

    Args:
        root: folder of all caches. Processes of one run share it.
        key: whatever the features depend on, as JSON: weights, data, transform, precision, …
    """

    def __init__(self, root: str | Path, key: Mapping[str, Any]):
        self.key = json.dumps({"format": FORMAT, **key}, sort_keys=True)
        self.folder = Path(root).expanduser() / hashlib.sha256(self.key.encode()).hexdigest()[:24]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheError(f"The feature cache {root} cannot be written: {error}. Set cache_dir.") from error

    def path(self, view: int, images: range) -> Path:
        """File of the shard of these images."""
        return self.folder / f"view{view:03d}-images{images.start:07d}-{images.stop:07d}.safetensors"

    def read(self, view: int, images: range, *, verify: bool = True) -> dict[str, Tensor] | None:
        """A shard's tensors, memory-mapped; `None` where there is no shard that is good.

        Args:
            view: number of the augmented view.
            images: of the shard.
            verify: compare the checksum, for which the whole file is read.
        """
        path = self.path(view, images)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        except (SafetensorError, OSError, ValueError) as error:
            return self._damaged(path, f"it cannot be read ({error})")
        if header.get("key") != self.key or header.get("images") != f"{view} {images}":
            return self._damaged(path, "it was made from something else")
        if verify and header.get("checksum") != _checksum(tensors):
            return self._damaged(path, "its checksum is wrong")
        return tensors

    def write(self, view: int, images: range, tensors: Mapping[str, Tensor]) -> None:
        """Writes a shard whole or not at all.

        Raises:
            CacheError: no space left, or the folder cannot be written.
        """
        path = self.path(view, images)
        tensors = {name: tensor.contiguous() for name, tensor in sorted(tensors.items())}
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            save_file(tensors, part, metadata=self._header(tensors, view, images))
            os.replace(part, path)
        except (SafetensorError, OSError) as error:
            full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
            reason = "the disk is full" if full else str(error)
            raise CacheError(
                f"Features cannot be written to {self.folder}: {reason}. Free some space there, or set cache_dir to "
                "another disk; shards that are complete are kept and used again."
            ) from error
        finally:
            part.unlink(missing_ok=True)

    def _header(self, tensors: Mapping[str, Tensor], view: int, images: range) -> dict[str, str]:
        return {"key": self.key, "images": f"{view} {images}", "checksum": _checksum(tensors)}

    def require_space(self, size: int) -> None:
        """Raises `CacheError` unless `size` bytes are free, before hours are spent on features for a full disk."""
        free = shutil.disk_usage(self.folder).free
        if free < size:
            raise CacheError(
                f"The features need {size / 1e9:.2f} GB in {self.folder}, where {free / 1e9:.2f} GB are free. Free "
                "some space, set cache_dir to another disk, or take fewer views or images."
            )

    def _damaged(self, path: Path, reason: str) -> None:
        logger.warning("The cached features in %s are not used, since %s; they are made again.", path, reason)


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = xxhash.xxh3_128()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
