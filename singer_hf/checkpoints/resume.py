"""Which checkpoint a run goes on from: the newest that is whole."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from .manifest import CheckpointError, DamagedCheckpointError, IncompleteCheckpointError, verify_manifest

logger = logging.getLogger(__name__)


def find_checkpoints(output_dir: str | Path) -> list[Path]:
    """Folders `checkpoint-<step>` of a run, the newest first."""
    found = {}
    for path in Path(output_dir).glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if match and path.is_dir():
            found[int(match[1])] = path
    return [found[step] for step in sorted(found, reverse=True)]


def choose_checkpoint(resume: str | bool, output_dir: str | Path, *, fallback: bool = False) -> Path:
    """The checkpoint to resume, verified file by file against its manifest.

    Folders without a manifest were never finished: they are passed over, with a warning, in the search for the newest.
    A damaged one is an error, so that nobody loses steps without knowing.

    Args:
        resume: True for the newest in `output_dir`, else a folder.
        output_dir: of the run.
        fallback: take the newest checkpoint that is whole where the wanted one is damaged or not finished; a warning
            says so.

    Raises:
        DamagedCheckpointError: the newest, or the folder that was named, is damaged, and there is no `fallback`.
        CheckpointError: there is none to resume.
    """
    candidates = find_checkpoints(output_dir)
    if resume is not True:
        wanted = Path(resume)
        if not wanted.is_dir():
            raise CheckpointError(f"There is no checkpoint folder {wanted}.")
        candidates = [wanted] + [path for path in candidates if path.resolve() != wanted.resolve()]
    rejected = []
    for path in candidates:
        try:
            verify_manifest(path)
        except IncompleteCheckpointError as error:
            if resume is not True and not fallback:
                raise
            logger.warning("Passed over: %s", error)
            rejected.append(str(error))
        except DamagedCheckpointError as error:
            if not fallback:
                raise DamagedCheckpointError(
                    f"{error} Set resume_fallback=True (--resume_fallback true) to go on from the newest checkpoint "
                    "that is whole, or name another folder."
                ) from error
            logger.warning("Passed over: %s", error)
            rejected.append(str(error))
        else:
            if rejected:
                logger.warning("Resuming from %s, the newest checkpoint that is whole.", path)
            return path
    raise CheckpointError(f"No checkpoint in {output_dir} can be resumed. {' '.join(rejected) or 'There is none.'}")
