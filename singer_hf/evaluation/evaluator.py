"""Linear evaluation of one frozen backbone: a task in, a result out."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor

from ..metrics import TopKAccuracy
from ..provenance import versions
from ..scores import knn_votes
from .extraction import Extractor
from .fit import fit_head, score_heads
from .frozen import FrozenBackbone
from .head_data import HeadData, PooledData, TokenData
from .head_file import HeadFile
from .heads import LinearHeads
from .labels import Labels, read_labels, read_split_labels
from .probes import ClassificationProbe, DepthProbe, Probe, SegmentationProbe
from .protocol import Protocol, protocol_for
from .result import EvaluationResult
from .splits import Split, load_splits
from .task import TASKS, Task, TaskError
from .views import annotated_views, image_views


@dataclass
class _Prepared:
    """A task's features and the probe that is trained on them. `plain`: training images as test images are seen."""

    probe: Probe
    train: HeadData
    test: HeadData
    plain: HeadData | None = None
    labels: Labels | None = None


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
        output_dir: results go to `<output_dir>/<task>.<protocol>.json`, heads to `<output_dir>/heads`.
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
        self.limits = {"max_train_images": max_train_images, "max_test_images": max_test_images}

    def run(self, task: Task) -> EvaluationResult:
        """Evaluates and writes the result; in every process.

        Raises:
            DataError, TaskError: what is wrong with the images, their annotation or the task's description.
            CacheError: the features cannot be kept.
            DivergedError: no learning rate of the grid was low enough.
        """
        start = time.perf_counter()
        before = self.extractor.images_extracted
        self._tasks[task.name] = task
        protocol = self.protocol_for(task.kind)
        train, test = load_splits(task, paper=self.protocol == "paper", seed=self.seed, **self.limits)
        if task.head_of is not None:
            return self._run_reused(task, test, protocol, start)
        prepared = self._prepare(task, train, test, protocol)
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
                self._head_file(task.name, protocol).save(fit.head, prepared.labels.names)
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

    def protocol_for(self, kind: str) -> Protocol:
        """The protocol of a kind of task, with the options of this evaluator."""
        options = dict(self.options)
        if kind == "classification":
            options.pop("pixels", None)
        return protocol_for(self.protocol, kind).with_options(**options)

    # -- features -----------------------------------------------------------------------------------------------------
    def _prepare(self, task: Task, train: Split, test: Split, protocol: Protocol) -> _Prepared:
        augmented = protocol.views > 0
        if task.kind == "classification":
            labels, test_labels = read_split_labels(task, train, test)
            features = self._pooled(train, labels.values, protocol, augmented)
            plain = None if augmented else features
            if augmented and (self.knn_neighbors or protocol.selection == "validation"):
                plain = self._pooled(train, labels.values, protocol, False)
            return _Prepared(
                ClassificationProbe(len(labels.names)),
                train=features,
                plain=plain,
                test=self._pooled(test, test_labels.values, protocol, False),
                labels=labels,
            )
        grid = self.backbone.grid
        if task.kind == "segmentation":
            probe = SegmentationProbe(task.num_labels, grid)
        else:
            probe = DepthProbe(task.max_depth, grid)
        with_plain = augmented and protocol.selection == "validation"
        return _Prepared(
            probe,
            train=self._tokens(train, task, protocol, augmented),
            plain=self._tokens(train, task, protocol, False) if with_plain else None,
            test=self._tokens(test, task, protocol, False),
        )

    def _pooled(self, split: Split, labels: Tensor, protocol: Protocol, augmented: bool) -> PooledData:
        views = image_views(self.backbone.input_size, protocol, augmented=augmented, seed=self.seed)
        features = self.extractor.pooled(split, views).all("pooled")
        device = self.backbone.device
        if device.type != "cuda" or features.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
            features = features.to(device)
        return PooledData(features, labels.to(device), torch.arange(len(labels)), self.seed, device)

    def _tokens(self, split: Split, task: Task, protocol: Protocol, augmented: bool) -> TokenData:
        views = annotated_views(self.backbone.input_size, protocol, augmented=augmented, seed=self.seed)
        features = self.extractor.tokens(split, views, task)
        return TokenData(
            features,
            torch.arange(features.num_images),
            self.seed,
            self.backbone.device,
            with_cls=task.kind == "depth" and "cls" in self.backbone.backbone.prefix,
            pixels=protocol.pixels,
        )

    # -- scores -------------------------------------------------------------------------------------------------------
    def score(self, probe: Probe, head: LinearHeads, test: HeadData) -> dict[str, Any]:
        """Scores of one head on the test images, of which each process takes its part; the same in every process."""
        own = test.subset(test.rows[self.state.process_index :: self.state.num_processes])
        return self._shared(
            score_heads(probe, head, own, 256 if isinstance(own, PooledData) else 16, **self._processes())[0]
        )

    def _knn(self, prepared: _Prepared) -> float:
        bank, labels = prepared.plain.features[0], prepared.plain.targets
        own = prepared.test.rows[self.state.process_index :: self.state.num_processes]
        queries = prepared.test.features[0][own.to(bank.device)]
        votes = knn_votes(queries, bank, labels, prepared.probe.num_outputs, neighbors=self.knn_neighbors)
        metric = TopKAccuracy((1,), **self._processes())
        metric.add_batch(predictions=votes, references=prepared.test.targets[own.to(bank.device)])
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
        }

    def _shared(self, value: Any) -> Any:
        """The main process's value, in every process."""
        held = [value]
        if self.state.num_processes > 1:
            broadcast_object_list(held)
        return held[0]

    # -- a head of another task ---------------------------------------------------------------------------------------
    def _run_reused(self, task: Task, test: Split, protocol: Protocol, start: float) -> EvaluationResult:
        before = self.extractor.images_extracted
        file = self._head_file(task.head_of, protocol)
        if not file.is_valid():
            head_task = self._tasks.get(task.head_of) or TASKS.get(task.head_of)
            if head_task is None:
                raise TaskError(f"Task {task.name!r} reuses the head of {task.head_of!r}, which is not known.")
            self.run(head_task)
        head, names = file.load(self.backbone.device)
        probe = ClassificationProbe(len(names))
        label_map = task.labels()
        what = f"{task.name}, {test.name} split"
        labels = read_labels(
            test.dataset, test.target_column, num_labels=len(names), label_map=label_map, what=what
        ).values
        data = self._pooled(test, labels, protocol, False)
        extracted = time.perf_counter()
        scores = self.score(probe, head, data)
        if label_map is not None:
            among = sorted(set(label_map.values()))
            few = self.score(probe, head.restricted(among), data)
            # The released code takes all of the head's classes; others, those that the set has images of.
            first, second = (scores, few) if self.protocol == "paper" else (few, scores)
            suffix = f"_{len(among)}_classes" if self.protocol == "paper" else "_all_classes"
            scores = first | {name + suffix: value for name, value in second.items()}
        result = self.record(
            task,
            protocol,
            splits={"test": test.description()},
            selection={"rule": f"the head of {task.head_of}"},
            hyperparameters={},
            scores=scores,
            main_score=probe.main_score,
            seconds={"features": extracted - start, "head": time.perf_counter() - extracted},
            start=start,
            images_extracted=self.extractor.images_extracted - before,
        )
        self.save(result)
        return result

    def _head_file(self, task_name: str, protocol: Protocol) -> HeadFile:
        limits = {name: limit for name, limit in self.limits.items() if limit is not None}
        origin = {"model": self.extractor.fingerprint, **self.backbone.description(), "seed": self.seed, **limits}
        path = self.output_dir / "heads" / f"{task_name}.{self.protocol}.safetensors"
        return HeadFile(path, origin | asdict(protocol))

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
            task=asdict(task) | {"splits": splits},
            protocol=asdict(protocol) | {"selected": selection},
            seed=self.seed,
            seconds=seconds | {"total": time.perf_counter() - start, "images_extracted": images_extracted},
            environment=versions() | {"processes": self.state.num_processes, "device": str(self.backbone.device.type)},
            **fields,
        )

    def save(self, result: EvaluationResult, folder: Path | None = None) -> None:
        """Writes a result, once, into `output_dir` or another folder."""
        if self.state.is_main_process:
            result.save((folder or self.output_dir) / f"{result.task['name']}.{self.protocol}.json")
