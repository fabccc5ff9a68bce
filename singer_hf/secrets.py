"""Access tokens stay out of everything that is written or published."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}")
"""What the Hub's access tokens look like; they have 34 characters behind the underscore today."""

_SECRET_NAME = re.compile(r"(^|_)(token|api_key|password|secret)$", re.IGNORECASE)
_LEFT_OUT = "<left out>"


class SecretFound(ValueError):
    """A file that is about to be published holds an access token."""


def without_tokens(value: Any) -> Any:
    """A copy of JSON-like content in which nothing that is, or is named, a token is left, however deep it lies."""
    if isinstance(value, Mapping):
        return {
            key: _LEFT_OUT if _SECRET_NAME.search(str(key)) and inner is not None else without_tokens(inner)
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [without_tokens(inner) for inner in value]
    return redacted(value) if isinstance(value, str) else value


def redacted(text: str, tokens: Iterable[str | None] = ()) -> str:
    """A text without these tokens, and without anything that looks like one of the Hub's."""
    for token in tokens:
        if token:
            text = text.replace(token, _LEFT_OUT)
    return TOKEN.sub(_LEFT_OUT, text)


def check_no_tokens(files: Iterable[Path], tokens: Iterable[str | None] = ()) -> None:
    """Raises SecretFound where a file holds one of these tokens, or a text file anything that looks like one."""
    known = [token.encode() for token in tokens if token]
    for path in files:
        content = path.read_bytes() if path.suffix in _TEXT or path.stat().st_size < 2**20 else b""
        looks_like_one = path.suffix in _TEXT and TOKEN.search(content.decode(errors="replace"))
        if looks_like_one or any(token in content for token in known):
            raise SecretFound(f"{path.name} holds an access token: take it out, and revoke it if it was ever shared.")


_TEXT = {".json", ".md", ".txt", ".yaml", ".yml", ".csv", ".html"}
