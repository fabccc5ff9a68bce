"""Text from outside in a card: names of models, data and labels may hold anything, and stay what they are."""

from __future__ import annotations

import re
from typing import Any

_ANYWHERE = re.compile(r"[\\`*{}\[\]<>&|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_AT_START = re.compile(r"^(?=[-+=](\s|[-+=]|$)|[#!:]|\d+[.)](\s|$))")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u0085\u2028\u2029]+")


class Markdown(str):
    """Text that is Markdown already, of which nothing is escaped."""


def escaped(value: Any) -> Markdown:
    """One line of plain text: no character of it means anything in Markdown, HTML or a table.

    Characters that could are written as HTML entities, which no renderer reads as syntax.
    """
    if isinstance(value, Markdown):
        return value
    line = _CONTROL.sub(" ", str(value)).strip()
    line = _ANYWHERE.sub(lambda found: f"&#{ord(found[0])};", line)
    return Markdown(_AT_START.sub("&#8203;", line))


def code(value: Any) -> Markdown:
    """One line in a code span, also within a table; what cannot stand in one is escaped as text."""
    line = _CONTROL.sub(" ", str(value)).strip()
    if not line or any(character in line for character in "`|\\<"):
        return Markdown(f"<code>{escaped(line)}</code>")
    return Markdown(f"`{line}`")
