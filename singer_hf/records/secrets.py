"""Access tokens stay out of everything that is written or published."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}")
"""What the Hub's access tokens look like; they have 34 characters behind the underscore today."""

_SECRET_NAME = re.compile(r"(^|_)(token|api_key|password|secret)$", re.IGNORECASE)
_IN_ADDRESS = re.compile(
    r"(?P<before>\b[a-z][a-z0-9+.-]*://[^/\s:@]*:|\bhttps?://)[^/\s@]+(?=@)"  # user:password@, and token@ of the web
    r"|(?P<name>[?&;][\w.-]*(?:token|api_?key|access_?key|password|secret|signature|credential|sig)=)[^&;#\s]+",
    re.IGNORECASE,
)
LEFT_OUT = "<left out>"
"""Stands in the place of a token."""


class SecretFound(ValueError):
    """A file that is about to be published holds an access token."""


def without_tokens(value: Any) -> Any:
    """A copy of JSON-like content in which nothing that is, or is named, a token is left, however deep it lies."""
    if isinstance(value, Mapping):
        return {
            key: LEFT_OUT if _SECRET_NAME.search(str(key)) and inner is not None else without_tokens(inner)
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [without_tokens(inner) for inner in value]
    return redacted(value) if isinstance(value, str) else value


def redacted(text: str, tokens: Iterable[str | None] = ()) -> str:
    """A text without these tokens, and without what looks like one of the Hub's or stands as one in an address.

    In an address those are `user:token@` (of the web also `token@`), and values of parameters by such names.
    """
    for token in tokens:
        if token:
            text = text.replace(token, LEFT_OUT)
    text = _IN_ADDRESS.sub(lambda found: (found["before"] or found["name"]) + LEFT_OUT, text)
    return TOKEN.sub(LEFT_OUT, text)


def check_no_tokens(files: Iterable[Path], tokens: Iterable[str | None] = ()) -> None:
    """Raises SecretFound where a file holds one of these tokens, or a text file anything that looks like one."""
    known = [token.encode() for token in tokens if token]
    for path in files:
        content = path.read_bytes() if path.suffix in _TEXT or path.stat().st_size < 2**20 else b""
        looks_like_one = path.suffix in _TEXT and TOKEN.search(content.decode(errors="replace"))
        if looks_like_one or any(token in content for token in known):
            raise SecretFound(f"{path.name} holds an access token: take it out, and revoke it if it was ever shared.")


_TEXT = {".json", ".md", ".txt", ".yaml", ".yml", ".csv", ".html"}
