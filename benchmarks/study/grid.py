"""A grid of the study: one YAML file, one cell for every (teacher, recipe, seed)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

LABELS = "labels"
"""Objective of a student that is trained on labels, from scratch, with no teacher."""


@dataclass(frozen=True)
class Cell:
    """One student.

    Args:
        teacher: a name in the grid's `teachers`.
        recipe: a name in the grid's `recipes`.
        options: of [`DistillationArguments`], the adapter's (`lora_r`, `init_lora_weights`, `fold_layer_norm`), and
            `feature_loss`, those of a [`CandidateLoss`].
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

    @classmethod
    def read(cls, path: str | Path) -> Grid:
        """Raises ValueError for keys that a grid does not have, or lacks."""
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        try:
            return cls(name=Path(path).stem, **content)
        except TypeError as error:
            raise ValueError(f"{path} is not a grid: {error}") from error

    def cells(self) -> list[Cell]:
        """All cells: recipe by recipe within a seed, so that the first seed of everything is there early.

        A recipe's `teachers` and `seeds`, where it names them, are its own; a student of labels has no teacher.
        """
        cells = []
        for seed in range(max(len(self.seeds), *(len(each.get("seeds", [])) for each in self.recipes.values()))):
            for name, recipe in self.recipes.items():
                own = dict(recipe)
                teachers, seeds = own.pop("teachers", list(self.teachers)), own.pop("seeds", self.seeds)
                if own.get("objective") == LABELS:
                    teachers = ["none"]
                if seed < len(seeds):
                    cells += [Cell(teacher, name, self.options | own, seeds[seed]) for teacher in teachers]
        return cells
