"""Memory and time of a teacher's diagnosis over the number of images.

    python benchmarks/diagnosis_memory.py "tiny-imagenet/valid-*.parquet" --split validation \
        --output benchmarks/results/diagnosis_memory.json

A ViT of random weights (12 blocks of width 192, 224-pixel images) is diagnosed on each number of images in a process
of its own, whose peak resident memory is read, beside that of a process that does everything but the pass; all of
this --repeats times, since the peak differs from process to process. All the statistics of a whole diagnosis of a
teacher are kept; nothing that is kept grows with the images.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from singer_hf import vision_backbone
from singer_hf.data import PixelNormalization, load_images
from singer_hf.diagnosis import ImageBatches, ModelInput, OutlierRule, diagnose_teacher
from singer_hf.records.provenance import versions


def one(args: argparse.Namespace) -> None:
    """Diagnoses on `args.images` images and prints peak memory (MiB) and seconds as JSON."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = ViTConfig(hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768)
    backbone = vision_backbone(ViTModel(config, add_pooling_layer=False).eval())
    images = load_images(args.data, split=args.split, max_samples=max(1, args.images))
    takes = ModelInput((224, 224), PixelNormalization.imagenet())
    start = time.perf_counter()
    if args.images:
        diagnose_teacher(backbone, ImageBatches(images, takes, batch_size=args.batch_size), rule=OutlierRule())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"images": args.images, "peak_mib": round(peak, 1), "seconds": time.perf_counter() - start}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="images: parquet file or glob, folder, Hub id")
    parser.add_argument("--split", default="train", help="its split")
    parser.add_argument("--counts", type=int, nargs="+", default=[0, 100, 500, 1000, 2000, 5000], help="images")
    parser.add_argument("--repeats", type=int, default=2, help="how often all counts are gone through")
    parser.add_argument("--batch_size", type=int, default=32, help="images a forward pass")
    parser.add_argument("--output", type=Path, help="JSON file to write; default: print only")
    parser.add_argument("--images", type=int, help="diagnose once, in this process, on so many images")
    args = parser.parse_args()
    if args.images is not None:
        one(args)
        return
    config = {
        "data": args.data,
        "split": args.split,
        "counts": args.counts,
        "batch_size": args.batch_size,
        "machine": platform.machine(),
    }
    runs = []
    for _ in range(args.repeats):
        rows: list[dict] = []
        for count in args.counts:
            command = [sys.executable, __file__, args.data, "--split", args.split, "--images", str(count)]
            done = subprocess.run(
                [*command, "--batch_size", str(args.batch_size)], check=True, capture_output=True, text=True
            )
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
        runs.append({"rows": rows, "config": config, "versions": versions()})
    if args.output is not None:
        args.output.write_text(json.dumps({"runs": runs}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
