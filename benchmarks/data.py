"""Decoding and augmentation of training images, per core, beside a plain torchvision pipeline.

    python benchmarks/data.py "tiny-imagenet/train-00000*.parquet" --output benchmarks/results/data_cpu.json

Images a second of one process with one thread, from encoded bytes in memory to a training sample:

    decode     PIL's decoder alone, to RGB pixels
    plain      torchvision v2 as its documentation has it: PIL image, ToImage, RandomResizedCrop, RandomHorizontalFlip,
               ToDtype(float32), Normalize
    ours       DistillationDataset: decoding, checks, one uint8 view for both models; normalisation is left to the
               device
    ours_two   the same with a teacher of another input size: one decoding, the same crop, two views

on the given images (64x64 of Tiny ImageNet) and on the same images enlarged to 500x375 pixels, ImageNet's usual size.
All take turns over the same images. `stall` says for a step rate in images a second which share of the time an
accelerator would wait for so many cores, were decoding all that they did: 1 − min(1, cores × ours / rate).
"""

from __future__ import annotations

import argparse
import json
from io import BytesIO
from pathlib import Path

import datasets
import torch
from PIL import Image
from timing import Seconds, interleave
from torchvision.transforms import v2

from singer_hf.data import DistillationDataset, find_image_column, load_images, train_transform
from singer_hf.records.provenance import versions

PLAIN = v2.Compose(
    [
        v2.ToImage(),
        v2.RandomResizedCrop(224, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    ]
)


def encoded_images(data: str, count: int, size: tuple[int, int] | None) -> list[bytes]:
    """JPEG bytes as they lie in the data, or enlarged to `size` (width, height)."""
    images = load_images(data, split="train", max_samples=count)
    column = find_image_column(images)
    images = images.cast_column(column, datasets.Image(decode=False))
    encoded = [row[column]["bytes"] for row in images]
    return encoded if size is None else [_enlarged(content, size) for content in encoded]


def _enlarged(content: bytes, size: tuple[int, int]) -> bytes:
    buffer = BytesIO()
    image = Image.open(BytesIO(content)).convert("RGB").resize(size, Image.Resampling.BICUBIC)
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def measure(encoded: list[bytes], repetitions: int) -> dict[str, dict[str, float]]:
    """Images a second of each pipeline: of the median and of the fastest round."""
    stored = datasets.Dataset.from_dict(
        {"image": [{"bytes": content, "path": None} for content in encoded]},
        features=datasets.Features({"image": datasets.Image()}),
    )
    ours = DistillationDataset(stored, train_transform(224))
    two = DistillationDataset(stored, train_transform(224), teacher_transform=train_transform(518))

    def decode() -> None:
        for content in encoded:
            Image.open(BytesIO(content)).convert("RGB")

    def plain() -> None:
        for content in encoded:
            PLAIN(Image.open(BytesIO(content)).convert("RGB"))

    def samples(dataset: DistillationDataset) -> None:
        for index in range(len(encoded)):
            dataset[(0, index)]

    candidates = {
        "decode": lambda: decode,
        "plain": lambda: plain,
        "ours": lambda: lambda: samples(ours),
        "ours_two": lambda: lambda: samples(two),
    }
    times = interleave(candidates, repetitions, torch.device("cpu"), warm_up=1)
    seconds = {name: Seconds.of(values) for name, values in times.items()}
    return {
        name: {"median": len(encoded) / s.median, "fastest": len(encoded) / s.fastest} for name, s in seconds.items()
    }


def stall(rate: float, cores: int, images_per_core: float) -> float:
    """Share of the time in which an accelerator of `rate` images/s waits."""
    return 1 - min(1.0, cores * images_per_core / rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="images: parquet file or glob, folder, Hub id")
    parser.add_argument("--count", type=int, default=200, help="images (default: 200)")
    parser.add_argument("--repetitions", type=int, default=7, help="timed rounds (default: 7)")
    parser.add_argument("--cores", type=int, default=16, help="cores that feed one accelerator (default: 16)")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[1000, 2000, 4000, 8000], help="step rates in images/s for `stall`"
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, size in (("as stored", None), ("500x375", (500, 375))):
        encoded = encoded_images(args.data, args.count, size)
        rates = measure(encoded, args.repetitions)
        per_core = rates["ours"]["median"]
        rows.append(
            {
                "images": name,
                "bytes_per_image": sum(map(len, encoded)) / len(encoded),
                "images_per_second": rates,
                "ours_over_plain": per_core / rates["plain"]["median"],
                "ours_over_plain_fastest": rates["ours"]["fastest"] / rates["plain"]["fastest"],
                "cores": args.cores,
                "stall": {f"{rate:g}": stall(rate, args.cores, per_core) for rate in args.rates},
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    result = {"rows": rows, "config": {"data": args.data, "count": args.count}, "versions": versions()}
    if args.output is not None:
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
