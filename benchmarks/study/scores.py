"""What the study scores a student by."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import AutoImageProcessor

from singer_hf import load_vision_model, vision_backbone
from singer_hf.data import load_images
from singer_hf.diagnosis import (
    ImageBatches,
    ModelInput,
    adapter_refinements,
    diagnose_teacher,
    load_fit,
    measure_refinements,
    measure_student,
)
from singer_hf.evaluation import Extractor, FrozenBackbone, LinearEvaluator, Task, read_task

CAMVID = Path(__file__).parents[2] / "examples" / "tasks" / "camvid.yaml"


def linear_scores(
    model: Path, images: Path, *, camvid: str | None, camvid_size: int, device: torch.device
) -> dict[str, float]:
    """Scores of a frozen model, by heads chosen on held-out training images.

    Returns:
        `linear_top1` and `knn_top1` on the test images, `corrupted_top1` of the same linear head on their corrupted
        copies, and `camvid_miou` by a 1×1 convolution at `camvid_size` pixels; all between 0 and 1.
    """
    task = Task(
        "tiny-imagenet",
        "classification",
        str(images / "train.parquet"),
        test_split=None,
        test_dataset=str(images / "test.parquet"),
    )
    corrupted = Task(
        "corrupted",
        "classification",
        str(images / "corrupted.parquet"),
        train_split=None,
        test_split="train",
        head_of="tiny-imagenet",
    )

    with tempfile.TemporaryDirectory() as scratch:

        def evaluator(image_size: int | None = None) -> LinearEvaluator:
            backbone = FrozenBackbone.load(str(model), device=device, image_size=image_size)
            extractor = Extractor(backbone, cache_dir=scratch, state=PartialState(), progress=False, batch_size=256)
            return LinearEvaluator(backbone, extractor, output_dir=scratch)

        classification = evaluator()
        result = classification.run(task)
        scores = {"linear_top1": result.value, "knn_top1": result.scores["knn_top1_accuracy"]}
        scores["corrupted_top1"] = classification.run(corrupted).value
        if camvid is not None:
            scores["camvid_miou"] = evaluator(camvid_size).run(read_task(CAMVID).with_options(dataset=camvid)).value
    return scores


def likeness(
    teacher: Path, student: Path, images: Path, *, own_loss: bool = True, device: torch.device
) -> dict[str, Any]:
    """How like its teacher a student is, and where its loss remains; of a run with an adapter, its energy too.

    Returns:
        `gram_distance` (divided by the number of patches) and `cka` between the last blocks,
        `remaining_gradient_on_outliers` of the run's own feature loss in the last block (`None` without `own_loss`,
        where a candidate stood in its place), and by distilled layer `energy`, the shares E_prob and E_safe of Φ_up
        and Φ_down.
    """
    model = load_vision_model(str(teacher), dtype="float32").to(device).eval()
    own = load_vision_model(str(student), dtype="float32").to(device).eval()
    inputs = [ModelInput.of_processor(AutoImageProcessor.from_pretrained(folder)) for folder in (teacher, student)]
    test = load_images(str(images / "test.parquet"), split="train")
    batches = ImageBatches(test, *inputs, batch_size=128, device=device)
    backbone, other = vision_backbone(model), vision_backbone(own)
    found = diagnose_teacher(backbone, batches)
    refinements, energy = {}, {}
    if (student / "adapter").exists():
        refinements = adapter_refinements(PeftModel.from_pretrained(model, student / "adapter"))
        effects = measure_refinements(backbone, {"run": refinements}, found, batches)["run"]
        energy = {str(layer): effect.energy for layer, effect in effects.items()}
    fit = None
    if own_loss and (student / "distillation.safetensors").exists():
        fit = load_fit(student, backbone, other, refinements)
    last = measure_student(
        backbone, other, [backbone.num_blocks - 1], batches.pairs(), diagnosis=found, refinements=refinements, fit=fit
    )[-1]
    return {
        "gram_distance": last["gram_distance_per_patch"],
        "cka": last["cka"],
        "remaining_gradient_on_outliers": last.get("remaining_gradient_on_outliers"),
        "energy": energy,
    }
