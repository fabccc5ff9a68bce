"""Results of `examples/evaluate.py` in a card: metadata of the student, and a table beside teacher and baselines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from huggingface_hub import EvalResult

from ..evaluation.result import EvaluationResult
from ..evaluation.table import shown
from .record import is_hub_id, same_model, shown_name

_TASKS = {"classification": "image-classification", "segmentation": "image-segmentation", "depth": "depth-estimation"}

# score -> (the metric's name on the Hub, for people)
_METRICS = {
    "top1_accuracy": ("accuracy", "top-1 accuracy"),
    "top5_accuracy": ("top-5-accuracy", "top-5 accuracy"),
    "knn_top1_accuracy": ("knn-accuracy", "k-NN top-1 accuracy"),
    "mean_iou": ("mean_iou", "mean IoU"),
    "overall_accuracy": ("pixel-accuracy", "pixel accuracy"),
    "rmse": ("rmse", "RMSE (metres)"),
    "abs_rel": ("abs_rel", "absolute relative error"),
    "delta1": ("delta1", "δ1"),
}


class ResultsError(ValueError):
    """Results that do not fit the model that is released."""


@dataclass(frozen=True)
class TableRow:
    """One line of the card's table: a model, and a score a column, "–" where it was not evaluated."""

    model: str
    scores: tuple[str, ...]
    released: bool


@dataclass(frozen=True)
class ResultsTable:
    """Columns as (task, score, protocol, test images), and rows, the teacher's first and the released model's next."""

    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]


def own_results(results: Sequence[EvaluationResult], fingerprint: str) -> list[EvaluationResult]:
    """Those of the released student, told by the fingerprint of its weights.

    Raises:
        ResultsError: there are results, but none of them is the student's.
    """
    own = [result for result in results if result.model.get("fingerprint") == fingerprint]
    if results and not own:
        names = ", ".join(sorted({str(result.model["name"]) for result in results}))
        raise ResultsError(
            f"None of the results ({names}) is of the weights that are released (fingerprint {fingerprint}): evaluate "
            "the folder that is released with examples/evaluate.py."
        )
    return own


def eval_results(results: Sequence[EvaluationResult], is_classifier: bool) -> list[EvalResult]:
    """The student's results as the Hub's metadata; scores as they were recorded, shares from 0 to 1.

    Of a classifier, its own result alone; of a backbone, those of linear heads on its features.
    """
    entries = []
    for result in results:
        if is_classifier is not is_classifiers_own(result):
            continue
        task = result.task
        dataset = task.get("dataset")
        on_hub = task.get("revision") is not None and is_hub_id(dataset)  # else it may have been a folder
        how = "Image classification" if is_classifier else f"Linear evaluation of frozen features ({task['kind']})"
        for score in _METRICS:
            if score in result.scores:
                metric, name = _METRICS[score]
                entries.append(
                    EvalResult(
                        task_type=_TASKS[task["kind"]],
                        task_name=how,
                        dataset_type=dataset if on_hub else _slug(task["name"]),
                        dataset_name=task["name"],
                        dataset_config=task.get("config_name") if on_hub else None,
                        dataset_split=task.get("test_split") if on_hub else None,
                        dataset_revision=task.get("revision") if on_hub else None,
                        dataset_args={"protocol": result.protocol["name"], "seed": result.seed},
                        metric_type=metric,
                        metric_name=name,
                        metric_value=result.scores[score],
                    )
                )
    return entries


def head_note(results: Sequence[EvaluationResult], fingerprint: str) -> str | None:
    """How a released classifier's head was trained, `None` where no result says so."""
    for result in own_results(results, fingerprint):
        if is_classifiers_own(result):
            chosen = ", ".join(f"{name} {value:g}" for name, value in result.hyperparameters.items())
            images = result.task["splits"].get("train", {}).get("images")
            count = "" if images is None else f"{images:,} images of "
            return f"one linear layer, trained on {count}{result.task['name']} with everything else frozen ({chosen})"
    return None


def results_table(
    results: Sequence[EvaluationResult], fingerprint: str, teacher: str | None, own_name: str
) -> ResultsTable | None:
    """All results side by side, `None` without any.

    Args:
        results: of any models.
        fingerprint: of the student that is released.
        teacher: its name in the run's record.
        own_name: of the student, in the table.
    """
    if not results:
        return None
    columns, scores, names = {}, {}, {}
    for result in results:
        column = (result.task["name"], result.main_score, result.protocol["name"], is_classifiers_own(result))
        images = result.task["splits"]["test"]["images"]
        columns.setdefault(column, f"{column[0]}: {_title(result)}, {images:,} test images")
        weights = result.model.get("fingerprint") or result.model["name"]
        order = 1 if weights == fingerprint else 0 if same_model(result.model["name"], teacher) else 2
        shown_as = shown_name(result.model["name"], from_hub=result.model.get("revision") is not None)
        label = own_name if order == 1 else f"teacher: {shown_as}" if order == 0 else shown_as
        names.setdefault(weights, (order, label))
        cells, score = scores.setdefault(weights, {}), shown(result.main_score, result.value)
        if cells.setdefault(column, score) != score:
            raise ResultsError(
                f"Two results of {label} on {column[0]} differ ({cells[column]} and {score}): name the one that the "
                "card is to show."
            )
    labels = [label for _, label in names.values()]
    rows = [
        TableRow(
            label if labels.count(label) == 1 else f"{label} (weights {weights[:8]})",
            tuple(scores[weights].get(column, "–") for column in columns),
            released=order == 1,
        )
        for weights, (order, label) in sorted(names.items(), key=lambda entry: (*entry[1], entry[0]))
    ]
    return ResultsTable(tuple(columns.values()), tuple(rows))


def _title(result: EvaluationResult) -> str:
    name = _METRICS.get(result.main_score, (None, result.main_score))[1]
    how = "with its own head" if is_classifiers_own(result) else f"linear head, {result.protocol['name']} protocol"
    return f"{name}, {how}"


def is_classifiers_own(result: EvaluationResult) -> bool:
    """Whether a classifier's own head gave it, and no linear head on frozen features."""
    return str(result.model.get("feature", "")).startswith("input of the classifier")


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "images"
