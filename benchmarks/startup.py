"""What a run costs before its first step: imports, the nullspace of large teachers, loading an adapter.

python benchmarks/startup.py --output benchmarks/results/startup_cpu.json

imports     seconds of a fresh process that imports a package or prints a script's help, taking turns
nullspace   seconds of the r = 64 smallest left singular vectors of a W̃ of the width of ViT-L (1024) and ViT-H
            (1280), by the SVD that the package uses and by the eigenvectors of W̃W̃ᵀ; and how far each is from the
            floor ‖NᵀW̃‖_F = (Σ σ²)^½, relative to it, for a W̃ of random weights and for one whose singular values
            fall evenly on a logarithmic scale from 1 to 1e-12, whose true vectors are known
adapter     seconds of PeftModel.from_pretrained of an adapter for two blocks of a ViT-L, plainly and with
            low_cpu_mem_usage=True, which leaves out the initial basis that the loaded one would replace
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from timing import Seconds, interleave
from torch import Tensor
from transformers import ViTConfig, ViTModel

from singer_hf import NullspaceLoraConfig
from singer_hf.nullspace import left_nullspace
from singer_hf.records.provenance import versions

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
RANK = 64


def imports(repetitions: int) -> dict[str, dict[str, float]]:
    commands = {name: ["-c", f"import {name}"] for name in ("torch", "transformers", "peft", "singer_hf")}
    commands["peft and Trainer"] = ["-c", "import peft; from transformers import Trainer"]
    commands["peft, Trainer and datasets"] = ["-c", "import peft, datasets; from transformers import Trainer"]
    commands["distill.py --help"] = [str(ROOT / "examples" / "distill.py"), "--help"]

    def candidate(arguments: list[str]) -> Callable[[], Callable[[], object]]:
        command = [sys.executable, *arguments]
        return lambda: lambda: subprocess.run(command, check=True, capture_output=True, cwd=ROOT)

    times = interleave({name: candidate(command) for name, command in commands.items()}, repetitions, CPU, warm_up=1)
    return {name: asdict(Seconds.of(values)) for name, values in times.items()}


def smallest_eigenvectors(surrogate: Tensor, rank: int) -> Tensor:
    """The same subspace from W̃W̃ᵀ, whose eigenvalues are the squares of W̃'s singular values."""
    return torch.linalg.eigh(surrogate @ surrogate.T)[1][:, :rank]


def surrogates(width: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator, dtype=torch.float64)

    left, right = (torch.linalg.qr(draw(width, width))[0] for _ in range(2))
    values = torch.logspace(0, -12, width, dtype=torch.float64)
    return {
        "random weights": draw(width, 4 * width) @ draw(4 * width, width) / (2 * width),
        "singular values from 1 to 1e-12": left @ torch.diag(values) @ right.T,
    }


def nullspace(repetitions: int) -> list[dict]:
    rows = []
    for width in (1024, 1280):
        for name, surrogate in surrogates(width).items():
            floor = torch.linalg.svdvals(surrogate)[-RANK:].norm()
            for method, basis in {"svd": left_nullspace, "eigh": smallest_eigenvectors}.items():
                found = (basis(surrogate, RANK).T @ surrogate).norm()
                run = lambda basis=basis, surrogate=surrogate: lambda: basis(surrogate, RANK)  # noqa: E731
                seconds = Seconds.of(interleave({method: run}, repetitions, CPU, warm_up=1)[method])
                row = {"width": width, "surrogate": name, "method": method, "seconds": asdict(seconds)}
                rows.append(row | {"above_floor": ((found - floor) / floor).item()})
    return rows


def adapter(repetitions: int) -> dict[str, dict[str, float]]:
    config = ViTConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    teacher = ViTModel(config, add_pooling_layer=False)
    with tempfile.TemporaryDirectory() as folder:
        carrying = get_peft_model(teacher, NullspaceLoraConfig(layers_to_transform=[17, 23]))
        carrying.save_pretrained(folder)
        teacher = carrying.unload()

        def load(**options) -> None:
            PeftModel.from_pretrained(teacher, folder, **options).unload()

        candidates = {"plain": lambda: load, "low_cpu_mem_usage": lambda: lambda: load(low_cpu_mem_usage=True)}
        times = interleave(candidates, repetitions, CPU, warm_up=1)
    return {name: asdict(Seconds.of(values)) for name, values in times.items()}


PARTS = {"imports": imports, "adapter": adapter, "nullspace": nullspace}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5, help="timed rounds (default: 5)")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (default: all)"
    )
    parser.add_argument("--output", type=Path, help="JSON file to write; parts that it has are kept or replaced")
    args = parser.parse_args()
    exists = args.output is not None and args.output.exists()
    result = json.loads(args.output.read_text(encoding="utf-8")) if exists else {}
    for part in args.parts:
        measured = PARTS[part](args.repetitions)
        result[part] = {"result": measured, "threads": torch.get_num_threads(), "versions": versions()}
        print(part, json.dumps(measured, indent=1), flush=True)
        if args.output is not None:
            args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
