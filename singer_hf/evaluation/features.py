"""Features of a split, extracted once by all processes together and read from then on out of the cache."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..data.errors import DataError, without_worker_trace
from .cache import CacheError, FeatureCache

logger = logging.getLogger(__name__)

SHARD_BYTES = 2**28
"""Size that a shard of dense features does not pass by much."""

SHARD_IMAGES = 4096
"""Images that a shard holds at most: what is lost, at most, when a run is killed."""


@dataclass(frozen=True)
class CachedFeatures:
    """Features of n images in K views, memory-mapped.

    Args:
        shards: one list of shards a view; a shard is tensors by name, (images of the shard, ...).
        shard_images: images of each shard but the last.
        num_images: n.
        images_extracted: views of images that were not in the cache, in all processes.
    """

    shards: Sequence[Sequence[dict[str, Tensor]]]
    shard_images: int
    num_images: int
    images_extracted: int = 0

    @property
    def num_views(self) -> int:
        return len(self.shards)

    def nbytes(self, name: str) -> int:
        """Size of everything of one name."""
        return sum(shard[name].nbytes for view in self.shards for shard in view)

    def all(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        """Everything of one name in memory: (K, n, ...)."""
        first = self.shards[0][0][name]
        values = torch.empty(self.num_views, self.num_images, *first.shape[1:], dtype=first.dtype, device=device)
        for view, shards in zip(values, self.shards, strict=True):
            for part, shard in zip(view.split(self.shard_images), shards, strict=True):
                part.copy_(shard[name])
        return values

    def to(self, device: torch.device) -> CachedFeatures:
        """The same, held on a device in place of the disk."""
        shards = [[{name: t.to(device) for name, t in shard.items()} for shard in view] for view in self.shards]
        return replace(self, shards=shards)

    def rows(self, name: str, images: Tensor, views: Tensor | None = None) -> Tensor:
        """Some images' (len(images), ...), each in the view that `views` (as long) names; default: view 0."""
        views = torch.zeros_like(images) if views is None else views
        parts = [
            self.shards[view][index // self.shard_images][name][index % self.shard_images]
            for view, index in zip(views.tolist(), images.tolist(), strict=True)
        ]
        return torch.stack(parts)


def cached_features(
    cache: FeatureCache,
    dataset: Dataset,
    num_views: int,
    extract: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    bytes_per_image: int,
    *,
    batch_size: int,
    num_workers: int,
    state: PartialState,
    description: str,
    progress: bool = True,
) -> CachedFeatures:
    """Reads features out of the cache; what is missing or damaged there is extracted first, dealt out to processes.

    A batch never crosses the border of a shard, so that a feature does not depend on which shards were missing or on
    the number of processes.

    Args:
        cache: where they are or will be.
        dataset: item (view, index) -> dict with `pixel_values`.
        num_views: K.
        extract: batch -> tensors by name on the CPU, (B, ...).
        bytes_per_image: of all tensors of an image, for the size of shards and the check of the disk.
        batch_size, num_workers: of the DataLoader.
        state: of the processes; each calls this.
        description: for the progress bar.
        progress: show one.

    Raises:
        CacheError: no space, or a shard that another process wrote is not to be seen here.
    """
    count = len(dataset)
    shard_images = max(1, min(SHARD_IMAGES, SHARD_BYTES // bytes_per_image))
    shards = [range(start, min(start + shard_images, count)) for start in range(0, count, shard_images)]
    jobs = [(view, shard) for view in range(num_views) for shard in shards]
    own = jobs[state.process_index :: state.num_processes]
    missing = [job for job in own if cache.read(*job) is None]
    if missing:
        cache.require_space(len(missing) * min(shard_images, count) * bytes_per_image * state.num_processes)
        batches = [_batches(view, shard, batch_size) for view, shard in missing]
        loader = DataLoader(
            dataset,
            batch_sampler=[batch for shard in batches for batch in shard],
            num_workers=num_workers,
            pin_memory=state.device.type == "cuda",
        )
        bar = tqdm(
            total=sum(len(shard) for _, shard in missing),
            desc=description,
            unit="image",
            disable=not (progress and state.is_main_process),
        )
        stream = iter(loader)
        for job, shard in zip(missing, batches, strict=True):
            cache.write(*job, _extracted(stream, len(shard), extract, bar))
        bar.close()
    state.wait_for_everyone()
    views = []
    for view in range(num_views):
        found = [cache.read(view, shard, verify=False) for shard in shards]
        if None in found:
            raise CacheError(
                f"Process {state.process_index} does not find {cache.path(view, shards[found.index(None)])}, which "
                "another process wrote: all processes need to see one cache folder. Set cache_dir to a shared file "
                "system."
            )
        views.append(found)
    extracted = gather_object([sum(len(shard) for _, shard in missing)])
    return CachedFeatures(views, shard_images, count, sum(extracted))


def _batches(view: int, shard: range, batch_size: int) -> list[list[tuple[int, int]]]:
    """Keys (view, index) of a shard's images."""
    starts = range(shard.start, shard.stop, batch_size)
    return [[(view, index) for index in range(start, min(start + batch_size, shard.stop))] for start in starts]


def _extracted(
    stream: Iterator[dict[str, Tensor]], batches: int, extract: Callable[..., dict[str, Tensor]], bar: Any
) -> dict[str, Tensor]:
    """The tensors of one shard."""
    parts = []
    for _ in range(batches):
        try:
            batch = next(stream)
        except DataError as error:
            raise without_worker_trace(error) from error
        parts.append(extract(batch))
        bar.update(len(batch["pixel_values"]))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
