"""Which column holds the images and which the labels, and whether they can be used as such."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from datasets import ClassLabel, Image, Value

from .errors import ImageColumnError, LabelColumnError, MissingColumnError


def find_image_column(dataset: Any, wanted: str | None = None) -> str:
    """Name of the column of images of a `datasets.Dataset` or `IterableDataset`.

    Args:
        wanted: the column to use. `None`: "image" where that holds images, else the only column of type `Image`.

    Raises:
        MissingColumnError: no such column, or several.
        ImageColumnError: `wanted` holds no images.
    """
    features = known_features(dataset)
    if wanted is None and "image" in features and _holds_images(features["image"]):
        wanted = "image"
    if wanted is not None:
        check_image_feature(features, wanted)
        return wanted
    found = [name for name, feature in features.items() if isinstance(feature, Image)]
    if len(found) == 1:
        return found[0]
    what = f"has {len(found)} columns of images ({_names(found)})" if found else "has no column of type Image"
    raise MissingColumnError(
        f"The dataset {what}; its columns are {_names(features)}. Set image_column to the one to use."
    )


def find_label_column(dataset: Any, wanted: str | None = None) -> str:
    """Name of the column of integer labels: `wanted`, else the only `ClassLabel`, else "label" or "labels".

    Raises:
        MissingColumnError: no such column, or several.
        LabelColumnError: it does not hold integers.
    """
    features = known_features(dataset)
    if wanted is not None:
        check_column(features, wanted, "label_column")
        found = [wanted]
    else:
        found = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
        found = found or [name for name in ("label", "labels") if name in features]
    if len(found) != 1:
        what = f"{len(found)} columns of labels ({_names(found)})" if found else "no column of labels"
        raise MissingColumnError(
            f"The dataset has {what}; its columns are {_names(features)}. Set label_column to the one to use."
        )
    check_label_feature(features, found[0])
    return found[0]


def known_features(dataset: Any) -> Mapping[str, Any]:
    """Column name -> feature.

    Raises:
        MissingColumnError: the dataset does not know its columns (a stream after `map`; not of class `datasets`).
    """
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping):
        return features
    raise MissingColumnError(
        f"A {type(dataset).__name__} that does not know the types of its columns: expected one split of a `datasets` "
        "dataset (after `map` on a stream, pass `features=`). Name the columns: image_column, label_column."
    )


def check_column(columns: Iterable[str], name: str, option: str) -> None:
    """Raises `MissingColumnError` if the column that `option` names is not there."""
    columns = list(columns)
    if name not in columns:
        raise MissingColumnError(
            f"The dataset has no column {name!r}; its columns are {_names(columns)}. Set {option} to one of them."
        )


def check_image_feature(features: Mapping[str, Any], name: str) -> None:
    """Raises unless the column is there and is of type `Image`, encoded bytes, or a struct with bytes."""
    check_column(features, name, "image_column")
    feature = features[name]
    if not _holds_images(feature):
        raise ImageColumnError(
            f"Column {name!r} is {feature}; expected images. Set image_column to one of {_names(features)}; a column "
            f"of file paths becomes one of images by dataset.cast_column({name!r}, datasets.Image())."
        )


def _holds_images(feature: Any) -> bool:
    is_binary = isinstance(feature, Value) and feature.dtype in ("binary", "large_binary")
    return isinstance(feature, Image) or is_binary or (isinstance(feature, dict) and "bytes" in feature)


def check_label_feature(features: Mapping[str, Any], name: str) -> None:
    """Raises unless the column is there and holds integers."""
    check_column(features, name, "label_column")
    feature = features[name]
    is_integer = isinstance(feature, Value) and feature.dtype.startswith(("int", "uint"))
    if not (isinstance(feature, ClassLabel) or is_integer):
        raise LabelColumnError(
            f"Labels in column {name!r} are {feature}; expected ClassLabel or integers. Cast them with "
            f"dataset.class_encode_column({name!r})."
        )


def integer_label(value: Any, column: str) -> int:
    """One label as int.

    Raises:
        LabelColumnError: anything but an integer (None, strings, floats, booleans, vectors).
    """
    is_bool = isinstance(value, bool) or (isinstance(value, torch.Tensor) and value.dtype == torch.bool)
    try:
        if is_bool:
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise LabelColumnError(
            f"Column {column!r} holds the label {value!r} ({type(value).__name__}); expected an integer. Cast a "
            f"datasets.Dataset with dataset.class_encode_column({column!r})."
        ) from None


def _names(columns: Iterable[str]) -> str:
    return ", ".join(map(repr, columns)) or "none"
