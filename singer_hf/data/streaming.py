"""A streamed dataset of images as a stream of their views."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import datasets
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from .columns import check_column, check_image_feature, check_label_feature, integer_label
from .errors import CorruptImageError, EmptyDatasetError
from .images import check_cell, load_rgb, read_cell
from .seeding import sample_seed
from .views import Transform, make_views

EMPTY_STREAM = "The stream is empty; expected at least one image. Check its path and split."
_ORDER = -1  # in place of a sample id, which is never negative


class StreamingDistillationDataset(IterableDataset):
    """One pass over a `datasets.IterableDataset`, in items as of [`DistillationDataset`]; see [`TrainingStream`].

    A stream has no indices, so a sample is known by a hash of its encoded bytes: its augmentation is a function of
    (seed, epoch, bytes), whatever shard or worker it comes from. Shards are dealt out to workers by `datasets`; the
    order of samples depends on the number of workers, and with a shuffle buffer on (seed, epoch). The epoch lies in
    shared memory, where persistent workers see it.

    Args:
        dataset: the stream. Its own `set_epoch` is not called (in `datasets` 5 it reorders the shards of any stream,
            shuffled or not): shuffle by `shuffle_buffer_size`.
        shuffle_buffer_size: samples, still encoded, that each worker holds to draw from; 0 keeps the stream's order.
        skip_corrupt_images: leave out what cannot be read. `corrupt` of an item is the number of images that were left
            out just before it; what was left out behind the last item of all is not counted.
        transform, teacher_transform, image_column, label_column, seed: as of [`DistillationDataset`].

    Raises:
        MissingColumnError, ImageColumnError, LabelColumnError: here, or at the first sample where the stream does not
            know the types of its columns.
        EmptyDatasetError, CorruptImageError: while iterating; the latter with `skip_corrupt_images` only if nothing
            in a worker's share can be read.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        transform: Transform,
        *,
        teacher_transform: Transform | None = None,
        image_column: str = "image",
        label_column: str | None = None,
        seed: int = 0,
        skip_corrupt_images: bool = False,
        shuffle_buffer_size: int = 0,
    ):
        super().__init__()
        if not isinstance(dataset, datasets.IterableDataset):
            raise TypeError(
                f"Got a {type(dataset).__name__}; expected one split of a streamed datasets.IterableDataset. A "
                "map-style dataset goes into DistillationDataset."
            )
        if shuffle_buffer_size < 0:
            raise ValueError(f"shuffle_buffer_size is {shuffle_buffer_size}; expected 0 (no shuffling) or more.")
        self.transform, self.teacher_transform = transform, teacher_transform
        self.image_column, self.label_column = image_column, label_column
        self.seed, self.skip_corrupt_images = seed, skip_corrupt_images
        self.shuffle_buffer_size = shuffle_buffer_size
        if dataset.features is not None:
            check_image_feature(dataset.features, image_column)
            if label_column is not None:
                check_label_feature(dataset.features, label_column)
            columns = [name for name in (image_column, label_column) if name is not None]
            dataset = dataset.with_format(None).select_columns(columns)
            dataset = dataset.cast_column(image_column, datasets.Image(decode=False))
        self.dataset = dataset
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch of the next iteration."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """From the next `iter` on, in this and in worker processes, order and augmentation are those of `epoch`."""
        self._epoch.fill_(int(epoch))  # in place: the memory is shared

    def first_image(self) -> int | None:
        """The [`sample_id`] of the first row in the stream's own order, `None` where its image cannot be read.

        Raises:
            EmptyDatasetError: there is none.
        """
        row = next(iter(self.dataset.take(1)), None)
        if row is None:
            raise EmptyDatasetError(EMPTY_STREAM)
        try:
            return sample_id(read_cell(row.get(self.image_column), "The first image of the stream"))
        except CorruptImageError:
            return None

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        skipped = 0
        for item in self._one_pass(self.epoch):
            if item is None:
                skipped += 1
                continue
            item["corrupt"], skipped = torch.tensor(skipped), 0
            yield item

    def ordered(self, epoch: int) -> datasets.IterableDataset:
        """The stream, still encoded, in the order of an epoch."""
        if not self.shuffle_buffer_size:
            return self.dataset
        order_seed = sample_seed(self.seed, epoch, _ORDER)
        return self.dataset.shuffle(seed=order_seed, buffer_size=self.shuffle_buffer_size)

    def _one_pass(self, epoch: int) -> Iterator[dict[str, Tensor] | None]:
        """Items, with None for each image that is left out."""
        order = "shuffled order" if self.shuffle_buffer_size else "order"
        first_error, position, readable = None, -1, 0
        for position, row in enumerate(self.ordered(epoch)):
            try:
                item = self.item(row, epoch, f"Image {position} of the stream (in this process's {order})")
            except CorruptImageError as error:
                if not self.skip_corrupt_images:
                    raise
                first_error = first_error or error
                yield None
            else:
                readable += 1
                yield item
        if first_error is not None and not readable:
            raise CorruptImageError(f"None of {position + 1} images can be read. The first error was: {first_error}")
        if position < 0 and torch.utils.data.get_worker_info() is None:
            raise EmptyDatasetError(EMPTY_STREAM)

    def item(self, row: dict[str, Any], epoch: int, where: str) -> dict[str, Tensor]:
        """The view of an encoded row in an epoch, without `corrupt`; `where` names it in errors."""
        check_column(row, self.image_column, "image_column")
        check_cell(row[self.image_column], f"Column {self.image_column!r} of the stream")
        label = None
        if self.label_column is not None:
            check_column(row, self.label_column, "label_column")
            label = integer_label(row[self.label_column], self.label_column)
        cell = read_cell(row[self.image_column], where)
        image = load_rgb(cell, where)
        seed = sample_seed(self.seed, epoch, sample_id(cell))
        item = make_views(image, seed, self.transform, self.teacher_transform)
        if label is not None:
            item["labels"] = torch.tensor(label)
        return item


def sample_id(cell: Image.Image | dict[str, Any]) -> int:
    """Hash in [0, 2**63) of the encoded image, or of the pixels of one that the stream gives decoded."""
    is_decoded = isinstance(cell, Image.Image)
    content = f"{cell.mode}{cell.size}".encode() + cell.tobytes() if is_decoded else cell["bytes"]
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1
