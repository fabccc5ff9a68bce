"""Images in batches, as a model takes them: one pass over a dataset, and a few to look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ..data import (
    DistillationDataset,
    PixelNormalization,
    StreamingDistillationDataset,
    eval_transform,
    find_image_column,
    input_size,
    processor_for,
)


@dataclass(frozen=True)
class ModelInput:
    """What a model takes: its image processor's size, and pixels normalised as that says.

    Args:
        size: (height, width).
        normalization: from uint8 pixels.
    """

    size: tuple[int, int]
    normalization: PixelNormalization

    @classmethod
    def of_processor(cls, processor: Any, image_size: int | None = None) -> ModelInput:
        """By an image processor; `image_size`: another side of the square input."""
        if image_size is not None:
            processor = processor_for(processor, size=(image_size, image_size))
        return cls(input_size(processor), PixelNormalization.from_image_processor(processor))


@dataclass
class ImageBatches:
    """A dataset as batches of one or two models' pixels; every iteration is one pass, in the same order.

    An image goes through the paper's test protocol (resized to cover, centre crop), so images may differ in size.

    Args:
        dataset: a split of a `datasets` dataset, or a stream of one.
        teacher: the teacher's input.
        student: the student's; default: the teacher's own.
        image_column: default: the column of images, where there is one.
        batch_size: images a forward pass.
        num_workers: processes that decode.
        device: where batches go.
        skip_corrupt_images: leave out what cannot be decoded; else the first such image stops the pass.
    """

    dataset: Any
    teacher: ModelInput
    student: ModelInput | None = None
    image_column: str | None = None
    batch_size: int = 32
    num_workers: int = 0
    device: torch.device | str = "cpu"
    skip_corrupt_images: bool = False

    def __post_init__(self):
        column = self.image_column or find_image_column(self.dataset)
        student = self.student or self.teacher
        same = student.size == self.teacher.size
        options = {
            "transform": eval_transform(student.size),
            "teacher_transform": None if same else eval_transform(self.teacher.size),
            "image_column": column,
            "skip_corrupt_images": self.skip_corrupt_images,
        }
        is_stream = isinstance(self.dataset, datasets.IterableDataset)
        self._views = (StreamingDistillationDataset if is_stream else DistillationDataset)(self.dataset, **options)

    @property
    def count(self) -> int | None:
        """How many images there are; `None` of a stream, which does not say."""
        return None if isinstance(self._views, StreamingDistillationDataset) else len(self._views)

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(teacher's, student's) normalised pixels of each batch, (B, 3, H, W) each."""
        student = self.student or self.teacher
        for own, other in self._raw_pairs(self._views):
            own, other = own.to(self.device), other.to(self.device)
            yield self.teacher.normalization(own), student.normalization(other)

    def __iter__(self) -> Iterator[Tensor]:
        """The teacher's normalised pixels of each batch, (B, 3, H, W)."""
        for pixels, _ in self.pairs():
            yield pixels

    def sample(self, count: int) -> ImageSample:
        """`count` images, evenly spaced (of a stream the first; all, where there are fewer), in memory as uint8."""
        views = self._views
        if not isinstance(views, StreamingDistillationDataset) and len(views) > count:
            views = Subset(views, [index * len(views) // count for index in range(count)])
        teacher, student, seen = [], [], 0
        for own, other in self._raw_pairs(views):
            teacher.append(own)
            student.append(other)
            seen += len(own)
            if seen >= count:
                break
        return ImageSample(torch.cat(teacher)[:count], torch.cat(student)[:count], self.teacher, self.student)

    def _raw_pairs(self, views: Dataset) -> Iterator[tuple[Tensor, Tensor]]:
        """uint8 pixels of both models' views."""
        for batch in DataLoader(views, batch_size=self.batch_size, num_workers=self.num_workers):
            if self.skip_corrupt_images and not isinstance(self._views, StreamingDistillationDataset):
                batch = {name: values[~batch["corrupt"]] for name, values in batch.items()}  # stand-ins
            if len(batch["pixel_values"]):
                yield batch.get("teacher_pixel_values", batch["pixel_values"]), batch["pixel_values"]


@dataclass(frozen=True)
class ImageSample:
    """A few images in memory.

    Args:
        teacher_view, student_view: (images, 3, H, W) uint8.
        teacher, student: how each model takes them; the student's default is the teacher's.
    """

    teacher_view: Tensor
    student_view: Tensor
    teacher: ModelInput
    student: ModelInput | None = None

    def __len__(self) -> int:
        return len(self.teacher_view)

    def select(self, indices: Sequence[int]) -> ImageSample:
        """Some of the images."""
        return replace(
            self, teacher_view=self.teacher_view[list(indices)], student_view=self.student_view[list(indices)]
        )

    @property
    def teacher_pixels(self) -> Tensor:
        """(images, 3, H, W), normalised for the teacher."""
        return self.teacher.normalization(self.teacher_view)

    @property
    def student_pixels(self) -> Tensor:
        """(images, 3, H, W), normalised for the student."""
        return (self.student or self.teacher).normalization(self.student_view)

    def pictures(self) -> np.ndarray:
        """(images, H, W, 3) uint8, as the teacher sees them."""
        return self.teacher_view.permute(0, 2, 3, 1).numpy()
