"""Linear evaluation of one frozen backbone: a task in, a result out."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ..metrics import TopKAccuracy
from ..records.provenance import versions
from ..scores import knn_votes
from .extraction import Extractor, annotated_images, check_annotations
from .fit import fit_head, score_heads
from .frozen import FrozenBackbone
from .head_data import HeadData, PooledData
from .head_file import HeadFile
from .heads import LinearHeads
from .labels import Labels, label_options, read_labels, read_split_labels
from .prepare import Prepared, pooled_data, prepare
from .probes import ClassificationProbe, Probe
from .protocol import Protocol, protocol_for
from .result import EvaluationResult
from .splits import Split, load_splits
from .task import TASKS, Task, TaskError
from .views import annotated_views


class LinearEvaluator:
    """Evaluates a frozen backbone on tasks, by linear heads on the features of one block.

    Protocols are described in [`Protocol`]; features in [`FrozenBackbone`]. Heads: classification, one linear layer
    on the pooled feature; segmentation, a 1×1 convolution on patch tokens, upsampled bilinearly to the input's size;
    depth, the same on patch tokens with the CLS token beside each, to 256 bins. All processes of a launch call the
    same methods; they share the extraction and the grid, and each scores its part of the test images.

    Args:
        backbone: the model.
        extractor: of its features.
        protocol: a name in `PROTOCOLS`.
        options: fields of the [`Protocol`] that replace its own, e.g. `{"epochs": (50,)}`.
        output_dir: results go to `<output_dir>/<task>.<protocol>.json` (see [`save`]), heads to `<output_dir>/heads`.
        seed: of validation split, order and views.
        knn_neighbors: k of the k-NN score of classification tasks; 0: no such score.
        max_train_images, max_test_images: take so many at most, evenly spaced; the result says how many it were.

    Raises:
        ValueError: an unknown protocol, or an option out of range.
    """

    def __init__(
        self,
        backbone: FrozenBackbone,
        extractor: Extractor,
        *,
        protocol: str = "default",
        options: Mapping[str, Any] | None = None,
        output_dir: str | Path = "results",
        seed: int = 0,
        knn_neighbors: int = 20,
        max_train_images: int | None = None,
        max_test_images: int | None = None,
    ):
        self.backbone, self.extractor = backbone, extractor
        self.state: PartialState = extractor.state
        self.protocol, self.options = protocol, dict(options or {})
        for kind in ("classification", "segmentation", "depth"):
            self.protocol_for(kind)  # so that a wrong option is found now
        self.output_dir, self.seed, self.knn_neighbors = Path(output_dir), seed, knn_neighbors
        self._tasks: dict[str, Task] = {}
        self._splits: dict[str, tuple[Task, tuple[Split | None, Split]]] = {}
        self.limits: dict[str, int | None] = {"max_train_images": max_train_images, "max_test_images": max_test_images}

    def check(self, task: Task) -> None:
        """Loads a task's images and looks at their labels or annotations, without the backbone.

        Raises:
            DataError, TaskError: as of [`run`].
        """
        self._tasks[task.name] = task
        protocol = self.protocol_for(task.kind)
        size = self.backbone.input_size
        if self.protocol == "paper" and task.resolution and size != (task.resolution, task.resolution):
            raise TaskError(
                f"The paper evaluates {task.name!r} at {task.resolution}x{task.resolution} pixels; this model's input "
                f"is {size[0]}x{size[1]}. Set image_size={task.resolution}, or use the default protocol."
            )
        train, test = self.splits(task)
        if task.head_of is not None:
            head_task = self._head_task(task)
            self.check(head_task)
            like = read_labels(self.splits(head_task)[0].dataset, head_task.target_column, **label_options(head_task))
            self._reused_labels(task, test, like)
        elif task.kind == "classification":
            read_split_labels(task, train, test)
        else:
            views = annotated_views(size, protocol, augmented=False, seed=self.seed)
            for split in (train, test):
                images, *_ = annotated_images(split, views, task)
                check_annotations(images, task, f"{task.name}, {split.name} split")

    def run(self, task: Task) -> EvaluationResult:
        """Evaluates and writes the result; in every process.

        Raises:
            DataError, TaskError: what is wrong with the images, their annotation or the task's description.
            CacheError: the features cannot be kept.
            DivergedError: no learning rate of the grid was low enough.
        """
        self.check(task)
        if task.head_of is not None:
            return self._run_reused(task)
        start, before = time.perf_counter(), self.extractor.images_extracted
        protocol = self.protocol_for(task.kind)
        train, test = self.splits(task)
        prepared = prepare(self.extractor, task, train, test, protocol, self.seed, with_plain=bool(self.knn_neighbors))
        extracted = time.perf_counter()
        fit = fit_head(
            prepared.probe,
            prepared.train,
            prepared.test,
            protocol,
            self.state,
            plain=prepared.plain,
            labels=None if prepared.labels is None else prepared.labels.values,
        )
        scores = self.score(prepared.probe, fit.head, prepared.test)
        trained = time.perf_counter()
        if prepared.labels is not None:
            if self.state.is_main_process:
                self._head_file(task, protocol).save(fit.head, prepared.labels)
            self.state.wait_for_everyone()
            if self.knn_neighbors:
                scores["knn_top1_accuracy"] = self._knn(prepared)
        result = self.record(
            task,
            protocol,
            splits={"train": train.description(), "test": test.description()},
            selection=fit.selection | {"views": max(1, protocol.views)},
            hyperparameters=asdict(fit.config),
            scores=scores,
            main_score=prepared.probe.main_score,
            seconds={"features": extracted - start, "head": trained - extracted},
            start=start,
            images_extracted=self.extractor.images_extracted - before,
        )
        self.save(result)
        return result

    def splits(self, task: Task) -> tuple[Split | None, Split]:
        """Training and test split of a task, loaded once."""
        if task.name not in self._splits or self._splits[task.name][0] != task:
            loaded = load_splits(task, paper=self.protocol == "paper", **self.limits)
            self._splits[task.name] = (task, loaded)
        return self._splits[task.name][1]

    def protocol_for(self, kind: str) -> Protocol:
        """The protocol of a kind of task, with the options of this evaluator."""
        options = dict(self.options)
        if kind == "classification":
            options.pop("pixels", None)
        return protocol_for(self.protocol, kind).with_options(**options)

    # -- scores -------------------------------------------------------------------------------------------------------
    def score(self, probe: Probe, head: LinearHeads, test: HeadData) -> dict[str, Any]:
        """Scores of one head on the test images, of which each process takes its part; the same in every process."""
        own = test.subset(test.rows[self.state.process_index :: self.state.num_processes])
        return self._shared(
            score_heads(probe, head, own, 256 if isinstance(own, PooledData) else 16, **self._processes())[0]
        )

    def _knn(self, prepared: Prepared) -> float:
        bank, labels = prepared.plain.features[0], prepared.plain.targets
        own = prepared.test.rows[self.state.process_index :: self.state.num_processes]
        test = prepared.test
        queries = test.features[0][own.to(test.features.device)].to(test.device)
        votes = knn_votes(queries, bank, labels, prepared.probe.num_outputs, neighbors=self.knn_neighbors)
        metric = TopKAccuracy((1,), **self._processes())
        metric.add_batch(predictions=votes, references=test.targets[own.to(test.targets.device)])
        return self._shared(metric.compute())["top1_accuracy"]

    def _processes(self) -> dict[str, Any]:
        """What evaluate needs to know of several processes."""
        if self.state.num_processes == 1:
            return {}
        return {
            "num_process": self.state.num_processes,
            "process_id": self.state.process_index,
            "experiment_id": self._shared(uuid.uuid4().hex),
            "cache_dir": str(self.extractor.cache_dir.expanduser() / "metrics"),
            "timeout": 3600,
        }

    def _shared(self, value: Any) -> Any:
        """The main process's value, in every process."""
        held = [value]
        if self.state.num_processes > 1:
            broadcast_object_list(held)
        return held[0]

    # -- a head of another task ---------------------------------------------------------------------------------------
    def _run_reused(self, task: Task) -> EvaluationResult:
        protocol = self.protocol_for(task.kind)
        head_task = self._head_task(task)
        file = self._head_file(head_task, protocol)
        if not self._shared(file.is_valid()):
            self.run(head_task)
        start, before = time.perf_counter(), self.extractor.images_extracted
        _, test = self.splits(task)
        head, classes = file.load(self.backbone.device)
        labels = self._reused_labels(task, test, classes)
        probe = ClassificationProbe(len(classes.names))
        data = pooled_data(self.extractor, test, labels.values, protocol, self.seed)
        extracted = time.perf_counter()
        scores = self.score(probe, head, data)
        if task.label_map is not None:
            among = sorted(set(task.labels().values()))
            few = self.score(probe, head.restricted(among), data)
            # The released code takes all of the head's classes; others, those that the set has images of.
            first, second = (scores, few) if self.protocol == "paper" else (few, scores)
            suffix = f"_{len(among)}_classes" if self.protocol == "paper" else "_all_classes"
            scores = first | {name + suffix: value for name, value in second.items()}
        result = self.record(
            task,
            protocol,
            splits={"test": test.description()},
            selection={"rule": f"the head of {head_task.name}"},
            hyperparameters={},
            scores=scores,
            main_score=probe.main_score,
            seconds={"features": extracted - start, "head": time.perf_counter() - extracted},
            start=start,
            images_extracted=self.extractor.images_extracted - before,
        )
        self.save(result)
        return result

    def _head_task(self, task: Task) -> Task:
        found = self._tasks.get(task.head_of) or TASKS.get(task.head_of)
        if found is None or found.head_of is not None:
            raise TaskError(
                f"Task {task.name!r} reuses the head of {task.head_of!r}, which is not known as a task with a head of "
                "its own: name that task too."
            )
        return found

    @staticmethod
    def _reused_labels(task: Task, test: Split, classes: Labels) -> Labels:
        """Labels of the test images among the classes of another task's head, by name where both have names."""
        return read_labels(
            test.dataset,
            test.target_column,
            like=None if task.label_map is not None else classes,
            num_labels=len(classes.names),
            label_map=task.labels(),
            what=f"{task.name}, {test.name} split",
        )

    def _head_file(self, task: Task, protocol: Protocol) -> HeadFile:
        train, test = self.splits(task)
        origin = {
            "model": self.extractor.fingerprint,
            **self.backbone.description(),
            "train": train.fingerprint,
            "test": test.fingerprint,
            "labels": [task.target_column, task.num_labels, str(task.label_map)],
            "seed": self.seed,
            **asdict(protocol),
        }
        return HeadFile(self.output_dir / "heads" / f"{task.name}.{self.protocol}.safetensors", origin)

    # -- results ------------------------------------------------------------------------------------------------------
    def record(
        self,
        task: Task,
        protocol: Protocol,
        *,
        splits: dict[str, Any],
        selection: dict[str, Any],
        seconds: dict[str, float],
        start: float,
        images_extracted: int,
        **fields: Any,
    ) -> EvaluationResult:
        """A result with what every result says of model, task, protocol and environment."""
        return EvaluationResult(
            model={
                "name": self.backbone.name,
                "revision": self.backbone.revision,
                "fingerprint": self.extractor.fingerprint,
                "parameters": self.backbone.num_parameters,
                **self.backbone.description(),
            },
            task=asdict(task) | {"splits": splits, **self.limits},
            protocol=asdict(protocol) | {"selected": selection},
            seed=self.seed,
            seconds=seconds | {"total": time.perf_counter() - start, "images_extracted": images_extracted},
            environment=versions() | {"processes": self.state.num_processes, "device": str(self.backbone.device.type)},
            **fields,
        )

    def save(self, result: EvaluationResult, folder: Path | None = None) -> None:
        """Writes a result, once, into `output_dir` or another folder.

        Options other than the protocol's own become part of the file's name, so that no result is written over one
        that was made in another way.
        """
        changed = {name: value for name, value in self.limits.items() if value is not None} | self.options
        changed |= {"seed": self.seed} if self.seed else {}
        if self.backbone.layer != self.backbone.backbone.num_blocks - 1:
            changed["layer"] = self.backbone.layer
        if self.backbone.pooling == "mean" and "cls" in self.backbone.backbone.prefix:
            changed["pooling"] = "mean"
        way = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:6] if changed else None
        name = ".".join(filter(None, (result.task["name"], self.protocol, way, "json")))
        if self.state.is_main_process:
            result.save((folder or self.output_dir) / name)
