"""Distills a large ViT into a small one.

    accelerate launch examples/distill.py
        without arguments: everything on scikit-learn's digits, no network needed (see digits_demo.py)

    accelerate launch examples/distill.py --teacher google/vit-large-patch16-224 --student tiny \
        --dataset ./images --output_dir runs/vit-l-to-t

    accelerate launch examples/distill.py --config examples/configs/vit_l_to_vit_t.yaml --dataset ILSVRC/imagenet-1k

    accelerate launch examples/distill.py --config runs/vit-l-to-t/run.json
        an earlier run again, from the start

A config file holds any of the options below, or is the run.json of a run; options on the command line win over it.
"""

from __future__ import annotations

import sys
from pathlib import Path

if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.append(sys.path.pop(0))  # evaluate.py stands beside this file, see there

import json
import logging
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Optional

import torch
from transformers import EarlyStoppingCallback, set_seed

from singer_hf import (
    STUDENT_SIZES,
    DistillationArguments,
    DistillationTrainer,
    NullspaceLoraConfig,
    RunRecord,
    build_student,
    estimate_run,
    load_vision_model,
)
from singer_hf.command_line import errors_in_one_line, parse_options, setup
from singer_hf.data import find_processor, in_memory, load_images
from singer_hf.data.errors import DataError, DataWorkerError
from singer_hf.objectives import objective_class

FAULTS = (DataError, DataWorkerError, FloatingPointError, MemoryError, torch.OutOfMemoryError)
"""What ends a training without being a bug, beside files and checkpoints that cannot be read or written."""


@dataclass
class ScriptArguments:
    """Models, data and adapter of a run."""

    teacher: Optional[str] = field(default=None, metadata={"help": "Teacher: Hub id (timm's too) or local folder."})
    teacher_revision: Optional[str] = field(default=None, metadata={"help": "Branch, tag or commit of the teacher."})
    teacher_dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Precision of the teacher's weights."}
    )
    student: Optional[str] = field(
        default=None,
        metadata={
            "help": f"{', '.join(STUDENT_SIZES)}: from scratch in the teacher's family; else Hub id or folder. "
            "Default: tiny."
        },
    )
    student_revision: Optional[str] = field(default=None, metadata={"help": "Branch, tag or commit of the student."})
    dataset: Optional[str] = field(
        default=None, metadata={"help": "Images: Hub id, image folder, parquet file, folder or glob."}
    )
    dataset_config: Optional[str] = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_revision: Optional[str] = field(default=None, metadata={"help": "Branch, tag or commit of a Hub dataset."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_dataset: Optional[str] = field(
        default=None, metadata={"help": "Held-out images, where they are not a split of dataset."}
    )
    eval_split: Optional[str] = field(
        default=None, metadata={"help": "Held-out split; needed for eval_strategy, best checkpoint, early stopping."}
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Stream dataset without a copy; needs max_steps, and with an eval_split of it max_eval_samples. "
            "An eval_dataset is loaded whole."
        },
    )
    max_train_samples: Optional[int] = field(default=None, metadata={"help": "Use only so many training images."})
    max_eval_samples: Optional[int] = field(
        default=None,
        metadata={"help": "Use only so many held-out images, evenly spaced; of a streamed dataset the first."},
    )
    lora_r: int = field(default=64, metadata={"help": "Rank r of the adapter (paper: 64)."})
    lora_alpha: Optional[int] = field(default=None, metadata={"help": "Scale of the adapter; default: r."})
    init_lora_weights: Optional[str] = field(
        default=None,
        metadata={"help": "nullspace, random or reference; default: what the objective goes with."},
    )
    fold_layer_norm: bool = field(
        default=False, metadata={"help": "Fold LayerNorm's scale and LayerScale into the nullspace's surrogate."}
    )
    early_stopping_patience: Optional[int] = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better metric_for_best_model."}
    )
    dry_run: bool = field(
        default=False, metadata={"help": "Print layer mapping, parameters, memory and time of the run, and stop."}
    )


def parse_arguments(
    argv: list[str], defaults: dict[str, Any] | None = None
) -> tuple[ScriptArguments, DistillationArguments]:
    """Options from the command line, over a `--config` file's, over `defaults`, over the classes' own."""
    script, args, *_ = parse_options(
        (ScriptArguments, DistillationArguments), argv, description=__doc__, defaults=defaults
    )
    return script, args


def load_data(script: ScriptArguments, max_steps: int):
    """Training images and, where an evaluation split is named, held-out ones."""
    if script.streaming and max_steps <= 0:
        raise ValueError("--streaming needs --max_steps: a stream has no length.")
    train = load_images(
        script.dataset,
        split=script.train_split,
        config_name=script.dataset_config,
        revision=script.dataset_revision,
        streaming=script.streaming,
        max_samples=script.max_train_samples,
    )
    if script.eval_split is None and script.eval_dataset is None:
        return train, None
    same = script.eval_dataset is None
    streamed = same and script.streaming  # preparing one split would download them all
    if streamed and script.max_eval_samples is None:
        raise ValueError(
            "--streaming with --eval_split needs --max_eval_samples: so many images of the split are read before the "
            "first step and kept in memory, still encoded. Or name a dataset of its own by --eval_dataset."
        )
    held_out = load_images(
        script.dataset if same else script.eval_dataset,
        split=script.eval_split or script.train_split,
        config_name=script.dataset_config if same else None,
        revision=script.dataset_revision if same else None,
        streaming=streamed,
        max_samples=script.max_eval_samples,
    )
    return train, in_memory(held_out) if streamed else held_out


def build_trainer(script: ScriptArguments, args: DistillationArguments) -> DistillationTrainer:
    """Models, data and trainer of a run."""
    set_seed(args.seed)
    teacher = load_vision_model(
        script.teacher, image_size=args.image_size, revision=script.teacher_revision, dtype=script.teacher_dtype
    )
    teacher_processor = find_processor(script.teacher, teacher.config, revision=script.teacher_revision)
    if script.student is None or script.student in STUDENT_SIZES:
        student = build_student(teacher.config, script.student or "tiny", image_size=args.image_size)
        student_processor = teacher_processor
    else:
        if "/" not in script.student and not Path(script.student).exists():
            sizes = ", ".join(STUDENT_SIZES)
            raise ValueError(f"--student {script.student}: expected {sizes}, a folder that exists, or owner/name.")
        student = load_vision_model(
            script.student, image_size=args.image_size, revision=script.student_revision, dtype="float32"
        )
        student_processor = find_processor(script.student, student.config, revision=script.student_revision)
    with args.main_process_first(desc="preparing the data"):  # the others read its cache
        train, held_out = load_data(script, args.max_steps)
    callbacks = []
    if script.early_stopping_patience is not None:
        if args.metric_for_best_model is None or args.eval_strategy == "no" or held_out is None:
            raise ValueError(
                "--early_stopping_patience needs --metric_for_best_model, --eval_strategy and held-out images "
                "(--eval_split or --eval_dataset)."
            )
        callbacks.append(EarlyStoppingCallback(script.early_stopping_patience))
    return DistillationTrainer(
        student,
        teacher,
        args,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=student_processor,
        teacher_processing_class=teacher_processor,
        peft_config=adapter_config(script, args),
        record=RunRecord(args, "distill.py", script),
        callbacks=callbacks,
    )


def adapter_config(script: ScriptArguments, args: DistillationArguments) -> NullspaceLoraConfig | None:
    """The adapter that the options describe, `None` where the objective uses none."""
    objective = objective_class(args.objective)
    if not objective.uses_adapter:
        return None
    return NullspaceLoraConfig(
        r=script.lora_r,
        lora_alpha=script.lora_alpha,
        layers_to_transform=args.teacher_layers,
        init_lora_weights=script.init_lora_weights or objective.default_init_lora_weights,
        init_seed=args.seed,
        fold_layer_norm=script.fold_layer_norm,
    )


def check_demo_options(script: ScriptArguments, args: DistillationArguments) -> None:
    """Stops where options were given that the demonstration, with models and images of its own, does not read."""
    read = {"lora_r", "lora_alpha", "init_lora_weights", "fold_layer_norm", "dry_run"}
    unread = [f.name for f in fields(script) if f.name not in read and getattr(script, f.name) != f.default]
    unread += [name for name in ("resume_from_checkpoint", "push_to_hub", "image_size") if getattr(args, name)]
    unread += ["normalization"] if args.normalization != "own" else []
    if unread:
        raise SystemExit(
            f"--teacher and --dataset are missing. Without them the demonstration runs, which does not read "
            f"{', '.join('--' + name for name in unread)}."
        )


def main(argv: list[str] | None = None) -> None:
    with errors_in_one_line():
        run(sys.argv[1:] if argv is None else argv)


def run(argv: list[str]) -> None:
    with setup():
        script, args = parse_arguments(argv)
    logging.basicConfig()
    logging.getLogger("singer_hf").setLevel(args.get_process_log_level())
    if script.teacher is None and script.dataset is None:
        from digits_demo import DEMO_OPTIONS, run_demo

        check_demo_options(script, args)
        options = parse_arguments(argv, DEMO_OPTIONS)
        with setup(*FAULTS, only=True):
            run_demo(*options, adapter_config)
        return
    if script.teacher is None or script.dataset is None:
        missing = "--teacher" if script.teacher is None else "--dataset"
        raise SystemExit(f"{missing} is missing. Without teacher and dataset, the demonstration runs.")
    errors = FAULTS
    if args.push_to_hub:
        from singer_hf.release import PublishError  # late: it imports the evaluation, which a training does without

        errors += (PublishError,)
    with setup(*errors):
        trainer = build_trainer(script, args)
    if script.dry_run:
        if trainer.is_world_process_zero():
            print(estimate_run(trainer))
        return
    resume = args.resume_from_checkpoint
    if resume is not None and resume.lower() in ("true", "false"):  # true: the newest checkpoint in output_dir
        resume = resume.lower() == "true"
    with setup(*errors, only=True):
        train(trainer, resume)


def train(trainer: DistillationTrainer, resume: str | bool | None) -> None:
    """Trains, evaluates, and writes or publishes what came of it."""
    result = trainer.train(resume_from_checkpoint=resume)
    trainer.save_state()
    trainer.save_model()  # with push_to_hub it is published too
    metrics = result.metrics
    if trainer.eval_dataset is not None:
        metrics |= trainer.evaluate()
    trainer.log_metrics("all", metrics)
    if trainer.is_world_process_zero():
        Path(trainer.args.output_dir, "metrics.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")
        print(f"Student, image processor and what was trained beside them: {trainer.args.output_dir}")
    if trainer.args.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    main()
