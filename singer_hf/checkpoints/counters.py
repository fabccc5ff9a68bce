"""What a run has counted, in its checkpoints: a bound such as `max_nonfinite_steps` holds over resumes too."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from .manifest import CheckpointError

logger = logging.getLogger(__name__)

COUNTERS_FILE = "counters.json"
COUNTERS = ("corrupt_images", "nonfinite_steps")


def save_counters(folder: str | Path, counters: dict[str, int]) -> None:
    """Writes the run's [`COUNTERS`] into a checkpoint."""
    Path(folder, COUNTERS_FILE).write_text(json.dumps(counters), encoding="utf-8")


def load_counters(folder: str | Path) -> dict[str, int]:
    """The [`COUNTERS`] of a checkpoint; zeros, with a warning, of one that was written without.

    Raises:
        CheckpointError: the file cannot be read.
    """
    path = Path(folder, COUNTERS_FILE)
    try:
        counters = json.loads(path.read_text(encoding="utf-8"))
        return {name: int(counters[name]) for name in COUNTERS}
    except FileNotFoundError:
        logger.warning("%s is missing: %s are counted from 0.", path, " and ".join(COUNTERS))
        return dict.fromkeys(COUNTERS, 0)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} does not hold {', '.join(COUNTERS)}: {type(error).__name__}: {error}"
        ) from error
