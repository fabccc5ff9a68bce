"""What an evaluation writes: one JSON file a model and task."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..checkpoints.sealed import unsealed, write_sealed

SCHEMA = 1
"""Raised when a field changes its meaning."""


class ResultError(ValueError):
    """A file that is no result of ours."""


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of one model on one task, with all that is needed to get them again.

    Args:
        model: name, revision, fingerprint of the weights, parameters, and which feature was used.
        task: every field of the [`Task`], and fingerprints and sizes of its splits.
        protocol: every field of the [`Protocol`], and how the head was chosen.
        hyperparameters: of the head that is reported.
        scores: by name; accuracies, IoU and δ1 from 0 to 1, depth errors in metres.
        main_score: the one that stands in tables.
        seed: of validation split, order and views.
        seconds: wall time: features, head, whole.
        environment: versions, processes, device.
        schema: of this file.
    """

    model: dict[str, Any]
    task: dict[str, Any]
    protocol: dict[str, Any]
    hyperparameters: dict[str, Any]
    scores: dict[str, Any]
    main_score: str
    seed: int
    seconds: dict[str, float]
    environment: dict[str, Any]
    schema: int = SCHEMA

    def __post_init__(self):
        for field in fields(self):  # as they come back from a file: lists for tuples, strings for keys
            object.__setattr__(self, field.name, json.loads(json.dumps(getattr(self, field.name))))

    @property
    def value(self) -> float:
        """The main score."""
        return self.scores[self.main_score]

    def save(self, path: str | Path) -> None:
        """Writes the file, whole or not at all."""
        write_sealed(Path(path), asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> EvaluationResult:
        """Raises ResultError for anything but a result of this schema."""
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ResultError(f"{path} cannot be read as a result: {error}") from error
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            raise ResultError(f"{path} is no evaluation result of schema {SCHEMA}.")
        try:
            result = cls(**unsealed(record))
            if not isinstance(result.value, float | int):
                raise TypeError(f"its main score is {result.value!r}")
        except (ValueError, TypeError, KeyError) as error:
            raise ResultError(f"{path} is no evaluation result: {error}") from error
        return result


def find_results(paths: list[str | Path]) -> list[EvaluationResult]:
    """Results from files, and from all result files in folders and below.

    Raises:
        ResultError: nothing there; a file that was named is none; a result that is damaged.
    """
    results = []
    for path in map(Path, paths):
        results += results_in(path) if path.is_dir() else [EvaluationResult.load(path)]
    if not results:
        raise ResultError(f"No evaluation results in {', '.join(map(str, paths))}.")
    return results


def results_in(folder: str | Path) -> list[EvaluationResult]:
    """All result files in a folder and below; raises ResultError for one that is damaged."""
    files = sorted(Path(folder).rglob("*.json"))
    # Other JSON files may lie there: configurations, metrics.
    return [EvaluationResult.load(file) for file in files if b'"main_score"' in file.read_bytes()]
