"""Worker processes of a DataLoader that end, hang, or meet data that cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import DataError, DataWorkerError, without_worker_trace


@contextmanager
def worker_advice() -> Iterator[None]:
    """Within, the error that torch raises for a worker that died is a [`DataWorkerError`], with what to do.

    A [`DataError`] comes without the worker's traceback.
    """
    try:
        yield
    except DataError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise without_worker_trace(error) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) or isinstance(error, DataWorkerError):
            raise
        raise DataWorkerError(
            f"{error} Often the system ended it for want of memory: lower dataloader_num_workers or "
            "dataloader_prefetch_factor (or raise the limit of /dev/shm in a container). The newest checkpoint is "
            "whole: go on with resume_from_checkpoint=True."
        ) from error
