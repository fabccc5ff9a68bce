"""Runs the main job on real images three ways and compares: in one process, in two, and interrupted and resumed.

    python benchmarks/real_images.py "tiny-imagenet/train-00000*.parquet" --output runs/real_images

All on the CPU, through `accelerate launch examples/distill.py`, at equal global batch. The teacher is a small ViT
trained on the images' labels for a few epochs, with high-norm artifacts planted (singer_hf.planting; a ViT this small
has none). Prints one JSON object:

    teacher         its training, and the artifacts that were planted
    losses          first and last entry of the loss curves of the run with one process
    two_processes   largest relative difference of any term of any entry from the run with one process, and the
                    difference of the final student's weights, relative to their norm
    resumed         whether every tensor of student, adapter and projectors is bit for bit that of the run that was
                    never interrupted
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from singer_hf.data import DistillationDataset, PixelNormalization, eval_transform, find_label_column, load_images
from singer_hf.planting import norm_profile, plant_artifacts

ROOT = Path(__file__).parents[1]
TWO_PROCESSES = ROOT / "examples" / "accelerate" / "cpu_2_processes.yaml"
PLANTED_BLOCK = 3


def make_teacher(data: str, folder: Path, *, epochs: int, max_images: int, plant: bool = True) -> dict:
    """A ViT of 8 blocks for 64-pixel images, trained on labels, artifacts planted, tuned behind them.

    With `plant=False` no artifacts are planted, and it is tuned all the same.
    """
    torch.manual_seed(0)
    images = load_images(data, split="train", max_samples=max_images)
    label_column = find_label_column(images)
    classes = images.features[label_column].names
    config = ViTConfig(
        image_size=64,
        patch_size=8,
        hidden_size=128,
        num_hidden_layers=8,
        num_attention_heads=4,
        intermediate_size=256,
        initializer_range=0.08,  # about 1 / sqrt(width)
        id2label=dict(enumerate(classes)),
        label2id={name: index for index, name in enumerate(classes)},
    )
    model, processor = ViTForImageClassification(config), ViTImageProcessor(size={"height": 64, "width": 64})
    normalize = PixelNormalization.from_image_processor(processor)
    loader = DataLoader(
        DistillationDataset(images, eval_transform(64), label_column=label_column), batch_size=64, shuffle=True
    )
    losses = []

    def train(epochs: int, learning_rate: float) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * len(loader))
        model.train()
        for _ in range(epochs):
            total = 0.0
            for batch in tqdm(loader, desc="teacher", leave=False):
                loss = F.cross_entropy(model(normalize(batch["pixel_values"])).logits, batch["labels"])
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                schedule.step()
                total += loss.item() / len(loader)
            losses.append(total)

    train(epochs, 1e-3)
    pixels = torch.cat([normalize(batch["pixel_values"]) for batch, _ in zip(loader, range(8), strict=False)])
    before = after = norm_profile(model, pixels)
    if plant:
        after = plant_artifacts(model, pixels, block=PLANTED_BLOCK).after
    model.requires_grad_(False)
    for part in (*model.vit.layers[PLANTED_BLOCK + 1 :], model.vit.layernorm, model.classifier):
        part.requires_grad_(True)
    train(1, 2e-4)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return {
        "images": len(images),
        "classes": len(classes),
        "cross_entropy_of_epochs": losses,
        "largest_to_median_before": before.largest_to_median,
        "largest_to_median_after": after.largest_to_median,
    }


def distill(data: str, folder: Path, name: str, processes: int, args: argparse.Namespace, *options: str) -> float:
    """One run of the main job into `folder / name`; its seconds."""
    launcher = ["--num_processes", "1"] if processes == 1 else ["--config_file", str(TWO_PROCESSES)]
    command = [sys.executable, "-m", "accelerate.commands.launch", *launcher, "--main_process_port", "0"]
    command += ["--num_cpu_threads_per_process", str(max(1, os.cpu_count() // processes))]
    command += [str(ROOT / "examples" / "distill.py"), "--use_cpu"]
    command += ["--teacher", str(folder / "teacher"), "--student", args.student, "--dataset", data]
    command += ["--output_dir", str(folder / name), "--lora_r", "16", "--report_to", "none", "--warmup_steps", "5"]
    command += ["--per_device_train_batch_size", str(args.batch_size // processes)]
    command += ["--max_steps", str(args.steps), "--save_steps", str(args.steps // 2), "--logging_steps", "1", *options]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=sys.stderr)
    return time.perf_counter() - start


def loss_curves(folder: Path) -> list[dict[str, float]]:
    """Loss and its terms at every logged step."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [{k: v for k, v in entry.items() if k.startswith("loss")} for entry in history if "loss" in entry]


def trained_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor that a run changes, by file and name."""
    files = ("model.safetensors", "distillation.safetensors", "adapter/adapter_model.safetensors")
    return {f"{file}:{name}": tensor for file in files for name, tensor in load_file(folder / file).items()}


def relative_difference(first: dict, second: dict) -> float:
    """‖a − b‖ / ‖a‖ over all tensors together."""
    difference = sum((first[name] - second[name]).double().square().sum() for name in first)
    return (difference / sum(tensor.double().square().sum() for tensor in first.values())).sqrt().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="parquet file or glob with images and labels")
    parser.add_argument("--output", type=Path, default=Path("runs/real_images"))
    parser.add_argument("--student", default="tiny", help="named size, folder or Hub id")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch_size", type=int, default=64, help="global batch")
    parser.add_argument("--teacher_epochs", type=int, default=4)
    parser.add_argument("--teacher_images", type=int, default=4_000)
    args = parser.parse_args()
    folder = args.output
    teacher = make_teacher(args.data, folder / "teacher", epochs=args.teacher_epochs, max_images=args.teacher_images)
    seconds = {
        "one_process": distill(args.data, folder, "one", 1, args),
        "two_processes": distill(args.data, folder, "two", 2, args),
    }
    checkpoint = folder / "one" / f"checkpoint-{args.steps // 2}"
    distill(args.data, folder, "resumed", 1, args, "--resume_from_checkpoint", str(checkpoint))

    one, two = loss_curves(folder / "one"), loss_curves(folder / "two")
    whole, resumed = trained_tensors(folder / "one"), trained_tensors(folder / "resumed")
    result = {
        "teacher": teacher,
        "losses": {"first": one[0], "last": one[-1]},
        "two_processes": {
            "entries": len(two),
            "largest_relative_difference_of_losses": max(
                abs(b[name] - value) / abs(value) for a, b in zip(one, two, strict=True) for name, value in a.items()
            ),
            "relative_difference_of_student": relative_difference(
                *(load_file(folder / name / "model.safetensors") for name in ("one", "two"))
            ),
        },
        "resumed": {
            "tensors": len(whole),
            "bit_for_bit": whole.keys() == resumed.keys()
            and all(torch.equal(t, resumed[n]) for n, t in whole.items()),
        },
        "seconds": seconds,
        "options": vars(args) | {"output": str(args.output)},
        "torch": torch.__version__,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
