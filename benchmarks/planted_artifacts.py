"""Does the diagnosis find artifacts where they were planted, and none where there are none?

    python benchmarks/planted_artifacts.py --seeds 0 1 2 --output benchmarks/results/planted_artifacts.json

For each seed: the embedded demonstration's teacher on digits (examples/digits_world.py), with planted artifacts and
without, both diagnosed on the test images. A patch is *planted* where the planted unit fires (its pre-activation is
positive); the strong ones among them are those to which the unit adds at least the median norm. Precision is the share
of found outliers that are planted, recall the share of (strong) planted patches that are found, in each block from the
planted one on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from digits_world import digits_datasets, pixels_and_labels, train_teacher  # noqa: E402

from singer_hf import VisionBackbone, vision_backbone  # noqa: E402
from singer_hf.diagnosis import TeacherDiagnosis, diagnose_teacher, recommend  # noqa: E402
from singer_hf.losses import patch_norms  # noqa: E402
from singer_hf.records.provenance import versions  # noqa: E402


@torch.no_grad()
def planted_patches(backbone: VisionBackbone, block: int, unit: int, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(images, n) bool: where the planted unit fires, and where it adds at least the median norm behind the block."""
    modules, seen = backbone.feed_forward_modules(block), []
    handle = modules.linear_out.register_forward_pre_hook(lambda _, args: seen.append(args[0][..., unit]))
    try:
        hidden = backbone.features(pixels, [block]).hidden[block]
    finally:
        handle.remove()
    activation = seen[0][:, backbone.num_prefix_tokens :]
    added = activation * modules.linear_out.weight[:, unit].norm()
    return activation > 0, added >= patch_norms(hidden[:, backbone.num_prefix_tokens :]).median()


@torch.no_grad()
def found_patches(backbone: VisionBackbone, layer: int, found: TeacherDiagnosis, pixels: Tensor) -> Tensor:
    """(images, n) bool: outliers by the diagnosis."""
    hidden = backbone.features(pixels, [layer]).hidden[layer]
    return found.is_outlier(layer, patch_norms(hidden[:, backbone.num_prefix_tokens :]))


def run(seed: int) -> dict[str, Any]:
    train, test = digits_datasets()
    result: dict[str, Any] = {"seed": seed}
    for name, plant in (("planted", True), ("clean", False)):
        teacher, processor, report = train_teacher(train, test, seed=seed, progress=False, plant=plant)
        backbone, (pixels, _) = vision_backbone(teacher.eval()), pixels_and_labels(test, processor)
        found = diagnose_teacher(backbone, pixels.split(50))
        entry = {
            "accuracy": report["accuracy_tuned"],
            "sentence": recommend(found).sentence,
            "blocks_with_artifacts": found.artifact_layers,
            "outliers": [layer.outliers.count for layer in found.layers],
        }
        if plant:
            block = report["planted_block"]
            fires, strong = planted_patches(backbone, block, report["planted_unit"], pixels)
            entry |= {"planted_from_block": block, "planted": int(fires.sum()), "strongly_planted": int(strong.sum())}
            entry["blocks"] = []
            for layer in range(block, backbone.num_blocks):
                marked = found_patches(backbone, layer, found, pixels)
                entry["blocks"].append(
                    {
                        "block": layer,
                        "found": int(marked.sum()),
                        "precision": (fires[marked].float().mean()).item(),
                        "recall": (marked[fires].float().mean()).item(),
                        "recall_of_strong": (marked[strong].float().mean()).item(),
                    }
                )
        result[name] = entry
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the teachers")
    parser.add_argument("--output", type=Path, help="JSON file to write; default: print only")
    args = parser.parse_args()
    datasets.disable_progress_bars()
    result = {"seeds": [run(seed) for seed in args.seeds], "versions": versions()}
    text = json.dumps(result, indent=1)
    print(text)
    if args.output is not None:
        args.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
