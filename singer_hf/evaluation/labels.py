"""The labels of a classification task, read and checked as a whole before any image is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from ..data import EmptyDatasetError, LabelColumnError
from ..data.columns import check_column, find_label_column
from .splits import Split
from .task import Task


@dataclass(frozen=True)
class Labels:
    """Class of every image.

    Args:
        values: (n,) int64, 0 to `len(names)` − 1.
        names: of the classes; their numbers where the labels have no names.
        named: whether the labels have names.
    """

    values: Tensor
    names: tuple[str, ...]
    named: bool


def read_labels(
    dataset: datasets.Dataset,
    column: str | None = None,
    *,
    like: Labels | None = None,
    num_labels: int | None = None,
    label_map: Mapping[Any, int] | None = None,
    what: str = "The dataset",
) -> Labels:
    """Labels of a split: a `ClassLabel`, integers, or strings.

    Args:
        dataset: the split.
        column: of the labels; `None`: as [`find_label_column`] finds it.
        like: the training split's labels, for its test split: where both have names, classes are matched by these,
            since a folder that lacks a class counts the others differently.
        num_labels: how many classes there are; more than the labels show is fine. Default: what the names, or the
            largest label, say.
        label_map: stored label -> class.
        what: names the split in errors.

    Raises:
        LabelColumnError: an image without a label, a label out of range, or no class of the training split.
        MissingColumnError: no such column, or several candidates.
    """
    column = _label_column(dataset, column)
    if label_map is None and not _is_text(dataset, column):
        find_label_column(dataset, column)  # raises unless it holds integers
    stored = dataset.select_columns([column]).with_format("arrow")[:][column]
    if stored.null_count:
        first = stored.to_pylist().index(None)
        raise LabelColumnError(
            f"{what}: {stored.null_count} of {len(stored)} images have no label (column {column!r}, the first is "
            f"image {first}). Leave them out, e.g. by dataset.filter."
        )
    if not len(stored):
        raise EmptyDatasetError(f"{what} is empty; expected at least one image.")
    values = stored.to_pylist()
    names = getattr(dataset.features[column], "names", None)
    if label_map is not None:
        values, names = [_looked_up(label_map, value, index, column, what) for index, value in enumerate(values)], None
    elif isinstance(values[0], str):
        names = sorted(set(values)) if like is None else like.names
        position = {name: index for index, name in enumerate(names)}
        values = [_looked_up(position, value, index, column, what) for index, value in enumerate(values)]
    elif like is not None and like.named and names is not None and tuple(names) != like.names:
        position = {name: index for index, name in enumerate(like.names)}
        own = dict(enumerate(names))  # -1, a hidden label, is no name's
        values = [
            value if value not in own else _looked_up(position, own[value], index, column, what)
            for index, value in enumerate(values)
        ]
    labels = np.asarray(values, dtype=np.int64)
    count = num_labels or (len(like.names) if like is not None else len(names or ()) or int(labels.max()) + 1)
    wrong = np.flatnonzero((labels < 0) | (labels >= count))
    if len(wrong):
        raise LabelColumnError(
            f"{what}: {len(wrong)} labels are out of range, e.g. {labels[wrong[0]]} of image {wrong[0]} (column "
            f"{column!r}); expected 0 to {count - 1}. Splits with hidden labels hold -1: name another split, or set "
            "num_labels."
        )
    numbers = tuple(map(str, range(count)))
    names = tuple(names or ())[:count]
    return Labels(torch.from_numpy(labels), names + numbers[len(names) :], named=bool(names))


def read_split_labels(task: Task, train: Split, test: Split) -> tuple[Labels, Labels]:
    """Labels of both splits of a classification, over the same classes."""
    options = label_options(task)
    labels = read_labels(train.dataset, train.target_column, what=f"{task.name}, {train.name} split", **options)
    what = f"{task.name}, {test.name} split"
    return labels, read_labels(test.dataset, test.target_column, like=labels, what=what, **options)


def label_options(task: Task) -> dict[str, Any]:
    """What a task says of its labels, for [`read_labels`]."""
    return {"num_labels": task.num_labels, "label_map": task.labels()}


def _label_column(dataset: datasets.Dataset, column: str | None) -> str:
    """The column named, else the only `ClassLabel`, else "label" or "labels", which may hold text."""
    if column is not None:
        check_column(dataset.features, column, "target_column")
        return column
    texts = [name for name in ("label", "labels") if name in dataset.features and _is_text(dataset, name)]
    return texts[0] if len(texts) == 1 else find_label_column(dataset)


def _is_text(dataset: datasets.Dataset, column: str) -> bool:
    feature = dataset.features.get(column)
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _looked_up(table: Mapping[Any, int], value: Any, index: int, column: str, what: str) -> int:
    key = value if value in table else str(value)  # a map from JSON has text for numbers
    if key not in table:
        raise LabelColumnError(
            f"{what}: image {index} has the label {value!r} (column {column!r}), which is no class of the training "
            f"images or of label_map ({', '.join(map(repr, list(table)[:5]))}, …)."
        )
    return table[key]
