"""What can be wrong with image data.

Every class takes one string: torch re-raises an error of a DataLoader worker as `type(error)(message)`.
"""


class DataError(ValueError):
    """Base class: the data cannot be used as asked."""


class DataSourceError(DataError):
    """A path, glob, Hub id or split that does not exist or holds no images."""


class MissingColumnError(DataError):
    """A column that the dataset lacks, or a choice of columns that is not unique."""


class ImageColumnError(DataError):
    """A column whose values are no images."""


class LabelColumnError(DataError):
    """A column whose values are no integer labels."""


class EmptyDatasetError(DataError):
    """A dataset without samples."""


class CorruptImageError(DataError):
    """An image that cannot be read or decoded."""


class DataWorkerError(RuntimeError):
    """A process that decodes images ended on its own."""


def without_worker_trace(error: DataError) -> DataError:
    """The same error without the worker's traceback that torch puts into its message."""
    return type(error)(str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].strip())
