"""Images in: loading, columns, augmentation by sample, the order of samples, pixel normalisation.

An image goes `load_images` -> [`DistillationDataset`] (decoding, views) -> DataLoader with [`EpochSampler`] ->
[`PixelNormalization`] on the device.
"""

from .columns import find_image_column, find_label_column
from .dataset import DistillationDataset
from .errors import (
    CorruptImageError,
    DataError,
    DataSourceError,
    EmptyDatasetError,
    ImageColumnError,
    LabelColumnError,
    MissingColumnError,
)
from .loading import in_memory, load_images, split_names
from .normalization import PixelNormalization
from .pipeline import DataPipeline
from .processors import find_processor, input_size, processor_for, processor_to_save
from .sampler import EpochSampler
from .seeding import sample_seed, seeded
from .streaming import StreamingDistillationDataset
from .training_stream import TrainingStream
from .transforms import eval_transform, train_transform

__all__ = [
    "CorruptImageError",
    "DataError",
    "DataPipeline",
    "DataSourceError",
    "DistillationDataset",
    "EmptyDatasetError",
    "EpochSampler",
    "ImageColumnError",
    "LabelColumnError",
    "MissingColumnError",
    "PixelNormalization",
    "StreamingDistillationDataset",
    "TrainingStream",
    "eval_transform",
    "find_image_column",
    "find_label_column",
    "find_processor",
    "in_memory",
    "input_size",
    "load_images",
    "processor_for",
    "processor_to_save",
    "sample_seed",
    "seeded",
    "split_names",
    "train_transform",
]
