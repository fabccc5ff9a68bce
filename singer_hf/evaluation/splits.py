"""The images of a task: its training and its test split, loaded and counted."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from torch import Tensor

from ..data import find_image_column, load_images
from ..data.columns import known_features
from ..data.loading import evenly_spaced
from .head_data import held_out_rows
from .task import Task, TaskError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """One split of a task.

    Args:
        dataset: the images.
        name: shown in results and errors.
        image_column: of the images.
        target_column: of what is predicted; `None`: the label column, found by its type.
    """

    dataset: datasets.Dataset
    name: str
    image_column: str
    target_column: str | None

    @property
    def fingerprint(self) -> str:
        """Of `datasets`: changes with the files and with what was selected of them."""
        return self.dataset._fingerprint

    def description(self) -> dict[str, Any]:
        return {"split": self.name, "images": len(self.dataset), "fingerprint": self.fingerprint}


def load_splits(
    task: Task,
    *,
    paper: bool = False,
    max_train_images: int | None = None,
    max_test_images: int | None = None,
) -> tuple[Split | None, Split]:
    """Training split (`None` for a task that reuses a head) and test split.

    Args:
        task: which images.
        paper: take the split that the paper's protocol reports.
        max_train_images, max_test_images: take so many at most, evenly spaced.

    Raises:
        TaskError: the registry knows no set of the Hub for it, and none was named.
        DataSourceError: nothing there, no such split, or no access.
    """
    if task.dataset is None:
        raise TaskError(
            f"Task {task.name!r} needs its images: name them with dataset (--dataset, or --dataset_of "
            f"{task.name}=IMAGES among several tasks). {task.description}"
        )
    source = {"config_name": task.config_name, "revision": task.revision}
    test_name = (paper and task.paper_test_split) or task.test_split
    if test_name is None and task.test_dataset is None:
        images = load_images(task.dataset, split=task.train_split, **source)
        kept, held_out = held_out_rows(len(images), task.test_fraction, _SPLIT_SEED, _class_numbers(images, task))
        return (
            _split(evenly_spaced(images.select(kept), max_train_images), f"the rest of {task.train_split}", task),
            _split(
                evenly_spaced(images.select(held_out), max_test_images),
                f"{task.test_fraction:g} of {task.train_split}",
                task,
            ),
        )
    train = None
    if task.train_split is not None and task.head_of is None:
        images = load_images(task.dataset, split=task.train_split, max_samples=max_train_images, **source)
        train = _split(images, task.train_split, task)
    if task.test_dataset is None:
        test = load_images(task.dataset, split=test_name, max_samples=max_test_images, **source)
    else:
        test = load_images(task.test_dataset, split=test_name or "train", max_samples=max_test_images)
    for found, expected in zip((train and len(train.dataset), len(test)), task.num_images, strict=True):
        limited = max_train_images is not None or max_test_images is not None
        if None not in (found, expected) and found != expected and not limited and test_name == task.test_split:
            logger.warning("%s: a split has %d images, where %d are known of.", task.name, found, expected)
    return train, _split(test, test_name or task.test_dataset, task)


def _split(dataset: datasets.Dataset, name: str, task: Task) -> Split:
    features = known_features(dataset)
    image_column = task.image_column
    if image_column is None and task.kind != "classification" and "image" in features:
        image_column = "image"  # which may hold arrays
    if image_column is None:
        image_column = find_image_column(dataset)
    target_column = task.target_column
    if target_column is None and task.kind != "classification":
        target_column = {"segmentation": "annotation", "depth": "depth"}[task.kind]
    return Split(dataset, name, image_column, target_column)


_SPLIT_SEED = 0
"""A test split that is drawn is the same in every run: scores of several seeds are of the same images."""


def _class_numbers(images: datasets.Dataset, task: Task) -> Tensor | None:
    """Classes by which a test split is drawn evenly, where labels are numbers."""
    if task.kind != "classification":
        return None
    names = [task.target_column] if task.target_column else list(images.features)
    classes = [name for name in names if isinstance(images.features.get(name), datasets.ClassLabel)]
    if len(classes) != 1:
        return None
    return torch.tensor(images.select_columns(classes).with_format("numpy")[:][classes[0]])
