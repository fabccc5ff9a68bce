"""A data source that fails or stalls for a while: opened again where it was, a bounded number of times."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from .errors import DataError, DataSourceError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_CLIENTS = {"aiohttp", "httpx", "httpx2", "requests", "urllib3", "botocore"}
"""Packages that read a source for datasets and fsspec. By name, since which of them is installed differs."""
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_LONGEST_WAIT = 60.0


@dataclass(frozen=True)
class Retries:
    """How long a data source is believed to come back.

    Args:
        count: times in a row that it is opened again; what it newly gives in between starts the count anew.
        first_wait: seconds before the first time; doubled each time, at most a minute.
        timeout: seconds without an answer after which it counts as failed; 0: wait for ever.
    """

    count: int = 5
    first_wait: float = 1.0
    timeout: float = 600.0


def reopening(open_source: Callable[[], Iterator[T]], retries: Retries) -> Iterator[T]:
    """What `open_source()` yields, whole and in order, also when it fails on the way.

    Args:
        open_source: the source from its beginning; the same items each time.
        retries: the limits.

    Raises:
        DataSourceError: it failed or stalled once more than `retries.count` times in a row, or with an error that no
            waiting will mend: a missing or damaged file.
    """
    position, failures = 0, 0
    while True:
        try:
            # What was given before is read again item by item: each is an answer to the timeout, none is progress.
            for number, item in enumerate(_watched(open_source(), retries.timeout)):
                if number == position:
                    yield item
                    position, failures = position + 1, 0
            return
        except DataError:
            raise
        except Exception as error:  # whatever the readers of parquet, tar and image files raise
            cause = f"{type(error).__name__}: {error}"
            if not _may_pass(error):
                raise DataSourceError(f"The data source cannot be read: {cause}") from error
            failures += 1
            if failures > retries.count:
                raise DataSourceError(
                    f"The data source failed {failures} times in a row, the last time with {cause}. Check network "
                    "and disk, or allow more by data_retries and data_timeout; then resume from the last checkpoint."
                ) from error
            wait = min(retries.first_wait * 2 ** (failures - 1), _LONGEST_WAIT)
            logger.warning(
                "The data source failed (%s); opening it again in %g s (%d of %d).",
                cause, wait, failures, retries.count,
            )  # fmt: skip
            time.sleep(wait)


def _may_pass(error: Exception) -> bool:
    if isinstance(error, _LASTING):
        return False
    clients = {base.__module__.split(".")[0] for base in type(error).__mro__} & _CLIENTS
    return bool(clients) or isinstance(error, OSError | TimeoutError)


def _watched(source: Iterator[T], timeout: float) -> Iterator[T]:
    """The source, read in a thread of its own; TimeoutError where it gives nothing for `timeout` seconds.

    A stalled read cannot be ended from outside: its thread is left behind, and does not keep the process alive.
    """
    if not timeout:
        yield from source
        return
    wanted: queue.Queue[bool] = queue.Queue()
    answers: queue.Queue[tuple[str, Any]] = queue.Queue()

    def read() -> None:
        while wanted.get():
            try:
                answers.put(("item", next(source)))
            except StopIteration:
                answers.put(("end", None))
            except BaseException as error:  # raised again where it was asked for
                answers.put(("error", error))

    threading.Thread(target=read, daemon=True, name="data source").start()
    try:
        while True:
            wanted.put(True)
            try:
                kind, value = answers.get(timeout=timeout)
            except queue.Empty:
                raise TimeoutError(f"no answer for {timeout:g} s") from None
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        wanted.put(False)
