"""Diagnosis of a teacher and two finished runs on Tiny ImageNet, from nothing; its numbers: docs/paper_items.md.

    python benchmarks/diagnosis_tiny_imagenet.py "tiny-imagenet/train-00000*.parquet" "tiny-imagenet/valid-*.parquet" \
        --output runs/tiny

Trains a small ViT on labels and plants high-norm artifacts in it (benchmarks/real_images.py), distills it by SiNGER
and by FitNet under the same options (examples/distill.py) and diagnoses all three (examples/diagnose.py). The output
folder: teacher/, singer/, fitnet/, diagnosis/, and teacher.json with what was planted. The defaults are those of
benchmarks/results/diagnosis_tiny_imagenet.json, which is diagnosis/diagnosis.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets

sys.path.insert(0, str(Path(__file__).parent))
from real_images import make_teacher  # noqa: E402

EXAMPLES = Path(__file__).parents[1] / "examples"


def script(name: str, *options: str) -> None:
    """Runs a script of examples/ on the CPU."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")])
    }
    subprocess.run([sys.executable, str(EXAMPLES / name), *options], check=True, env=environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="training images with labels: parquet file or glob")
    parser.add_argument("validation", help="images to diagnose on: parquet file or glob")
    parser.add_argument("--output", type=Path, default=Path("runs/tiny"), help="folder of everything")
    parser.add_argument("--teacher_images", type=int, default=4_000, help="images that the teacher is trained on")
    parser.add_argument("--teacher_epochs", type=int, default=4, help="epochs of it")
    parser.add_argument("--images", type=int, default=6_000, help="images of each distillation")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of it")
    parser.add_argument("--max_images", type=int, default=1_000, help="images of the diagnosis")
    args = parser.parse_args()
    datasets.disable_progress_bars()
    teacher, runs = args.output / "teacher", [args.output / name for name in ("singer", "fitnet")]
    args.output.mkdir(parents=True, exist_ok=True)
    planted = make_teacher(args.data, teacher, epochs=args.teacher_epochs, max_images=args.teacher_images)
    (args.output / "teacher.json").write_text(json.dumps(planted, indent=1) + "\n", encoding="utf-8")
    for run in runs:
        script(
            "distill.py",
            *("--teacher", str(teacher), "--student", "tiny", "--dataset", args.data, "--output_dir", str(run)),
            *(
                "--objective",
                run.name,
                "--max_train_samples",
                str(args.images),
                "--num_train_epochs",
                str(args.epochs),
            ),
            *("--per_device_train_batch_size", "64", "--learning_rate", "1e-3", "--lora_r", "32"),
            *("--min_crop_scale", "0.3", "--use_cpu", "--save_strategy", "no", "--report_to", "none"),
            *("--disable_tqdm", "true"),
        )
    script(
        "diagnose.py",
        *("--model", str(teacher), "--data", args.validation, "--split", "validation", "--device", "cpu"),
        *("--run", *map(str, runs), "--max_images", str(args.max_images)),
        *("--output_dir", str(args.output / "diagnosis")),
    )


if __name__ == "__main__":
    main()
