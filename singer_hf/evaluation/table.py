"""Results as tables for the console."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas

from .paper import COLUMNS, by_model
from .result import EvaluationResult

_SECONDARY = ("top5_accuracy", "knn_top1_accuracy", "overall_accuracy", "rmse_pooled", "abs_rel", "delta1")


def results_table(results: Sequence[EvaluationResult]) -> str:
    """One line a result: its main score, the others, what it was measured on and by which head."""
    rows = []
    for result in results:
        chosen = result.hyperparameters
        others = [f"{name} {shown(name, result.scores[name])}" for name in _SECONDARY if name in result.scores]
        rows.append(
            {
                "model": result.model["name"],
                "task": result.task["name"],
                "protocol": result.protocol["name"],
                "score": f"{result.main_score} {shown(result.main_score, result.value)}",
                "other scores": ", ".join(others),
                "test images": result.task["splits"]["test"]["images"],
                "lr / decay / epochs": " / ".join(f"{value:g}" for value in chosen.values()) or "another task's head",
                "seconds": f"{result.seconds['total']:.0f}",
            }
        )
    frame = pandas.DataFrame(rows)
    return "\n" + frame.to_string(index=False, justify="left", max_colwidth=60)


def comparison_table(results: Sequence[EvaluationResult]) -> pandas.DataFrame:
    """Models as rows, tasks as columns, main scores as they are shown."""
    table = {
        model: {name: shown(result.main_score, result.value) for name, result in tasks.items()}
        for model, tasks in by_model(results).items()
    }
    return pandas.DataFrame.from_dict(table, orient="index").fillna("–")


def paper_table_shown(table: pandas.DataFrame) -> pandas.DataFrame:
    """[`paper_table`] with the paper's digits, and a dash where there is no figure."""
    digits = {column.title: 4 if column.lower_is_better else 2 for column in COLUMNS.values()}
    return table.apply(
        lambda values: values.map(lambda value: "–" if value != value else f"{value:.{digits[values.name]}f}")
    )


def shown(score: str, value: Any) -> str:
    """Accuracies and IoU in percent, depth errors as they are."""
    in_percent = score.startswith(("top", "knn", "mean_", "overall"))
    return f"{100 * value:.2f} %" if in_percent else f"{value:.4f}"
