"""The figures of the paper's Table 1, and results of ours in its columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas

from .result import EvaluationResult
from .task import TASKS


@dataclass(frozen=True)
class PaperColumn:
    """A column of Table 1.

    Args:
        title: as the table has it.
        scale: of our score to the table's unit (accuracies and IoU in percent there).
        lower_is_better: true of errors.
    """

    title: str
    scale: float = 100.0
    lower_is_better: bool = False


COLUMNS = {
    "in_val": PaperColumn("IN-val"),
    "ade": PaperColumn("ADE20K"),
    "nyud": PaperColumn("NYUd", scale=1.0, lower_is_better=True),
    "inat": PaperColumn("iNat2019"),
    "ds": PaperColumn("DS"),
    "fg": PaperColumn("FG"),
}
"""Key of [`Task.paper_column`] -> column; where several tasks have one key, their mean stands there."""


def _row(*values: float) -> dict[str, float]:
    return dict(zip(COLUMNS, values, strict=True))


TABLE_1: dict[str, dict[str, dict[str, float]]] = {
    "ViT-L → ViT-S": {
        "teacher ViT-L": _row(79.58, 26.57, 0.9157, 71.42, 54.20, 82.27),
        "ViT-S, not distilled": _row(76.05, 19.57, 1.1065, 65.28, 44.48, 77.39),
        "FitNet": _row(72.50, 25.15, 0.9903, 52.12, 40.21, 71.13),
        "SiNGER": _row(79.13, 30.06, 0.9026, 57.21, 48.91, 77.59),
    },
    "ViT-L → ViT-T": {
        "teacher ViT-L": _row(79.58, 26.57, 0.9157, 71.42, 54.20, 82.27),
        "ViT-T, not distilled": _row(58.03, 14.20, 1.1807, 43.95, 28.75, 62.02),
        "FitNet": _row(62.43, 18.73, 1.0093, 40.02, 32.32, 62.48),
        "ViTKD": _row(5.07, 11.92, 1.1903, 23.69, 2.08, 33.52),
        "SiNGER": _row(70.59, 21.76, 0.9406, 41.11, 38.87, 64.61),
    },
    "DeiT-III-L → DeiT-III-B": {
        "FitNet": _row(60.00, 26.79, 1.1625, 50.04, 31.53, 74.78),
        "ViTKD": _row(66.54, 19.58, 1.2525, 30.78, 35.77, 58.36),
        "SiNGER": _row(79.37, 29.47, 1.1514, 53.50, 49.14, 75.41),
    },
    "DeiT-III-S → DeiT-III-T": {
        "FitNet": _row(51.41, 16.06, 1.2920, 32.81, 23.74, 58.53),
        "ViTKD": _row(35.56, 8.71, 1.4487, 19.93, 15.31, 45.13),
        "SiNGER": _row(63.50, 20.67, 0.9827, 37.68, 32.28, 64.32),
    },
}
"""Teacher and student -> method -> column -> figure (arXiv 2509.20986, Table 1)."""


def by_model(
    results: Sequence[EvaluationResult], *, with_protocol: bool = False
) -> dict[str, dict[str, EvaluationResult]]:
    """Model -> task -> result. One model in several ways, by protocol, layer, seed, …, is several models.

    Args:
        results: of any models and tasks.
        with_protocol: name the protocol also where all results of a model have the same.

    Raises:
        ValueError: two results of one model, in one way, on one task.
    """
    ways = [_way(result) for result in results]
    table: dict[str, dict[str, EvaluationResult]] = {}
    for result, way in zip(results, ways, strict=True):
        name = result.model["name"]
        of_model = [other for one, other in zip(results, ways, strict=True) if one.model["name"] == name]
        differing = [
            value
            for key, value in way.items()
            if len({other[key] for other in of_model}) > 1 or (with_protocol and key == "protocol")
        ]
        model = f"{name} ({', '.join(differing)})" if differing else name
        tasks = table.setdefault(model, {})
        if result.task["name"] in tasks:
            raise ValueError(
                f"Two results of {model} on {result.task['name']}: name folders or files that hold one of each."
            )
        tasks[result.task["name"]] = result
    return table


def _way(result: EvaluationResult) -> dict[str, str]:
    model = result.model
    return {
        "protocol": result.protocol["name"],
        "layer": f"block {model.get('layer')}",
        "pooling": str(model.get("pooling")),
        "feature": str(model.get("feature", "block's output")),
        "seed": f"seed {result.seed}",
        "weights": f"weights {str(model.get('fingerprint'))[:8]}",
    }


def paper_columns(results: dict[str, EvaluationResult]) -> dict[str, float]:
    """One model's results in Table 1's columns and units.

    A column is left out that lacks one of its tasks, or of which one was evaluated on other images than the registry
    names, or on some of them. Renditions are told apart among all of ImageNet's classes, as in the released code.
    """
    row = {}
    for key, column in COLUMNS.items():
        tasks = [name for name, task in TASKS.items() if task.paper_column == key]
        if all(name in results and _on_the_papers_images(results[name]) for name in tasks):
            values = [results[name].scores.get("top1_accuracy_all_classes", results[name].value) for name in tasks]
            row[key] = column.scale * sum(values) / len(values)
    return row


def _on_the_papers_images(result: EvaluationResult) -> bool:
    known, task = TASKS[result.task["name"]], result.task
    same = known.dataset is None or task.get("dataset", known.dataset) == known.dataset
    return same and task.get("max_train_images") is None and task.get("max_test_images") is None


def paper_table(results: Sequence[EvaluationResult], pairs: Sequence[str] = ()) -> pandas.DataFrame:
    """Results in Table 1's columns, above the paper's rows of the pairs of teacher and student that are named.

    Raises:
        ValueError: an unknown pair.
    """
    rows = {model: paper_columns(tasks) for model, tasks in by_model(results, with_protocol=True).items()}
    for pair in pairs:
        if pair not in TABLE_1:
            raise ValueError(f"Table 1 has no pair {pair!r}: expected one of {', '.join(TABLE_1)}.")
        rows |= {f"paper, {pair}, {method}": figures for method, figures in TABLE_1[pair].items()}
    table = pandas.DataFrame.from_dict(rows, orient="index", columns=list(COLUMNS), dtype=float)
    return table.rename(columns={key: column.title for key, column in COLUMNS.items()})
