"""What a run's arguments say about images: both models' image processors, and datasets of the views they get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets
import torch
from torch import nn

from .columns import find_image_column
from .dataset import DistillationDataset
from .normalization import PixelNormalization
from .processors import find_processor, input_size, processor_for, processor_to_save
from .retry import Retries
from .streaming import StreamingDistillationDataset
from .training_stream import Dealing, TrainingStream
from .transforms import eval_transform, train_transform

if TYPE_CHECKING:
    from ..arguments import DistillationArguments


@dataclass(frozen=True)
class DataPipeline:
    """From a user's datasets to what a [`Distiller`] takes.

    Args:
        args: size, normalisation, augmentation, columns.
        student_processor: as it is saved with the student.
        teacher_processor: the teacher's, adjusted to the arguments.
    """

    args: DistillationArguments
    student_processor: Any
    teacher_processor: Any

    @classmethod
    def of_models(
        cls,
        student: nn.Module,
        teacher: nn.Module,
        args: DistillationArguments,
        *,
        student_processor: Any = None,
        teacher_processor: Any = None,
    ) -> DataPipeline:
        """With the processors given, else those in the models' repositories; one model's serves the other's lack.

        Raises:
            ValueError: there is none.
        """
        teacher_processor = teacher_processor or _own_processor(teacher)
        student_processor = student_processor or _own_processor(student) or teacher_processor
        teacher_processor = teacher_processor or student_processor
        if teacher_processor is None:
            raise ValueError(
                "Neither model comes with an image processor: pass teacher_processing_class (and processing_class for "
                "the student, where it differs)."
            )
        student_processor = processor_to_save(_adjusted(student_processor, args), student.config)
        return cls(args, student_processor, _adjusted(teacher_processor, args))

    @property
    def student_size(self) -> tuple[int, int]:
        """(height, width) of the student's input."""
        return input_size(self.student_processor)

    @property
    def teacher_size(self) -> tuple[int, int]:
        """(height, width) of the teacher's input."""
        return input_size(self.teacher_processor)

    @property
    def student_normalization(self) -> PixelNormalization:
        return PixelNormalization.from_image_processor(self.student_processor)

    @property
    def teacher_normalization(self) -> PixelNormalization:
        return PixelNormalization.from_image_processor(self.teacher_processor)

    def training(self, dataset: Any) -> DistillationDataset | TrainingStream | None:
        """Augmented views of a map-style dataset or of a stream.

        Raises:
            ValueError: a column that is not there, no images, fewer than one batch, or an option that streams lack.
        """
        if dataset is None:
            return None
        args = self.args
        options = self._views(train_transform, min_scale=args.min_crop_scale, flip=args.flip_probability) | {
            "image_column": self._image_column(dataset),
            "seed": args.data_seed if args.data_seed is not None else args.seed,
            "skip_corrupt_images": args.skip_corrupt_images,
        }
        if isinstance(dataset, torch.utils.data.IterableDataset):
            if args.auto_find_batch_size:
                raise ValueError(
                    "auto_find_batch_size changes the batch by which a stream is dealt out: with streamed data set "
                    "per_device_train_batch_size to what fits, and leave it False."
                )
            views = StreamingDistillationDataset(dataset, shuffle_buffer_size=args.shuffle_buffer_size, **options)
            dealing = Dealing(args.train_batch_size, args.process_index, args.world_size, args.stream_split)
            stream = TrainingStream(views, dealing, Retries(args.data_retries, timeout=args.data_timeout))
            stream.require_even_shares(args.dataloader_num_workers)
            return stream
        images = DistillationDataset(dataset, **options)
        batch = args.train_batch_size * args.world_size
        if args.dataloader_drop_last and len(images) < batch:
            raise ValueError(
                f"{len(images)} training images do not fill one batch of {batch}: lower per_device_train_batch_size."
            )
        return images

    def evaluation(self, dataset: Any) -> DistillationDataset | dict[str, DistillationDataset] | None:
        """Resized views of a map-style dataset, or of each of several by name. What is one already stays as it is."""
        if dataset is None or isinstance(dataset, DistillationDataset):
            return dataset
        if isinstance(dataset, dict):
            return {name: self.evaluation(part) for name, part in dataset.items()}
        if isinstance(dataset, torch.utils.data.IterableDataset):
            raise ValueError(
                "Evaluation needs a fixed set of images: take one from the stream, e.g. "
                "datasets.Dataset.from_list(list(stream.take(1000)))."
            )
        return DistillationDataset(
            dataset,
            **self._views(eval_transform),
            image_column=self._image_column(dataset),
            label_column=self.args.label_column,
            seed=self.args.seed,
            skip_corrupt_images=self.args.skip_corrupt_images,
        )

    def _views(self, transform: Any, **options: Any) -> dict[str, Any]:
        same = self.teacher_size == self.student_size
        return {
            "transform": transform(self.student_size, **options),
            "teacher_transform": None if same else transform(self.teacher_size, **options),
        }

    def _image_column(self, dataset: Any) -> str:
        # A dataset with a transform of its own is used by what that returns, of which its features say nothing.
        transformed = isinstance(dataset, datasets.Dataset) and dataset.format["type"] == "custom"
        if self.args.image_column is None and not transformed and getattr(dataset, "features", None) is not None:
            return find_image_column(dataset)
        return self.args.image_column or "image"


def _own_processor(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    name = getattr(config, "name_or_path", "")
    return find_processor(name, config) if name else None


def _adjusted(processor: Any, args: DistillationArguments) -> Any:
    size = None if args.image_size is None else (args.image_size, args.image_size)
    normalization = PixelNormalization.imagenet() if args.normalization == "imagenet" else None
    return processor_for(processor, size=size, normalization=normalization)
