"""A grid of the study: one YAML file, one cell for every (teacher, recipe, seed)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

OWN_OBJECTIVES = LABELS, UNTRAINED, TEACHER = "labels", "untrained", "teacher"
"""What a recipe's `objective` may be beside the package's own: a student from scratch on labels, one with its first
weights, and the teacher itself, whose scores bound what a student can have."""


@dataclass(frozen=True)
class Cell:
    """One student.

    Args:
        teacher: a name in the grid's `teachers`.
        recipe: a name in the grid's `recipes`.
        options: of [`DistillationArguments`], the adapter's (`lora_r`, `init_lora_weights`, `fold_layer_norm`,
            `adapter_start` of `STARTS`), and `feature_loss`, those of a [`CandidateLoss`].
        seed: of weights and of what training draws.
    """

    teacher: str
    recipe: str
    options: dict[str, Any]
    seed: int

    @property
    def name(self) -> str:
        return f"{self.teacher}.{self.recipe}.{self.seed}"


@dataclass(frozen=True)
class Grid:
    """What a grid's file says, see `cpu.yaml`."""

    name: str
    data: dict[str, Any]
    teacher: dict[str, Any]
    teachers: dict[str, dict[str, Any] | None]
    student: dict[str, int]
    options: dict[str, Any]
    recipes: dict[str, dict[str, Any]]
    seeds: list[int]
    candidates: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def setting(self) -> dict[str, Any]:
        """What all cells share, by which results of another version of the file are told from this one's."""
        return {"data": self.data, "teacher": self.teacher, "student": self.student}

    @classmethod
    def read(cls, path: str | Path) -> Grid:
        """Raises ValueError for keys that a grid does not have, or lacks."""
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        try:
            return cls(name=Path(path).stem, **content)
        except TypeError as error:
            raise ValueError(f"{path} is not a grid: {error}") from error

    def cells(self, *, candidates: bool = False, seeds: int | None = None) -> list[Cell]:
        """The cells of `recipes`, and of `candidates` too: seed by seed, so that the first of everything comes early.

        A recipe's `teachers`, where it names them, say how many seeds it has with each; else it has all with every
        teacher. A student of labels or with its first weights has no teacher. `seeds`: the first so many alone.
        """
        recipes = self.recipes | (self.candidates if candidates else {})
        cells = []
        for position, seed in enumerate(self.seeds[:seeds]):
            for name, recipe in recipes.items():
                own = dict(recipe)
                without = own.get("objective") in (LABELS, UNTRAINED)
                counts = own.pop("teachers", dict.fromkeys(["none"] if without else self.teachers, len(self.seeds)))
                cells += [
                    Cell(teacher, name, self.options | own, seed)
                    for teacher, count in counts.items()
                    if position < count
                ]
        return cells
