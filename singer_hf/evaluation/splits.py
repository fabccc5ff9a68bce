"""The images of a task: its training and its test split, loaded and counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import datasets

from ..data import find_image_column, load_images
from ..data.columns import known_features
from .task import Task, TaskError


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
    seed: int = 0,
    max_train_images: int | None = None,
    max_test_images: int | None = None,
) -> tuple[Split | None, Split]:
    """Training split (`None` for a task that reuses a head) and test split.

    Args:
        task: which images.
        paper: take the split that the paper's protocol reports.
        seed: of a test split drawn from the training images.
        max_train_images, max_test_images: take so many at most, evenly spaced.

    Raises:
        TaskError: the registry knows no set of the Hub for it, and none was named.
        DataSourceError: nothing there, no such split, or no access.
    """
    if task.dataset is None:
        raise TaskError(f"Task {task.name!r} needs its images: name them with dataset. {task.description}")
    source = {"config_name": task.config_name, "revision": task.revision}
    test_name = (paper and task.paper_test_split) or task.test_split
    if test_name is None and task.test_dataset is None:
        parts = load_images(task.dataset, split=task.train_split, **source).train_test_split(
            test_size=task.test_fraction, seed=seed
        )
        held_out = f"{task.test_fraction:g} of {task.train_split} (seed {seed})"
        return (
            _split(_evenly(parts["train"], max_train_images), f"the rest of {task.train_split}", task),
            _split(_evenly(parts["test"], max_test_images), held_out, task),
        )
    train = None
    if task.train_split is not None and task.head_of is None:
        images = load_images(task.dataset, split=task.train_split, max_samples=max_train_images, **source)
        train = _split(images, task.train_split, task)
    if task.test_dataset is None:
        test = load_images(task.dataset, split=test_name, max_samples=max_test_images, **source)
    else:
        test = load_images(task.test_dataset, split=test_name or "train", max_samples=max_test_images)
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


def _evenly(dataset: datasets.Dataset, count: int | None) -> datasets.Dataset:
    if count is None or count >= len(dataset):
        return dataset
    return dataset.select([index * len(dataset) // count for index in range(count)])
