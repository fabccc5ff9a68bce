"""What examples/distill.py does without arguments: SiNGER beside FitNet on scikit-learn's digits, in minutes on a CPU.

A small teacher is trained on the spot and given high-norm artifacts on purpose (see digits_world.py), distilled by
both objectives under the same options, and all models go through the same linear probe. The output folder:

    metrics.json                  every number below, with options, seed, versions and commit
    train.parquet, test.parquet   the images, e.g. for examples/diagnose.py and examples/evaluate.py
    patch_norms.png               the teacher's patch norms before and after refinement, and where in an image they are
    teacher/                      the teacher with the planted artifacts
    singer/, fitnet/              the students, each with its image processor; singer/adapter/: the teacher's adapter
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from digits_world import digits_datasets, linear_probe, new_teacher, pixels_and_labels, train_teacher
from torch import nn
from transformers import ViTImageProcessor

from singer_hf import (
    DistillationArguments,
    DistillationTrainer,
    StudentSize,
    build_student,
    estimate_run,
    vision_backbone,
)
from singer_hf.artifacts import peak_to_median
from singer_hf.losses import patch_norms
from singer_hf.planting import norm_profile
from singer_hf.plots import NormPanel, patch_norms_figure
from singer_hf.records.provenance import versions

STUDENT = StudentSize(hidden_size=64, num_hidden_layers=4, num_attention_heads=4)

DEMO_OPTIONS = {
    "output_dir": "runs/digits",
    "num_train_epochs": 15,
    "learning_rate": 4e-3,  # few steps, small models
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 256,
    "label_column": "label",
    "min_crop_scale": 0.5,  # of 8x8 digits scaled up, a crop of 8 % shows nothing
    "flip_probability": 0.0,  # a mirrored digit is another sign
    "lora_r": 16,  # of the teacher's width of 96
    "logging_steps": 100,
    "save_strategy": "no",
    "report_to": "none",
}
"""The paper's recipe but for these. Options on the command line win over them."""


def run_demo(script: Any, args: DistillationArguments, adapter_config: Callable) -> dict[str, Any]:
    """Teacher, students, probe, picture and table; returns what it writes to metrics.json.

    Args:
        script: the script's options; the adapter's (`lora_r`, …) and `dry_run` are read.
        args: training options. `args.objective` is run, and FitNet beside it.
        adapter_config: the script's, from options to the adapter's configuration.
    """
    start = time.perf_counter()
    torch.set_num_threads(max(1, os.cpu_count() // args.world_size))  # accelerate's launcher leaves a process one
    datasets.disable_progress_bars()
    train, test = digits_datasets()
    if script.dry_run:
        teacher, processor = new_teacher(train.features["label"].names)
        print(estimate_run(_trainer(args, adapter_config(script, args), teacher, processor, train, test)))
        return {}
    show, folder = args.process_index == 0, Path(args.output_dir)
    if show:
        again = " (over an earlier run's)" if (folder / "metrics.json").exists() else ""
        print(f"Everything goes to {folder}{again}.\nTeacher: a small ViT, trained, then given artifacts on purpose.")
    teacher, processor, report = train_teacher(train, test, seed=args.seed, progress=show and not args.disable_tqdm)
    teacher.config.name_or_path = str(folder / "teacher")  # recorded with the adapter as the model that it is for
    if show:
        teacher.save_pretrained(folder / "teacher")
        processor.save_pretrained(folder / "teacher")
    rows = {"teacher": _measure(teacher, processor, train, test)}
    panels: list[NormPanel] = []
    for objective in dict.fromkeys((args.objective, "fitnet")):
        own = copy.copy(args)
        own.objective, own.output_dir = objective, str(folder / objective)
        # Without its head, so that the adapter fits what AutoModel loads.
        trainer = _trainer(own, adapter_config(script, own), copy.deepcopy(teacher.vit), processor, train, test)
        if "student, untrained" not in rows:
            rows["student, untrained"] = _measure(trainer.student, processor, train, test) | trainer.evaluate()
        if show:
            print(f"\nStudent: distilled by {objective}.")
        trainer.train()
        trainer.save_model()
        rows[f"student, {objective}"] = _measure(trainer.student, processor, train, test) | trainer.evaluate()
        if trainer.model.objective.uses_adapter:
            panels = _norm_panels(trainer, test, processor)
    metrics = {
        "models": rows,
        "refinement": {panel.title: _peaks(panel) for panel in panels},
        "teacher": report,
        "test_images": len(test),
        "options": json.loads(args.to_json_string()) | vars(script),
        "versions": versions(),
        "seconds": time.perf_counter() - start,
    }
    if show:
        train.to_parquet(folder / "train.parquet")
        test.to_parquet(folder / "test.parquet")
        _write(folder, metrics, panels, test)
        print(_table(metrics, folder))
    return metrics


def _trainer(args: DistillationArguments, adapter, teacher, processor, train, test) -> DistillationTrainer:
    transformers.set_seed(args.seed)  # so that all students start from the same weights
    return DistillationTrainer(
        build_student(teacher.config, STUDENT),
        teacher,
        args,
        train_dataset=train,
        eval_dataset=test,
        processing_class=processor,
        teacher_processing_class=processor,
        peft_config=adapter,
    )


def _measure(model: nn.Module, processor: ViTImageProcessor, train, test) -> dict[str, Any]:
    pixels, _ = pixels_and_labels(test, processor)
    return {
        "blocks": vision_backbone(model).num_blocks,
        "parameters": sum(p.numel() for p in model.parameters()),
        "probe": linear_probe(model, processor, train, test),
        "largest_to_median": norm_profile(model, pixels).largest_to_median[-1],
    }


@torch.no_grad()
def _norm_panels(trainer: DistillationTrainer, test, processor: ViTImageProcessor) -> list[NormPanel]:
    """‖F‖ and ‖F̂‖ of every distilled layer on the test images."""
    pixels, _ = pixels_and_labels(test, processor)
    objective = trainer.model.objective
    backbone = objective.teacher
    features = backbone.features(pixels.to(trainer.args.device), objective.teacher_layers, adapters=False)
    panels = []
    for layer, hidden in features.hidden.items():
        before, after = (
            patch_norms(tokens[:, backbone.num_prefix_tokens :])
            for tokens in (hidden, objective.refine(layer, hidden))
        )
        panels.append(NormPanel(f"teacher block {layer}", before, after, features.layout.grid))
    return panels


def _peaks(panel: NormPanel) -> dict[str, float]:
    """Largest over median patch norm of an image, mean over images, before and after."""
    return {"before": peak_to_median(panel.before).item(), "after": peak_to_median(panel.after).item()}


def _write(folder: Path, metrics: dict[str, Any], panels: list[NormPanel], test) -> None:
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")
    if panels:
        drawn = [replace(panel, before=panel.before[:100], after=panel.after[:100]) for panel in panels]
        images = np.stack([np.asarray(image) for image in test[:3]["image"]])
        title = "Patch norms of the teacher's features, artifacts planted on purpose"
        patch_norms_figure(drawn, images, title=title).savefig(folder / "patch_norms.png")


def _table(metrics: dict[str, Any], folder: Path) -> str:
    columns = ("blocks", "params", "probe, patches", "probe, CLS", "Gram distance", "largest/median")
    lines = ["", " " * 24 + "".join(f"{name:>16}" for name in columns)]
    for name, row in metrics["models"].items():
        cells = (
            f"{row['blocks']}",
            f"{row['parameters']:,}",
            f"{row['probe']['patches']:.1%}",
            f"{row['probe']['cls']:.1%}",
            f"{row['eval_gram_distance']:.3f}" if "eval_gram_distance" in row else "-",
            f"{row['largest_to_median']:.2f}",
        )
        lines.append(f"{name:<24}" + "".join(f"{cell:>16}" for cell in cells))
    count = metrics["test_images"]
    error = math.sqrt(0.9 * 0.1 / count)
    lines += [
        "",
        f"probe           test accuracy of a linear probe on frozen features of the last block; {count} test images,",
        f"                so ±{error:.1%} at 90 %. Digits are easy: features of an untrained ViT do well too.",
        "Gram distance   between patch similarities of student and teacher, last blocks; lower is closer",
        "largest/median  patch norms of the last block, mean over test images",
        "",
    ]
    for title, peaks in metrics["refinement"].items():
        lines.append(f"{title}: largest/median {peaks['before']:.2f}, refined {peaks['after']:.2f}")
    lines.append(f"\nDone in {metrics['seconds']:.0f} s. Students, adapter, metrics.json, patch_norms.png: {folder}")
    return "\n".join(lines)
