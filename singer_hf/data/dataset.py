"""A map-style dataset of images as a dataset of their views."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .columns import check_column, check_image_feature, check_label_feature, integer_label
from .errors import CorruptImageError, EmptyDatasetError, ImageColumnError
from .images import check_cell, corrupt_image, load_rgb
from .seeding import sample_seed
from .views import Transform, make_views


class DistillationDataset(Dataset):
    """Views of each image, a pure function of (seed, epoch, index).

    A key is `(epoch, index)`, as [`EpochSampler`] yields, or a plain index, which means epoch 0. An item holds

    - `pixel_values`: uint8 (3, H, W), the student's view;
    - `teacher_pixel_values`: uint8 (3, H', W'), only with `teacher_transform`, drawn from the same random numbers;
    - `sample_seed`: int64 in [0, 2**63), for randomness on the device;
    - `labels`: int64, only with `label_column`;
    - `corrupt`: bool, whether another sample stands in for an unreadable one.

    Args:
        dataset: a `datasets.Dataset`, or a map-style torch dataset of dicts with a PIL image or its encoded bytes. A
            `datasets.Dataset` with a transform (`set_transform`) is used by what that returns.
        transform: RGB PIL image -> uint8 (3, H, W), random by torch's default CPU generator alone.
        teacher_transform: the teacher's, if its input differs.
        image_column: key of the image.
        label_column: key of an integer label.
        seed: of the augmentation.
        skip_corrupt_images: put the next readable sample, with its own label, in the place of an unreadable one, so
            that batches keep their size. False: raise `CorruptImageError`.

    Raises:
        EmptyDatasetError, MissingColumnError, ImageColumnError, LabelColumnError: here, or at the first sample that
            shows it where the dataset does not know the types of its columns.
        CorruptImageError: on access; with `skip_corrupt_images` only if no sample at all can be read.
    """

    def __init__(
        self,
        dataset: Any,
        transform: Transform,
        *,
        teacher_transform: Transform | None = None,
        image_column: str = "image",
        label_column: str | None = None,
        seed: int = 0,
        skip_corrupt_images: bool = False,
    ):
        if isinstance(dataset, datasets.DatasetDict | datasets.IterableDatasetDict):
            raise TypeError(
                f"Got a {type(dataset).__name__}; pass one of its splits: {', '.join(map(repr, dataset))}."
            )
        if len(dataset) == 0:
            raise EmptyDatasetError("The dataset is empty; expected at least one image. Check its path and split.")
        self.transform, self.teacher_transform = transform, teacher_transform
        self.image_column, self.label_column = image_column, label_column
        self.seed, self.skip_corrupt_images = seed, skip_corrupt_images
        if isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom":
            check_image_feature(dataset.features, image_column)
            if label_column is not None:
                check_label_feature(dataset.features, label_column)
            columns = [name for name in (image_column, label_column) if name is not None]
            dataset = dataset.with_format(None).select_columns(columns)  # other columns would be decoded for nothing
            dataset = dataset.cast_column(image_column, datasets.Image(decode=False))
        self.dataset = dataset
        self._fail_early()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of a dataset of {len(self)} images")
        image, label, corrupt = self._load_readable(index)
        seed = sample_seed(self.seed, epoch, index)
        item = make_views(image, seed, self.transform, self.teacher_transform)
        if label is not None:
            item["labels"] = torch.tensor(label)
        item["corrupt"] = torch.tensor(corrupt)
        return item

    def _load_readable(self, index: int) -> tuple[Image.Image, int | None, bool]:
        """Image and label of the sample, or of the next readable one, and whether it is the next one."""
        first_error = None
        for offset in range(len(self) if self.skip_corrupt_images else 1):
            try:
                return *self._load((index + offset) % len(self)), offset > 0
            except CorruptImageError as error:
                first_error = first_error or error
        if not self.skip_corrupt_images:
            raise first_error
        raise CorruptImageError(f"None of the {len(self)} images can be read. The first error was: {first_error}")

    def _load(self, index: int) -> tuple[Image.Image, int | None]:
        item = self._fetch(index)
        label = None if self.label_column is None else integer_label(item[self.label_column], self.label_column)
        return load_rgb(item[self.image_column], f"Image {index}"), label

    def _fetch(self, index: int) -> Mapping[str, Any]:
        try:
            item = self.dataset[int(index)]
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # a dataset that decodes by itself
            raise corrupt_image(f"Image {index}", None, error) from error
        if not isinstance(item, Mapping):
            raise ImageColumnError(
                f"Item {index} of the dataset is of type {type(item).__name__}; expected a dict with the image under "
                f"{self.image_column!r}. Wrap the dataset so that it returns one."
            )
        check_column(item, self.image_column, "image_column")
        if self.label_column is not None:
            check_column(item, self.label_column, "label_column")
        check_cell(item[self.image_column], f"Column {self.image_column!r}, item {index},")
        return item

    def _fail_early(self) -> None:
        """Looks at one sample, since a torch dataset has no column types; what is unreadable is found on access."""
        try:
            item = self._fetch(0)
        except CorruptImageError:
            return
        if self.label_column is not None:
            integer_label(item[self.label_column], self.label_column)
