"""JSON records with a checksum of their own content, so that a changed figure in one is found."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

SEAL = "sha256"
"""Field of the checksum."""


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """The record, as JSON gives it back, with the SHA-256 of its content."""
    record = json.loads(json.dumps(record, allow_nan=False))
    return record | {SEAL: _digest(record)}


def write_sealed(path: Path, record: dict[str, Any]) -> None:
    """Writes a record with its checksum, whole or not at all; the folder is created where missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(sealed(record), indent=2) + "\n", encoding="utf-8")
    part.replace(path)


def unsealed(record: dict[str, Any]) -> dict[str, Any]:
    """The record without its checksum, compared where there is one (records of other versions have none).

    Raises:
        ValueError: the content is not what the checksum says.
    """
    content = {name: value for name, value in record.items() if name != SEAL}
    if SEAL in record and record[SEAL] != _digest(content):
        raise ValueError(
            "it was changed since it was written: its sha256 is not that of its content. Make it again; whoever "
            "changed it on purpose leaves sha256 out."
        )
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
