"""Evaluates frozen vision backbones by linear heads on their features: the paper's Table 1, or your own images.

    accelerate launch examples/evaluate.py --model facebook/dinov2-small --tasks pets flowers102
    accelerate launch examples/evaluate.py --model runs/vit-l-to-t --tasks paper --protocol paper
    accelerate launch examples/evaluate.py --model runs/vit-l-to-t --kind classification --dataset ./my_images
    accelerate launch examples/evaluate.py --model runs/vit-l-to-t --tasks my_task.yaml
    accelerate launch examples/evaluate.py --model runs/vit-l-to-t --tasks pets --export_classifier runs/pets

Results go to `<output_dir>/<model>/<task>.<protocol>.json`; examples/compare.py puts several side by side. Features
are kept in `--cache_dir` and used again. A config file holds any of the options below; the command line wins over it.
"""

from __future__ import annotations

import sys
from pathlib import Path

if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    # Python looks for modules beside its script first, where this file would stand for the library `evaluate`.
    sys.path.append(sys.path.pop(0))

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import Optional

import torch
from accelerate import PartialState

from singer_hf.command_line import errors_in_one_line, parse_options, setup
from singer_hf.data import DataError, split_names
from singer_hf.evaluation import (
    GROUPS,
    PROTOCOLS,
    TASKS,
    EvaluationResult,
    Extractor,
    FrozenBackbone,
    LinearEvaluator,
    Task,
    resolve_tasks,
)
from singer_hf.evaluation.cache import DEFAULT_CACHE
from singer_hf.evaluation.export import ExportError, export_classifier
from singer_hf.evaluation.frozen import POOLINGS, PRECISIONS
from singer_hf.evaluation.table import results_table
from singer_hf.evaluation.task import KINDS, TaskError
from singer_hf.preflight import check_launch


@dataclass
class EvaluationArguments:
    """What is evaluated, on what, and how."""

    model: Optional[list[str]] = field(default=None, metadata={"help": "Hub ids (timm's too) or local folders."})
    model_revision: Optional[str] = field(default=None, metadata={"help": "Branch, tag or commit of the model."})
    adapter: Optional[str] = field(
        default=None, metadata={"help": "Hub id or folder of a PEFT adapter: the refined teacher is evaluated."}
    )
    image_processor: Optional[str] = field(
        default=None, metadata={"help": "Hub id or folder of another model's processor, for a model without one."}
    )
    dataset_of: Optional[list[str]] = field(
        default=None,
        metadata={"help": "NAME=IMAGES, for tasks among several: other images than the registry's, or your own copy."},
    )
    tasks: Optional[list[str]] = field(
        default=None,
        metadata={
            "help": f"Tasks ({', '.join(TASKS)}), groups ({', '.join(GROUPS)}) or YAML files, one a task, with "
            "the fields of examples/tasks/camvid.yaml or any option from kind to max_depth."
        },
    )

    # -- a task of your own, or changes to the one that tasks names --------------------------------------------------
    kind: Optional[str] = field(
        default=None, metadata={"help": f"A task from these options alone: {', '.join(KINDS)}.", "choices": KINDS}
    )
    dataset: Optional[str] = field(
        default=None, metadata={"help": "Images: Hub id, image folder, parquet file, folder or glob."}
    )
    config_name: Optional[str] = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    revision: Optional[str] = field(default=None, metadata={"help": "Branch, tag or commit of a Hub dataset."})
    train_split: Optional[str] = field(default=None, metadata={"help": "Split to train the head on (train)."})
    test_split: Optional[str] = field(
        default=None,
        metadata={"help": "Split that is reported (test); of a set of one split a fifth is held out."},
    )
    test_dataset: Optional[str] = field(
        default=None, metadata={"help": "Test images where they are no split of dataset."}
    )
    image_column: Optional[str] = field(default=None, metadata={"help": "Default: image, or the only one of images."})
    target_column: Optional[str] = field(
        default=None, metadata={"help": "Labels, masks or depth maps. Default: found by type, annotation, depth."}
    )
    num_labels: Optional[int] = field(default=None, metadata={"help": "Classes; needed for segmentation."})
    ignore_label: Optional[int] = field(default=None, metadata={"help": "Mask value of pixels without a class."})
    reduce_labels: Optional[bool] = field(
        default=None, metadata={"help": "Mask value 0 is no class, and class c is stored as c + 1."}
    )
    depth_scale: Optional[float] = field(default=None, metadata={"help": "Metres of one stored unit of depth (1)."})
    max_depth: Optional[float] = field(default=None, metadata={"help": "Metres; the end of the last bin (10)."})

    # -- protocol -----------------------------------------------------------------------------------------------------
    protocol: str = field(
        default="default",
        metadata={
            "help": "default: hyper-parameters chosen on held-out training images, test images scored once; paper: "
            "the paper's, best epoch on the test images.",
            "choices": list(PROTOCOLS),
        },
    )
    epochs: Optional[list[int]] = field(default=None, metadata={"help": "Epochs of the heads, one or several."})
    learning_rates: Optional[list[float]] = field(default=None, metadata={"help": "Learning rates of the grid."})
    weight_decays: Optional[list[float]] = field(default=None, metadata={"help": "Weight decays of the grid."})
    momentum: Optional[float] = field(default=None, metadata={"help": "Momentum of SGD."})
    head_batch_size: Optional[int] = field(default=None, metadata={"help": "Images of a step of the heads."})
    views: Optional[int] = field(
        default=None,
        metadata={"help": "K: cached augmented views of each training image (paper: 4; default: 0, none augmented)."},
    )
    pixels: Optional[int] = field(
        default=None,
        metadata={"help": "Dense tasks: pixels of an image a loss is taken at (default: 256; paper: all)."},
    )
    validation_fraction: Optional[float] = field(
        default=None, metadata={"help": "Share of the training images held out to choose hyper-parameters (0.1)."}
    )
    knn_neighbors: int = field(default=20, metadata={"help": "k of the k-NN accuracy (20, as DINO); 0: none."})

    # -- features -----------------------------------------------------------------------------------------------------
    layer: Optional[int] = field(default=None, metadata={"help": "Block whose output is the feature; default: last."})
    pooling: str = field(
        default="auto",
        metadata={
            "help": "Image feature: cls, mean of the patches, auto: CLS where there is one.",
            "choices": POOLINGS,
        },
    )
    image_size: Optional[int] = field(default=None, metadata={"help": "Side of the input; default: the processor's."})
    precision: str = field(
        default="auto",
        metadata={
            "help": "Of backbone and stored features; auto: bfloat16 on a GPU that has it, else float32.",
            "choices": ["auto", *PRECISIONS],
        },
    )
    cache_dir: str = field(
        default=str(DEFAULT_CACHE), metadata={"help": f"Folder of the features, used again ({DEFAULT_CACHE})."}
    )
    batch_size: int = field(default=64, metadata={"help": "Images of a forward pass, in each process."})
    num_workers: int = field(
        default=min(8, os.cpu_count() or 1), metadata={"help": "Processes that decode images, for each process."}
    )

    # -- run ----------------------------------------------------------------------------------------------------------
    output_dir: str = field(
        default="results", metadata={"help": "Folder of the results (results), with one a model; / becomes -- there."}
    )
    export_classifier: Optional[str] = field(
        default=None,
        metadata={
            "help": "Folder: for one model and one classification task, a classifier that pipelines run, with a head "
            "trained on its own head input (so that its accuracy is not the probe's). The result lies in it."
        },
    )
    max_train_images: Optional[int] = field(default=None, metadata={"help": "At most so many, evenly spaced."})
    max_test_images: Optional[int] = field(default=None, metadata={"help": "At most so many, evenly spaced."})
    seed: int = field(default=0, metadata={"help": "Of validation split, order of images and augmentation."})
    use_cpu: bool = field(default=False, metadata={"help": "Use no GPU."})
    disable_tqdm: bool = field(default=False, metadata={"help": "No progress bars."})
    debug: bool = field(default=False, metadata={"help": "Show where an error came from, not its message alone."})

    def __post_init__(self):
        for name in ("batch_size", "max_train_images", "max_test_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        unread = {"adapter": None, "layer": None, "pooling": "auto", "precision": "auto", "image_size": None}
        given = [f"--{name}" for name, default in unread.items() if getattr(self, name) != default]
        if self.export_classifier and given:
            raise ValueError(
                f"--export_classifier does not read {', '.join(given)}: a classifier has its own class's feature."
            )
        if self.export_classifier and self.output_dir != type(self).output_dir:
            raise ValueError("--export_classifier writes its result beside the classifier: leave --output_dir out.")
        for name in ("num_workers", "knn_neighbors"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")


_TASK_FIELDS = [name for name in (f.name for f in fields(Task)) if hasattr(EvaluationArguments, name)]
_PROTOCOL_FIELDS = ("epochs", "learning_rates", "weight_decays")


def tasks_of(args: EvaluationArguments) -> list[Task]:
    """The tasks that the options name or describe."""
    changes = {name: getattr(args, name) for name in _TASK_FIELDS if getattr(args, name) is not None}
    if args.kind is not None:
        if args.tasks:
            raise TaskError("--kind describes a task by options, --tasks names tasks: use one of them.")
        if args.dataset is None:
            raise TaskError("--kind needs --dataset, the images.")
        name = re.sub(r"[-_.]*[*?\[].*|[^\w.+-]", "", Path(args.dataset).stem) or args.kind
        return [Task(**({"name": name, "test_split": _test_split(args)} | changes))]
    if not args.tasks:
        raise TaskError("Name the tasks: --tasks (e.g. fg, or a YAML file), or --kind and --dataset for your own.")
    tasks = resolve_tasks(args.tasks)
    own = dict(part.partition("=")[::2] for part in args.dataset_of or ())
    unknown = sorted(own.keys() - {task.name for task in tasks})
    if unknown or not all(own.values()):
        raise TaskError(
            f"--dataset_of takes NAME=IMAGES with names of the tasks ({', '.join(task.name for task in tasks)}), got "
            f"{' '.join(args.dataset_of)}."
        )
    tasks = [task.with_options(dataset=own[task.name]) if task.name in own else task for task in tasks]
    if changes and len(tasks) > 1:
        raise TaskError(
            f"{', '.join('--' + name for name in changes)} would change each of {len(tasks)} tasks: name one task."
        )
    return [task.with_options(**changes) for task in tasks]


def _test_split(args: EvaluationArguments) -> str | None:
    """The dataset's test split; `None`, which holds images out, where it has one split in all."""
    if args.test_dataset is not None:
        return None
    names = split_names(args.dataset, revision=args.revision, config_name=args.config_name)
    if len(names) > 1 and "test" not in names and args.test_split is None:
        raise TaskError(f"{args.dataset} has the splits {', '.join(names)}: name one of them with --test_split.")
    return "test" if "test" in names and len(names) > 1 else None


def protocol_options(args: EvaluationArguments) -> dict:
    """Fields of the protocol that the options replace."""
    options = {
        "epochs": args.epochs and tuple(args.epochs),
        "learning_rates": args.learning_rates and tuple(args.learning_rates),
        "weight_decays": args.weight_decays and tuple(args.weight_decays),
        "momentum": args.momentum,
        "batch_size": args.head_batch_size,
        "views": args.views,
        "pixels": args.pixels,
        "validation_fraction": args.validation_fraction,
    }
    return {name: value for name, value in options.items() if value is not None}


def run(argv: list[str]) -> list[EvaluationResult]:
    with setup():
        (args, *_) = parse_options(EvaluationArguments, argv, description=__doc__)
        if not args.model:
            raise ValueError("--model is missing: Hub ids or folders of the models to evaluate.")
        tasks = tasks_of(args)
        if args.export_classifier and not (len(tasks) == len(args.model) == 1 and tasks[0].kind == "classification"):
            raise ValueError("--export_classifier makes one classifier: name one model and one classification task.")
        # A process that trains the heads alone keeps the others waiting longer than torch's 10 minutes.
        state = PartialState(cpu=args.use_cpu, timeout=timedelta(hours=12))
        check_launch(state.num_processes)
        if state.device.type == "cpu":  # accelerate's launcher leaves a process one thread
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // state.num_processes))
    logging.basicConfig()
    if args.debug:
        logging.getLogger("singer_hf").setLevel(logging.DEBUG)
    results: list[EvaluationResult] = []
    try:
        for model in args.model:
            for result in evaluate_model(model, tasks, args, state):
                results.append(result)
    finally:  # what was measured before an error is worth seeing
        if results and state.is_main_process:
            print(results_table(results))
            print(f"\nResults: {args.export_classifier or args.output_dir}")
    return results


def evaluate_model(
    model: str, tasks: list[Task], args: EvaluationArguments, state: PartialState
) -> Iterator[EvaluationResult]:
    """Results of one model, one after the other; all tasks are checked before the first is evaluated."""
    with setup():
        backbone = FrozenBackbone.load(
            model,
            revision=args.model_revision,
            adapter=args.adapter,
            image_processor=args.image_processor,
            image_size=args.image_size,
            device=state.device,
            precision=args.precision,
            layer=args.layer,
            pooling=args.pooling,
        )
        extractor = Extractor(
            backbone,
            cache_dir=args.cache_dir,
            state=state,
            batch_size=args.batch_size,
            num_workers=args.num_workers,
            progress=not args.disable_tqdm,
        )
        evaluator = LinearEvaluator(
            backbone,
            extractor,
            protocol=args.protocol,
            options=protocol_options(args),
            output_dir=Path(args.output_dir, backbone.slug),
            seed=args.seed,
            knn_neighbors=args.knn_neighbors,
            max_train_images=args.max_train_images,
            max_test_images=args.max_test_images,
        )
        with state.main_process_first():  # the others read its cache of the data
            for task in tasks:
                evaluator.check(task)
    for task in tasks:
        # Not ValueError, which may be a bug: the options were checked above.
        with setup(DataError, TaskError, ExportError, FloatingPointError, ImportError, only=True):
            if args.export_classifier:
                result = export_classifier(evaluator, task, model, args.export_classifier)
            else:
                result = evaluator.run(task)
        yield result


def main(argv: list[str] | None = None) -> None:
    with errors_in_one_line():
        run(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    main()
