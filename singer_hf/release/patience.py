"""Calls of the Hub, tried again where it is busy or the connection breaks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TypeVar

from huggingface_hub.errors import HTTPError

from ..records.secrets import redacted

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds between attempts, where the Hub does not say how long to wait."""
LONGEST_WAIT = 300.0
"""Seconds; who is told to wait longer is told so instead."""

_RETRIED = (408, 429, 500, 502, 503, 504)


def patiently(call: Callable[[], Result], tokens: Iterable[str | None] = ()) -> Result:
    """The result of a call, tried again where the Hub is busy or the connection breaks.

    Args:
        call: may be made again.
        tokens: that stay out of the log, whatever the server says.
    """
    for wait in (*WAITS, None):
        try:
            return call()
        except (HTTPError, OSError) as error:
            delay = _delay(error, wait)
            if delay is None:
                raise
            logger.warning("%s: trying again in %g s.", reason(error, tokens), delay)
            time.sleep(delay)
    raise AssertionError("unreachable: the last attempt returns or raises")


def _delay(error: Exception, wait: float | None) -> float | None:
    """Seconds until the next attempt, `None` for no other."""
    response = getattr(error, "response", None)
    if wait is None or (response is None and not isinstance(error, HTTPError)):
        return None
    if response is None:
        return wait
    if response.status_code not in _RETRIED:
        return None
    asked = retry_after(response.headers.get("Retry-After"))
    if asked is not None and asked > LONGEST_WAIT:
        return None
    return wait if asked is None else max(asked, 0.0)


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, which it gives as such or as a date."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return (date - datetime.now(timezone.utc)).total_seconds()


def reason(error: Exception, tokens: Iterable[str | None] = ()) -> str:
    """The server's own words, else the error's first line."""
    said = getattr(error, "server_message", None) or str(error)
    return redacted(" ".join((said.strip() or type(error).__name__).splitlines()[0].split()).rstrip("."), tokens)
