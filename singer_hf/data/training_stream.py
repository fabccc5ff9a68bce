"""A stream to train on: endless, dealt out to processes and workers, resumed where it was without decoding.

Passes over the data follow each other, each in the order of its epoch. Encoded rows are cheap to read and decoded
images are not, so by default every worker of every process reads all rows and decodes its own ("samples"): batch b of
process p is a run of consecutive rows, whoever decodes it. Then the order depends on (seed, epoch) alone, each image
comes exactly once an epoch, and a position is one row number. Where reading is what costs, files are dealt out instead
("shards", by `datasets.distributed.split_dataset_by_node`): each worker passes over its own.

A position cannot be `datasets`' own state, which loses the shuffle buffer; the rows of the pass that were seen are
read again, encoded, and dropped.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets.distributed import split_dataset_by_node
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .errors import CorruptImageError, DataSourceError, EmptyDatasetError
from .retry import Retries, reopening
from .streaming import EMPTY_STREAM, StreamingDistillationDataset

STREAM_SPLITS = ("samples", "shards")
_ROWS_AT_ONCE = 16
_MOST_CORRUPT = 1000
"""In a row; those looked at are kept in memory."""


@dataclass(frozen=True)
class Dealing:
    """Who reads what.

    Args:
        batch_size: images of one batch of one process.
        process, processes: this process and how many there are.
        split: a name in `STREAM_SPLITS`.
    """

    batch_size: int
    process: int = 0
    processes: int = 1
    split: str = "samples"


@dataclass
class StreamPosition:
    """Where a process is in a stream, as JSON in a checkpoint.

    Args:
        batches: taken by this process since the start of the run.
        last: turn of a worker -> (epoch, row in it) of the last sample taken from it.
        workers, processes, batch_size, split: of the run that took them.
        order: of the stream that they were taken from, see [`TrainingStream.order`].
    """

    batches: int = 0
    last: dict[int, tuple[int, int]] = field(default_factory=dict)
    workers: int = 1
    processes: int = 1
    batch_size: int = 1
    split: str = "samples"
    order: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return vars(self) | {"last": {str(turn): list(place) for turn, place in self.last.items()}}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> StreamPosition:
        last = {int(turn): (int(epoch), int(row)) for turn, (epoch, row) in record["last"].items()}
        return cls(**(record | {"last": last}))


class TrainingStream(IterableDataset):
    """Views of a stream's images without end, for a DataLoader of batches of `dealing.batch_size`.

    Items are those of [`StreamingDistillationDataset`], with `position`: int64 (epoch, row in it). With
    `views.skip_corrupt_images` the next readable image stands in for an unreadable one, and `corrupt` is true.

    Args:
        views: one pass over the stream; its epoch is not used.
        dealing: who reads what.
        retries: for a source that fails on the way.

    Raises:
        EmptyDatasetError: here, so that an empty stream does not end in a worker; or in an empty share of the files.
        CorruptImageError, DataSourceError: while iterating.
    """

    def __init__(self, views: StreamingDistillationDataset, dealing: Dealing, retries: Retries | None = None):
        self.views, self.dealing, self.retries = views, dealing, retries or Retries()
        self.start = StreamPosition()
        self.order = {
            "shuffle_buffer_size": views.shuffle_buffer_size,
            "data_seed": views.seed,
            "number of files": views.dataset.num_shards,
            "hash of the first image": views.first_image(),
        }
        """What the order of rows depends on beside the epoch, as JSON. The data are known by files and first image."""

    def resume(self, position: StreamPosition, workers: int) -> None:
        """The next iteration goes on behind `position`.

        Raises:
            DataSourceError: the stream's order is another one, or files are dealt out, and now to others.
        """
        before, now = position.order, self.order
        changed = [
            f"{name} = {before.get(name)}, now {value}" for name, value in now.items() if before.get(name) != value
        ]
        if changed:
            raise DataSourceError(
                f"The checkpoint's stream had {'; '.join(changed)}: its position means nothing in another order. "
                "Resume with the same data and options, or start the stream from its beginning with "
                "ignore_data_skip=True."
            )
        before = (position.processes, position.workers, position.batch_size, position.split)
        now = (self.dealing.processes, max(workers, 1), self.dealing.batch_size, self.dealing.split)
        if before != now and "shards" in (position.split, self.dealing.split):
            raise DataSourceError(
                f"The checkpoint's stream was dealt to {before[0]} processes of {before[1]} workers in batches of "
                f"{before[2]} (stream_split={before[3]}), this run's to {now[0]} of {now[1]} in batches of {now[2]} "
                f"({now[3]}): with files dealt out, resume with the same numbers, or start from the beginning with "
                "ignore_data_skip=True."
            )
        self.start = position

    def require_even_shares(self, workers: int) -> None:
        """Raises `DataSourceError` where files are dealt out and each reader does not get as many.

        `datasets` would let every reader read all files then, and keep every so many-th row.
        """
        readers, files = self.dealing.processes * max(workers, 1), self.order["number of files"]
        if self.dealing.split == "shards" and files % readers:
            raise DataSourceError(
                f"{files} files cannot be dealt out evenly to {readers} readers ({self.dealing.processes} processes "
                f"of {max(workers, 1)} workers): with stream_split=shards the number of readers must divide that of "
                "files. Set dataloader_num_workers so, or take stream_split=samples."
            )

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        self.require_even_shares(workers)
        rows = self._of_all(worker, workers) if self.dealing.split == "samples" else self._of_own(worker, workers)
        return self._items(rows)

    # -- dealing ------------------------------------------------------------------------------------------------------
    def _of_all(self, worker: int, workers: int) -> Iterator[tuple[bool, tuple[int, int], Any]]:
        """All rows behind the start; this worker's are every so many-th batch of them."""
        dealing, start = self.dealing, self.start
        rows = self._rows(None, (0, -1))
        if start.batches:
            newest = start.last[(start.batches - 1) % start.workers]
            rows = self._rows(None, newest)
            # The position is process 0's; the others' rows of that step lie behind its own.
            rows = itertools.islice(rows, (start.processes - 1) * start.batch_size, None)
        for number, (place, row) in enumerate(rows):
            batch = number // dealing.batch_size
            own = batch % dealing.processes == dealing.process and batch // dealing.processes % workers == worker
            yield own, place, row

    def _of_own(self, worker: int, workers: int) -> Iterator[tuple[bool, tuple[int, int], Any]]:
        """This worker's files. A DataLoader asks worker 0 first, which takes the turn that the stopped run was at."""
        turn = (worker + self.start.batches) % workers
        reader = self.dealing.process * workers + turn
        share = (reader, self.dealing.processes * workers)
        for place, row in self._rows(share, self.start.last.get(turn, (0, -1))):
            yield True, place, row

    def _rows(self, share: tuple[int, int] | None, after: tuple[int, int]) -> Iterator[tuple[tuple[int, int], Any]]:
        """((epoch, row), encoded row) behind a place, pass after pass."""
        for epoch in itertools.count(after[0]):
            skip, count = after[1] + 1 if epoch == after[0] else 0, 0
            for row in reopening(lambda epoch=epoch: self._one_pass(epoch, share), self.retries):
                if count >= skip:
                    yield (epoch, count), row
                count += 1
            if not count:
                raise EmptyDatasetError(
                    EMPTY_STREAM if share is None else f"The files of reader {share[0]} of {share[1]} hold no images."
                )

    def _one_pass(self, epoch: int, share: tuple[int, int] | None) -> Iterator[Any]:
        stream = self.views.ordered(epoch)
        if share is not None:
            stream = split_dataset_by_node(stream, rank=share[0], world_size=share[1])
        # Not iter(stream): in a worker, datasets would deal the files out once more.
        batches = stream.iter(batch_size=_ROWS_AT_ONCE)
        return (dict(zip(batch, row, strict=True)) for batch in batches for row in zip(*batch.values(), strict=True))

    # -- decoding -----------------------------------------------------------------------------------------------------
    def _items(self, rows: Iterator[tuple[bool, tuple[int, int], Any]]) -> Iterator[dict[str, Tensor]]:
        ahead: deque = deque()  # rows that were looked at for a stand-in
        while True:
            own, place, row = ahead.popleft() if ahead else next(rows)
            if not own:
                continue
            try:
                item = self._item(place, row)
            except CorruptImageError as error:
                if not self.views.skip_corrupt_images:
                    raise
                item = self._stand_in(place, rows, ahead, error)
            item["position"] = torch.tensor(place)
            yield item

    def _item(self, place: tuple[int, int], row: Any) -> dict[str, Tensor]:
        item = self.views.item(row, place[0], f"Image {place[1]} of the stream (in the order of epoch {place[0]})")
        return item | {"corrupt": torch.tensor(False)}

    def _stand_in(self, place: tuple[int, int], rows: Iterator, ahead: deque, error: Exception) -> dict[str, Tensor]:
        """The view of the next readable image."""
        for number in range(_MOST_CORRUPT):
            if number == len(ahead):
                ahead.append(next(rows))
            _, other, row = ahead[number]
            try:
                return self._item(other, row) | {"corrupt": torch.tensor(True)}
            except CorruptImageError:
                continue
        raise CorruptImageError(f"{_MOST_CORRUPT + 1} images in a row cannot be read. The first error was: {error}")


class StreamLoader:
    """Batches of a [`TrainingStream`] on a device, and the position behind those that were taken.

    Args:
        loader: over the stream, in batches of its dealing.
        to_device: moves a batch.
    """

    def __init__(self, loader: DataLoader, to_device: Any):
        self.loader, self.to_device = loader, to_device
        self.stream: TrainingStream = loader.dataset
        self.position = self.stream.start

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        dealing, workers = self.stream.dealing, max(1, self.loader.num_workers)
        start = self.stream.start
        kept = dict(start.last) if dealing.split == "shards" else {}
        shared = {"processes": dealing.processes, "batch_size": dealing.batch_size, "split": dealing.split}
        position = StreamPosition(start.batches, kept, workers, **shared, order=self.stream.order)
        for batch in self.loader:
            epoch, row = batch.pop("position")[-1].tolist()
            position.last[position.batches % workers] = (epoch, row)
            position.batches += 1
            self.position = position
            yield self.to_device(batch)
