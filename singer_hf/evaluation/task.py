"""What is evaluated: a set of images, what is to be told from them, and where its figures stand in the paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..command_line import ConfigError, read_config

KINDS = ("classification", "segmentation", "depth")

LABEL_MAPS: dict[str, Callable[[], Mapping[Any, int]]] = {}
"""Name -> a function that gives stored label -> class. By name, since some need a package that is optional."""


class TaskError(ValueError):
    """A task that is not known or not described well enough."""


@dataclass(frozen=True)
class Task:
    """One task of linear evaluation.

    Args:
        name: shown in results and used for files.
        kind: classification, segmentation or depth.
        dataset: Hub id, image folder, parquet file, folder or glob. `None` in the registry where no set of the Hub is
            known: the user names one.
        config_name: configuration of a Hub dataset.
        revision: branch, tag or commit of a Hub dataset.
        train_split: split to train the head on; `None` for a task that reuses another's head.
        test_split: split that is reported. `None`: `test_fraction` of the training images is held out at random.
        test_dataset: test images where they are no split of `dataset`.
        test_fraction: see `test_split`.
        paper_test_split: split that the paper's protocol reports, where it is another than `test_split`.
        image_column: default: image, else the only column of images.
        target_column: labels, masks or depth maps. Default: the label column, "annotation" or "depth".
        num_labels: classes; default: what the labels say. Needed for segmentation.
        label_map: stored label -> class, or the name of such a map in `LABEL_MAPS`.
        ignore_label: segmentation: stored index of pixels without a class.
        reduce_labels: segmentation: 0 stands for "no class" and class c is stored as c + 1.
        depth_scale: depth: metres of one stored unit.
        max_depth: depth: metres, the end of the last bin; pixels beyond count for nothing.
        resolution: side in pixels of the model's input in the paper's protocol.
        num_images: training and test images that the set is known to have, `None` where it is not; another number is
            warned of.
        head_of: name of the task whose head this one reuses.
        paper_column: key of the column of the paper's Table 1.
        description: one line on where the images come from.

    Raises:
        TaskError: an unknown kind, or fields that do not go together.
    """

    name: str
    kind: str
    dataset: str | None = None
    config_name: str | None = None
    revision: str | None = None
    train_split: str | None = "train"
    test_split: str | None = "test"
    test_dataset: str | None = None
    test_fraction: float = 0.2
    paper_test_split: str | None = None
    image_column: str | None = None
    target_column: str | None = None
    num_labels: int | None = None
    label_map: str | Mapping[Any, int] | None = None
    ignore_label: int | None = None
    reduce_labels: bool = False
    depth_scale: float = 1.0
    max_depth: float = 10.0
    resolution: int | None = None
    num_images: tuple[int | None, int | None] = (None, None)
    head_of: str | None = None
    paper_column: str | None = None
    description: str = ""

    def __post_init__(self):
        if self.kind not in KINDS:
            raise TaskError(f"Task {self.name!r} is of kind {self.kind!r}; expected one of {', '.join(KINDS)}.")
        self._check_types()
        if not self.name or "/" in self.name:
            raise TaskError(f"A task's name becomes a file's name; got {self.name!r}.")
        if self.kind == "segmentation" and not self.num_labels:
            raise TaskError(f"Task {self.name!r} is a segmentation: set num_labels, its number of classes.")
        if self.num_labels is not None and not 2 <= self.num_labels <= _MOST_LABELS:
            raise TaskError(f"Task {self.name!r} has num_labels = {self.num_labels}; expected 2 to {_MOST_LABELS:,}.")
        if self.depth_scale <= 0 or self.max_depth <= 0:
            raise TaskError(f"Task {self.name!r}: depth_scale and max_depth must be positive.")
        if not 0 < self.test_fraction < 1:
            raise TaskError(f"Task {self.name!r}: test_fraction must lie between 0 and 1, got {self.test_fraction}.")
        if self.head_of is not None and self.kind != "classification":
            raise TaskError(f"Task {self.name!r} reuses a head (head_of), which only a classification can.")
        if self.head_of is None and self.train_split is None:
            raise TaskError(f"Task {self.name!r} has no train_split, and no head_of whose head it could reuse.")
        if isinstance(self.label_map, str) and self.label_map not in LABEL_MAPS:
            raise TaskError(f"label_map={self.label_map!r} is not known: expected one of {', '.join(LABEL_MAPS)}.")
        if self.label_map is not None and self.head_of is None and self.num_labels is None:
            raise TaskError(f"Task {self.name!r} maps its labels: set num_labels, the number of classes they map to.")

    def _check_types(self) -> None:
        """A YAML file may hold anything."""
        for kind, names in _TYPES.items():
            for name in names:
                value = getattr(self, name)
                fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
                if value is not None and not fits:
                    expected = {str: "text", bool: "true or false", int: "a whole number"}.get(kind, "a number")
                    raise TaskError(f"Task {self.name!r}: {name} is {value!r}; expected {expected}.")
        if isinstance(self.label_map, Mapping) and not all(type(label) is int for label in self.label_map.values()):
            raise TaskError(f"Task {self.name!r}: label_map maps stored labels to classes, which are whole numbers.")

    def with_options(self, **options: Any) -> Task:
        """A copy with these fields."""
        return replace(self, **options)

    def labels(self) -> Mapping[Any, int] | None:
        """`label_map` as a map."""
        return LABEL_MAPS[self.label_map]() if isinstance(self.label_map, str) else self.label_map


_TYPES: dict[Any, tuple[str, ...]] = {
    str: ("name", "dataset", "config_name", "revision", "train_split", "test_split", "test_dataset", "head_of")
    + ("paper_test_split", "image_column", "target_column", "paper_column", "description"),
    int: ("num_labels", "ignore_label", "resolution"),
    bool: ("reduce_labels",),
    (int, float): ("test_fraction", "depth_scale", "max_depth"),
}
_MOST_LABELS = 32_767
"""Masks are kept as int16."""

TASKS: dict[str, Task] = {}
"""Name -> task."""

GROUPS: dict[str, tuple[str, ...]] = {}
"""Name -> names of tasks."""


def register_task(task: Task) -> Task:
    """Makes a task known by its name; again under the same name replaces it."""
    TASKS[task.name] = task
    return task


def resolve_tasks(names: Sequence[str]) -> list[Task]:
    """Tasks from names, groups and YAML or JSON files, each once.

    Raises:
        TaskError: neither a name nor a group nor a file; a file that does not describe a task; two tasks of one name.
    """
    found: dict[str, Task] = {}
    for name in names:
        if name in GROUPS:
            tasks = [TASKS[member] for member in GROUPS[name]]
        elif name in TASKS:
            tasks = [TASKS[name]]
        elif Path(name).suffix.lower() in (".yaml", ".yml", ".json"):
            tasks = [read_task(name)]
        else:
            raise TaskError(
                f"Unknown task {name!r}: expected one of {', '.join(TASKS)}; a group ({', '.join(GROUPS)}); or a YAML "
                "file that describes one."
            )
        for task in tasks:
            if found.setdefault(task.name, task) != task:
                raise TaskError(f"Two tasks are called {task.name!r}: give the one in a file another name.")
    return list(found.values())


def read_task(path: str | Path) -> Task:
    """A task from a YAML or JSON file with the fields of [`Task`]; its name defaults to the file's."""
    try:
        options = read_config(path, known={field.name for field in fields(Task)})
    except ConfigError as error:
        raise TaskError(str(error)) from error
    try:
        return Task(**({"name": Path(path).stem} | options))
    except TypeError as error:
        raise TaskError(f"{path} does not describe a task: {error}") from error
