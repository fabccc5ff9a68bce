"""One run on real images in float32, under bf16 autocast, and compiled: how far the losses are apart.

    python benchmarks/numerics.py "tiny-imagenet/train-00000*.parquet" --output benchmarks/results/numerics_cpu.json

Teachers are those of `--teachers` (folders, e.g. the study's), else the small ViT of real_images.py with and without
planted artifacts, trained here. The planted detector of background patches is a steep function, of which bf16 sees
another value than float32. Every run starts from the same weights and
sees the same views in the same order; each optimizes by its own gradients. Of each logged loss and term the largest
and the mean relative difference from the float32 run over the steps are recorded, and of its mean over all steps too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from real_images import make_teacher
from transformers import ViTImageProcessor

from singer_hf import (
    DistillationArguments,
    DistillationTrainer,
    NullspaceLoraConfig,
    build_student,
    load_vision_model,
)
from singer_hf.data import load_images
from singer_hf.records.provenance import versions

RUNS = {"float32": {}, "bf16": {"bf16": True}, "compiled": {"torch_compile": True}}


def losses(
    data: str, teacher_folder: Path, folder: Path, args: argparse.Namespace, **options
) -> list[dict[str, float]]:
    """The loss and its terms at every step of one run."""
    torch.manual_seed(0)
    teacher = load_vision_model(str(teacher_folder), dtype="float32")
    trainer = DistillationTrainer(
        build_student(teacher.config, args.student),
        teacher,
        DistillationArguments(
            str(folder / "run"),
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            **options,
        ),
        train_dataset=load_images(data, split="train", max_samples=args.images),
        processing_class=ViTImageProcessor.from_pretrained(teacher_folder),
        peft_config=NullspaceLoraConfig(r=16),
    )
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{name: value for name, value in entry.items() if name.startswith("loss")} for entry in history]


def differences(run: list[dict[str, float]], reference: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Relative differences of each logged value."""
    result = {}
    for name in reference[0]:
        ours = torch.tensor([entry[name] for entry in run], dtype=torch.float64)
        theirs = torch.tensor([entry[name] for entry in reference], dtype=torch.float64)
        relative = (ours - theirs).abs() / theirs.abs()
        result[name] = {
            "largest": relative.max().item(),
            "mean": relative.mean().item(),
            "of_mean": ((ours.mean() - theirs.mean()).abs() / theirs.mean().abs()).item(),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="labelled images: parquet file or glob, folder, Hub id")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps (default: 100)")
    parser.add_argument("--batch_size", type=int, default=32, help="images a step (default: 32)")
    parser.add_argument("--images", type=int, default=2000, help="images to train on (default: 2000)")
    parser.add_argument("--student", default="tiny", help="size of the student (default: tiny)")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of the teacher's own training (default: 2)")
    parser.add_argument("--teachers", nargs="+", type=Path, default=[], help="folders (default: two are trained)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result: dict = {"teacher": {}, "differences": {}, "losses": {}}
        teachers = {path.name: path for path in args.teachers}
        if not teachers:
            for kind in ("clean", "artifacts"):
                teachers[kind] = folder / kind
                result["teacher"][kind] = make_teacher(
                    args.data, folder / kind, epochs=args.epochs, max_images=args.images, plant=kind == "artifacts"
                )
        for kind, teacher in teachers.items():
            runs = {name: losses(args.data, teacher, folder, args, **options) for name, options in RUNS.items()}
            result["losses"][kind] = runs
            result["differences"][kind] = {
                name: differences(run, runs["float32"]) for name, run in runs.items() if name != "float32"
            }
    result |= {
        "config": {name: value for name, value in vars(args).items() if name != "output"}
        | {"data": Path(args.data).name, "teachers": list(teachers)},
        "versions": versions(),
    }
    print(json.dumps(result["differences"], indent=1))
    if args.output is not None:
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
