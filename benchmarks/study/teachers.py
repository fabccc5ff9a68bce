"""The study's teachers: one network as trained, and the same with artifacts planted, tuned for as long."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from classifier import accuracy, new_classifier, train_classifier
from grid import Grid
from transformers import ViTForImageClassification, ViTImageProcessor

from singer_hf.data import DistillationDataset, PixelNormalization, eval_transform, load_images
from singer_hf.planting import norm_profile, plant_artifacts
from singer_hf.records.provenance import versions

REPORT = "teachers.json"


def prepare_teachers(grid: Grid, folder: Path, results: Path, device: torch.device | str) -> None:
    """Trains the network once, plants, tunes and writes each teacher to `folder / name`, unless it is there.

    A teacher's options are those of [`plant_artifacts`]; `null` for the one without. All are tuned behind the planted
    block for equally long. `teachers.json` says how they came out, in `folder` and among the results. The place of
    artifacts is fitted to background patches of test images, without their labels.

    Raises:
        ValueError: the folder holds teachers of another setting, or those of the recorded results came out otherwise.
    """
    own, setting = _read(folder / REPORT), grid.setting | {"teachers": grid.teachers}
    if own.setdefault("setting", setting) != setting:
        raise ValueError(
            f"{folder} holds images and teachers of another setting than the grid's: name another --work."
        )
    missing = [name for name in grid.teachers if name not in own or not (folder / name / "config.json").exists()]
    if missing:
        _train(grid, missing, folder, own, device)
    results.mkdir(parents=True, exist_ok=True)
    recorded = _read(results / REPORT)
    for name in ("as_trained", *grid.teachers):
        check_same(name, recorded.get(name, own[name]), own[name], results / REPORT)
    _write(results / REPORT, {name: value for name, value in own.items() if name != "setting"} | recorded)


def _train(grid: Grid, missing: list[str], folder: Path, own: dict[str, Any], device: torch.device | str) -> None:
    """Trains what is missing, and takes down in `own`, and in its file, how each came out."""
    train, test = (load_images(str(folder / f"{split}.parquet"), split="train") for split in ("train", "test"))
    options = dict(grid.teacher)
    block, epochs, tuning = options.pop("planted_block"), options.pop("epochs"), options.pop("tuning")
    sizes, training = options.pop("sizes"), options | {"seed": 0, "device": device}
    trained = folder / "as_trained"
    own |= {"versions": versions(), "images": {"train": len(train), "test": len(test)}}
    if (trained / "config.json").exists():
        network = ViTForImageClassification.from_pretrained(trained)
        processor = ViTImageProcessor.from_pretrained(trained)
    else:
        network, processor = new_classifier(sizes, train.features["label"].names, seed=0)
        own["cross_entropy_of_epochs"] = train_classifier(network, processor, train, epochs=epochs, **training)
        _save(network, processor, trained)
    pixels = _pixels(test, processor, 500)
    own["as_trained"] = _measured(network, processor, test, pixels, device)
    for name in missing:
        planting = grid.teachers[name]
        model = copy.deepcopy(network).to("cpu")
        found = None if planting is None else plant_artifacts(model, pixels, block=block, **planting)
        model.requires_grad_(False)
        for part in (*model.vit.layers[block + 1 :], model.vit.layernorm, model.classifier):
            part.requires_grad_(True)
        train_classifier(model, processor, train, **(training | tuning))
        own[name] = _measured(model, processor, test, pixels, device)
        if found is not None:
            own[name]["planting"] = {"fired_share": found.fired_share, "block": found.block}
        _write(folder / REPORT, own)
        _save(model, processor, folder / name)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _write(path: Path, report: dict[str, Any]) -> None:
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def check_same(name: str, recorded: dict[str, Any], measured: dict[str, Any], path: Path) -> None:
    """Raises ValueError unless both are reports of one teacher: students of two must not be mixed.

    Training is deterministic, but kernels differ between machines.
    """
    numbers = [_numbers(recorded), _numbers(measured)]
    if len(numbers[0]) != len(numbers[1]) or not np.allclose(*numbers, rtol=1e-5):
        raise ValueError(
            f"The {name} teacher that this machine trains is not the one of {path}: {numbers[1]} here, {numbers[0]} "
            "recorded. Move the results away to start anew, or use the kernels they were made with "
            "(OPENBLAS_CORETYPE, number of threads)."
        )


def _numbers(report: dict[str, Any]) -> list[float]:
    return [report["top1_accuracy"], *report["largest_to_median"], *report["high_norm_share"]]


def _measured(model, processor, test, pixels, device) -> dict[str, Any]:
    top1 = accuracy(model, processor, test, device=device)
    return {"top1_accuracy": top1} | asdict(norm_profile(model.to("cpu"), pixels))


def _pixels(images, processor, count: int) -> torch.Tensor:
    views = DistillationDataset(images, eval_transform(processor.size["height"]))
    chosen = [index * len(views) // count for index in range(min(count, len(views)))]
    return PixelNormalization.from_image_processor(processor)(torch.stack([views[i]["pixel_values"] for i in chosen]))


def _save(model, processor, folder: Path) -> None:
    model.to("cpu").save_pretrained(folder)
    processor.save_pretrained(folder)
