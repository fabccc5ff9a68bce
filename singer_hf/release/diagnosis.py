"""What `examples/diagnose.py` found of a run's teacher and refinement, for its card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .record import same_model

STATISTICS_PICTURE = "layers.png"
"""The diagnosis' picture of patch norms over depth, which shows no image."""


class DiagnosisError(ValueError):
    """A folder without a diagnosis, or with that of other models."""


@dataclass(frozen=True)
class RefinedBlock:
    """Patch norms of one refined block, before and after, as they are shown."""

    layer: int
    median_before: str
    median_after: str
    peak_before: str
    peak_after: str


@dataclass(frozen=True)
class CardDiagnosis:
    """The teacher's diagnosis in a sentence, and its refined blocks."""

    sentence: str
    rows: tuple[RefinedBlock, ...]
    images: int


def card_diagnosis(folder: str | Path, run: str | Path, teacher: str | None) -> CardDiagnosis:
    """Reads `diagnosis.json`.

    Args:
        folder: output of examples/diagnose.py with `--run`.
        run: the run's folder, whose refinement is shown.
        teacher: its name in the run's record.

    Raises:
        DiagnosisError: no such file; the diagnosis of another teacher.
    """
    path = Path(folder, "diagnosis.json")
    try:
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        diagnosed, runs = found["config"]["model"], found["config"].get("run") or []
        sentence, images = found["recommendation"]["sentence"], found["teacher"]["images"]
        refinements = found["refinements"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DiagnosisError(f"{path} cannot be read as a diagnosis: {error!r}") from error
    if not same_model(diagnosed, teacher):
        raise DiagnosisError(f"{path} is of {diagnosed}, but the teacher of {run} is {teacher}: diagnose that one.")
    names = [name for name in runs if same_model(name, str(run))]
    refined = refinements.get(Path(names[0]).resolve().name, []) if names else []
    return CardDiagnosis(sentence, tuple(_row(block) for block in refined), images)


def _row(block: Mapping[str, Any]) -> RefinedBlock:
    norms, peak = block["norms"], block["peak_to_median"]
    return RefinedBlock(
        block["layer"],
        f"{norms['before']['median']:.3g}",
        f"{norms['after']['median']:.3g}",
        f"{peak['before']:.2f}",
        f"{peak['after']:.2f}",
    )
