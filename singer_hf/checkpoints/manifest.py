"""A folder that is whole: a manifest of its files, and publication of the folder under its name in one step.

A folder is written somewhere else first. Then every file is flushed to the disk, `manifest.json` with each file's size
and SHA-256 is written last, and the folder is renamed. So whatever bears the final name was complete once, and a file
that was cut or changed since is found by name.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
_FORMAT = 1
_TRAINER_STATE = "trainer_state.json"  # listed of a checkpoint, and not of a finished student


class CheckpointError(RuntimeError):
    """A checkpoint that does not hold what the run needs, or that cannot be written."""


class IncompleteCheckpointError(CheckpointError):
    """A folder without a manifest: its writing was never finished, or it was not written by this package."""


class DamagedCheckpointError(CheckpointError):
    """A file is missing, cut or changed since it was written; the message names it."""


def write_manifest(folder: str | Path, paths: Iterable[Path] | None = None) -> None:
    """Flushes files to the disk, then writes their sizes and SHA-256 into the folder's manifest.

    Args:
        folder: gets the manifest.
        paths: files in it; default: all in it and below.
    """
    folder = Path(folder)
    paths = folder.rglob("*") if paths is None else paths
    paths = sorted(path for path in paths if path.is_file() and path != folder / MANIFEST)
    files = {path.relative_to(folder).as_posix(): _entry(path, flush=True) for path in paths}
    part = folder / f"{MANIFEST}.part"
    with open(part, "w", encoding="utf-8") as file:
        json.dump({"format": _FORMAT, "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / MANIFEST)
    for path in {folder, *(path.parent for path in paths)}:
        _flush_folder(path)


def verify_if_listed(folder: str | Path) -> bool:
    """[`verify_manifest`] of a local folder that has a manifest; whether it has one.

    Raises:
        DamagedCheckpointError: as of [`verify_manifest`].
    """
    listed = (Path(folder) / MANIFEST).is_file()
    if listed:
        verify_manifest(folder)
    return listed


def verify_manifest(folder: str | Path) -> None:
    """Compares a folder with its manifest, byte for byte; files that it does not name are nobody's business.

    Raises:
        IncompleteCheckpointError: there is no manifest.
        DamagedCheckpointError: the manifest or a file cannot be read, or a file is not what it says.
    """
    folder = Path(folder)
    files = _read_manifest(folder)
    for name, entry in files.items():
        path = folder / name
        try:
            damage = _damage(path, entry)
        except OSError as error:  # a failing disk, or no right to read
            damage = f"cannot be read: {error}"
        if damage:
            raise DamagedCheckpointError(f"{path} {damage}. {_on_purpose(files)}")


def _damage(path: Path, entry: dict[str, Any]) -> str | None:
    if not path.is_file():
        return f"is missing, but {MANIFEST} lists it"
    size = path.stat().st_size
    if size != entry["size"]:
        return f"has {size} bytes, where {MANIFEST} says {entry['size']}"
    if _entry(path)["sha256"] != entry["sha256"]:
        return f"is damaged: its SHA-256 is not the one in {MANIFEST}"
    return None


def _on_purpose(files: Iterable[str]) -> str:
    if _TRAINER_STATE not in files:
        return f"If you changed this folder on purpose, delete {MANIFEST} there."
    return (
        "A checkpoint is resumed as it was written or not at all. If you changed its student on purpose, copy the "
        f"folder and delete {MANIFEST} in the copy."
    )


def publish(staging: str | Path, final: str | Path) -> None:
    """Makes `staging` durable and whole, then gives it the name `final`; a folder of that name goes.

    A process that dies before the rename leaves `final` as it was; [`finish_publication`] ends what it began.
    """
    staging, final = Path(staging), Path(final)
    write_manifest(staging)
    if final.exists():
        shutil.rmtree(final)
    os.rename(staging, final)
    _flush_folder(final.parent)


def finish_publication(staging_root: str | Path, target: str | Path) -> None:
    """Of what a dead process left in `staging_root`, moves whole folders into `target` and deletes the rest."""
    staging_root, target = Path(staging_root), Path(target)
    if not staging_root.is_dir():
        return
    for folder in sorted(staging_root.iterdir()):
        try:
            verify_manifest(folder)
        except CheckpointError:
            continue
        final = target / folder.name
        if final.exists():
            shutil.rmtree(final)
        os.rename(folder, final)
    shutil.rmtree(staging_root)
    _flush_folder(target)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error of whichever library says that there is no room left (or that a quota or limit is reached)."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        # safetensors gives the system's words; torch.save writes through C++, whose error has neither number nor word.
        words = ("No space left", "quota exceeded", "File too large", "PytorchStreamWriter", "inline_container")
        if any(word in str(error) for word in words):
            return True
        error = error.__cause__ or error.__context__
    return False


def _read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / MANIFEST
    try:
        if not path.is_file():
            raise IncompleteCheckpointError(
                f"{folder} has no {MANIFEST}: its writing was never finished, or it was not written by this version."
            )
        record = json.loads(path.read_text(encoding="utf-8"))
        files = record["files"]
        if record["format"] != _FORMAT:
            raise ValueError(f"format {record['format']!r}, expected {_FORMAT}")
        if not files:
            raise ValueError("it lists no files")
        for name, entry in files.items():
            if type(entry["size"]) is not int or type(entry["sha256"]) is not str:
                raise ValueError(f"the entry of {name!r} is {entry!r}")
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"{name!r} leaves the folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpointError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    return files


def _entry(path: Path, *, flush: bool = False) -> dict[str, Any]:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        if flush:
            os.fsync(file.fileno())
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        return {"size": file.tell(), "sha256": digest.hexdigest()}


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
