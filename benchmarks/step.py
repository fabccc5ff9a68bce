"""One distillation step beside its floor, its parts, and the released code's step.

    python benchmarks/step.py --teacher vit-l --student vit-t --batch 2
    python benchmarks/step.py --teacher vit-s --student vit-t --batch 4 8 16 --output benchmarks/results/step_cpu.json
    python benchmarks/step.py --teacher vit-l --student vit-t --batch 256 --precision bf16 --compile \
        --released_code SiNGER --output benchmarks/results/step_h200.json
    torchrun --nproc_per_node 2 benchmarks/step.py --use_cpu --threads 1 --teacher vit-s --student vit-t --batch 4

Several values of an option are measured one after the other, in all combinations; each gives a row. Models are ViTs of
random weights of the named sizes, images random JPEGs of 500x375 pixels. In every row all candidates take turns in one
process:

    step       DistillationTrainer.training_step (transfer, normalisation, forward, losses, backward, check of the
               loss, statistics), optimizer step and zero_grad, all as Trainer calls them
    floor      the teacher's forward pass up to the last block needed, forward and input-gradient of each block l+1
               of L_info, the student's forward and backward pass
    parts      seconds of each part run alone; `losses` is the objective without refinement and extra block, `data`
               decoding and augmenting one batch in one process, which a run does in its workers
    released   the released code's step on the same sizes and batch, in float32 as published; the same without
               DistributedDataParallel, and with --precision bf16 also under autocast (see released_code.py)

The floor's functions run under the step's precision and compilation. Ratios are of medians; `step_over_floor_spread`
holds the quartiles of the ratio round by round, `…_fastest` the ratio of the fastest rounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from released_code import MODELS as RELEASED_MODELS
from released_code import ReleasedStep
from timing import Candidate, Seconds, interleave, matrix_rate, peak_memory
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from singer_hf import DistillationArguments, DistillationTrainer, NullspaceLoraConfig
from singer_hf.objectives import DistillationStep, objective_class
from singer_hf.records.provenance import versions

# width, blocks, heads, patch size (Dosovitskiy et al. 2021, Table 1; Touvron et al. 2021, Table 1)
SIZES = {
    "vit-t": (192, 12, 3, 16),
    "vit-s": (384, 12, 6, 16),
    "vit-b": (768, 12, 12, 16),
    "vit-l": (1024, 24, 16, 16),
    "vit-h": (1280, 32, 16, 14),
}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """What one row measures."""

    teacher: str
    student: str
    batch: int  # images a process
    image_size: int
    precision: str
    teacher_layers: tuple[int, ...] | None


class RandomJpegs(torch.utils.data.Dataset):
    """Images of ImageNet's usual size whose content compresses like a photograph's."""

    def __init__(self, count: int, size: tuple[int, int] = (500, 375)):
        self.count = count
        noise = np.random.default_rng(0).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
        buffer = BytesIO()
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        self.encoded = buffer.getvalue()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, bytes]:
        return {"image": self.encoded}


def vit(name: str, image_size: int) -> ViTModel:
    width, blocks, heads, patch = SIZES[name]
    config = ViTConfig(
        image_size=image_size,
        patch_size=patch,
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        intermediate_size=4 * width,
    )
    return ViTModel(config, add_pooling_layer=False)


class Measured:
    """A trainer that is ready to step, with what is timed of it.

    Args:
        case: sizes and precision.
        args: the script's options.
        folder: for the trainer's output, of which there is none.
    """

    def __init__(self, case: Case, args: argparse.Namespace, folder: str):
        torch.manual_seed(0)
        teacher = vit(case.teacher, case.image_size).to(getattr(torch, args.teacher_dtype))
        layers = list(case.teacher_layers) if case.teacher_layers else None
        uses_adapter = objective_class(args.objective).uses_adapter
        # The time of a step does not depend on the basis; drawing it takes no decomposition.
        adapter = NullspaceLoraConfig(init_lora_weights="random", layers_to_transform=layers) if uses_adapter else None
        size = {"height": case.image_size, "width": case.image_size}
        self.trainer = trainer = DistillationTrainer(
            vit(case.student, case.image_size),
            teacher,
            DistillationArguments(
                folder,
                objective=args.objective,
                teacher_layers=layers,
                per_device_train_batch_size=case.batch,
                bf16=case.precision == "bf16",
                torch_compile=args.compile,
                use_cpu=args.use_cpu,
                report_to="none",
            ),
            train_dataset=RandomJpegs(4096),
            processing_class=ViTImageProcessor(size=size),
            peft_config=adapter,
        )
        trainer.create_optimizer()
        self.distiller, self.device = trainer.model.to(trainer.args.device).train(), trainer.args.device
        # As Trainer.train does; this wraps for autocast, compilation and several processes.
        self.model, self.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
        trainer.optimizer, trainer.current_gradient_accumulation_steps = self.optimizer, 1
        self.pixels = torch.randint(0, 256, (case.batch, 3, case.image_size, case.image_size), dtype=torch.uint8)
        if self.device.type == "cuda":
            self.pixels = self.pixels.pin_memory()
        self.compile = torch.compile if args.compile else (lambda function: function)
        self._prepare_parts(case.batch)

    def _prepare_parts(self, batch: int) -> None:
        distiller = self.distiller
        teacher, student, objective = distiller.teacher_backbone, distiller.student_backbone, distiller.objective
        weights = teacher.blocks[0].parameters()
        images = distiller.teacher_normalization(self.pixels.to(self.device))
        teacher_images = images.to(next(weights).dtype)
        teacher_forward = self.compile(partial(teacher.features, adapters=False))
        student_forward = self.compile(student.features)
        run_block = self.compile(partial(teacher.run_block, adapters=False))
        following = [layer for layer in objective.teacher_layers if layer + 1 in objective.teacher_features]
        following = following if objective.uses_adapter else []
        dataset = self.trainer.train_dataset

        @torch.no_grad()
        def run_teacher():
            with self.autocast():
                return teacher_forward(teacher_images, objective.teacher_features)

        features = run_teacher()
        self.teacher_flops = _flops(
            lambda: teacher.features(teacher_images, objective.teacher_features, adapters=False)
        )

        def run_student() -> None:
            with self.autocast():
                hidden = list(student_forward(images, objective.student_layers).hidden.values())
            torch.autograd.backward(hidden, [torch.ones_like(tensor) for tensor in hidden])

        def extra_block() -> None:
            for layer in following:
                hidden = features.hidden[layer].detach().requires_grad_()
                with self.autocast():
                    output = run_block(layer + 1, hidden, features.block_inputs)
                torch.autograd.grad(output, hidden, torch.ones_like(output))

        def refinement() -> None:
            for layer in objective.teacher_layers if objective.uses_adapter else ():
                with self.autocast():
                    refined = objective.refine(layer, features.hidden[layer])
                refined.backward(torch.ones_like(refined))

        def of_objective() -> None:
            with self.autocast():
                student_features = student.features(images, objective.student_layers)
            leaves = {layer: h.detach().requires_grad_() for layer, h in student_features.hidden.items()}
            student_features.hidden = leaves
            step = DistillationStep(
                features, student_features, torch.zeros(batch, dtype=torch.int64, device=self.device)
            )

            def run() -> None:
                with self.autocast():
                    loss = objective(step).loss
                loss.backward()

            return run

        def floor() -> None:
            run_teacher()
            extra_block()
            run_student()

        self.candidates: dict[str, Candidate] = {
            "step": lambda: self.step,
            "floor": self._with_fresh_gradients(lambda: floor),
            "teacher": lambda: run_teacher,
            "student": self._with_fresh_gradients(lambda: run_student),
            "extra_block": lambda: extra_block,
            "refinement": self._with_fresh_gradients(lambda: refinement),
            "objective": self._with_fresh_gradients(of_objective),
            "optimizer": self._with_gradients(self.update),
            "data": lambda: lambda: torch.stack([dataset[(0, index)]["pixel_values"] for index in range(batch)]),
        }

    def step(self) -> None:
        """What Trainer does with one batch."""
        seeds = torch.zeros(len(self.pixels), dtype=torch.int64)
        self.trainer.training_step(self.model, {"pixel_values": self.pixels, "sample_seed": seeds})
        self.update()

    def update(self) -> None:
        self.optimizer.step()
        self.model.zero_grad()

    def autocast(self):
        return self.trainer.accelerator.autocast()

    def _with_fresh_gradients(self, candidate: Candidate) -> Candidate:
        def prepare():
            self.model.zero_grad()
            return candidate()

        return prepare

    def _with_gradients(self, run) -> Candidate:
        def prepare():
            for parameter in self.distiller.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            return run

        return prepare


def _flops(run) -> int:
    """Of convolutions and linear layers; torch counts nothing for fused attention on a CPU (3 % of ViT-L at 224²)."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


def measure(case: Case, args: argparse.Namespace) -> dict:
    """One row."""
    with tempfile.TemporaryDirectory() as folder:
        measured = Measured(case, args, folder)
        accelerator, device = measured.trainer.accelerator, measured.device
        candidates = dict(measured.candidates)
        released: dict[str, tuple[ReleasedStep, tuple[Tensor, ...]]] = {}
        if args.released_code is not None:
            variants = {"released": {}, "released_without_ddp": {"ddp": False}}
            if case.precision == "bf16":
                variants["released_bf16"] = {"bf16": True}
            for name, options in variants.items():
                step = ReleasedStep(
                    args.released_code,
                    teacher=case.teacher,
                    student=case.student,
                    teacher_layers=measured.distiller.objective.teacher_layers,
                    image_size=case.image_size,
                    device=device,
                    **options,
                )
                released[name] = step, step.batch(measured.pixels)
                candidates[name] = partial(partial, step.step, released[name][1])
        times = interleave(candidates, args.repetitions, device, before_each=accelerator.wait_for_everyone)
        row = {
            "teacher": case.teacher,
            "student": case.student,
            "batch": case.batch,
            "image_size": case.image_size,
            "precision": case.precision,
            "compile": args.compile,
            "objective": args.objective,
            "teacher_layers": measured.distiller.objective.teacher_layers,
            "teacher_dtype": args.teacher_dtype,
            "processes": accelerator.num_processes,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
            "threads": torch.get_num_threads(),
            "repetitions": args.repetitions,
        } | _figures(times, case.batch * accelerator.num_processes)
        row["peak_memory_mib"] = {
            name: memory
            for name in ("step", *released)
            if (memory := peak_memory(candidates[name], device)) is not None
        }
        rate = matrix_rate(device, PRECISIONS[case.precision])
        row["matrix_flops_per_second"] = rate
        row["teacher_share_of_matrix_rate"] = measured.teacher_flops / row["parts"]["teacher"]["median"] / rate
        row["versions"] = versions()
    return row


def _figures(times: dict[str, list[float]], images: int) -> dict:
    """Medians and quartiles over rounds, of seconds and of the ratios within a round; `images` of one step."""
    seconds = {name: Seconds.of(values) for name, values in times.items()}
    ratios = Seconds.of([step / floor for step, floor in zip(times["step"], times["floor"], strict=True)])
    parts = [name for name in times if name not in ("step", "floor") and not name.startswith("released")]
    figures = {
        "step_seconds": asdict(seconds["step"]),
        "floor_seconds": asdict(seconds["floor"]),
        "step_over_floor": ratios.median,
        "step_over_floor_spread": [ratios.lower_quartile, ratios.upper_quartile],
        "step_over_floor_fastest": seconds["step"].fastest / seconds["floor"].fastest,
        "images_per_second": images / seconds["step"].median,
        "speedup_over_released_code": None,
        "parts": {name: asdict(seconds[name]) for name in parts},
    }
    whole, *others = (times[name] for name in ("objective", "refinement", "extra_block"))
    losses = [objective - sum(rest) for objective, *rest in zip(whole, *others, strict=True)]
    del figures["parts"]["objective"]
    figures["parts"]["losses"] = asdict(Seconds.of(losses))
    for name in seconds:
        if name.startswith("released"):
            key = "speedup_over_released_code" + name.removeprefix("released")
            figures[f"{name}_seconds"] = asdict(seconds[name])
            ratios = Seconds.of([r / s for r, s in zip(times[name], times["step"], strict=True)])
            figures[key] = ratios.median
            figures[f"{key}_fastest"] = seconds[name].fastest / seconds["step"].fastest
            figures[f"{key}_spread"] = [ratios.lower_quartile, ratios.upper_quartile]
    return figures


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


PARTS = ("teacher", "student", "extra_block", "refinement", "losses", "optimizer", "data")
RELEASED = ("released / step (of fastest)", "the same without DDP")


def tables(rows: list[dict]) -> str:
    """The rows as two Markdown tables: ratios, and the parts' milliseconds."""
    return "\n\n".join(
        [
            _table(
                ["step ms", "floor ms", "step / floor", "of fastest", "images/s", *RELEASED, "peak MiB"],
                _ratios,
                rows,
            ),
            _table([*(f"{part.replace('_', ' ')} ms" for part in PARTS), "teacher / matrix rate"], _parts, rows),
        ]
    )


def _table(columns: list[str], cells: Callable[[dict], list[str]], rows: list[dict]) -> str:
    lines = [["models", "batch", "pixels", "layers", "processes × threads", "precision", *columns]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        case = [f"{row['teacher']} → {row['student']}", str(row["batch"]), str(row["image_size"])]
        case += [", ".join(map(str, row["teacher_layers"])), f"{row['processes']} × {row['threads']}"]
        lines.append([*case, row["precision"] + (" compiled" if row["compile"] else ""), *cells(row)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ratios(row: dict) -> list[str]:
    low, high = row["step_over_floor_spread"]
    memory = row["peak_memory_mib"].get("step")
    return [
        _milliseconds(row["step_seconds"]),
        _milliseconds(row["floor_seconds"]),
        f"{row['step_over_floor']:.3f} ({low:.3f} to {high:.3f})",
        _ratio(row.get("step_over_floor_fastest")),
        f"{row['images_per_second']:.2f}",
        *_speedups(row),
        "–" if memory is None else f"{memory:.0f}",
    ]


def _speedups(row: dict) -> list[str]:
    keys = ("speedup_over_released_code", "speedup_over_released_code_without_ddp")
    return [f"{_ratio(row.get(key))} ({_ratio(row.get(key + '_fastest'))})" for key in keys]


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _parts(row: dict) -> list[str]:
    share = row["teacher_share_of_matrix_rate"]
    return [*(_milliseconds(row["parts"][part]) for part in PARTS), f"{100 * share:.0f} %"]


def _milliseconds(seconds: dict[str, float]) -> str:
    return f"{1000 * seconds['median']:,.1f}"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", nargs="+", choices=SIZES, default=["vit-l"], help="teacher (default: vit-l)")
    parser.add_argument("--student", nargs="+", choices=SIZES, default=["vit-t"], help="student (default: vit-t)")
    parser.add_argument("--batch", nargs="+", type=int, default=[2], help="images of a process and step (default: 2)")
    parser.add_argument("--image_size", nargs="+", type=int, default=[224], help="side in pixels (default: 224)")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp32"], help="bf16: by autocast")
    parser.add_argument(
        "--teacher_dtype", choices=("float32", "bfloat16"), default="float32", help="teacher's weights"
    )
    parser.add_argument("--teacher_layers", nargs="+", help="distilled blocks, e.g. 17,23 (default: the objective's)")
    parser.add_argument("--objective", default="singer", help="a registered objective (default: singer)")
    parser.add_argument("--compile", action="store_true", help="torch.compile, as by --torch_compile of a run")
    parser.add_argument("--repetitions", type=int, default=10, help="timed rounds (default: 10)")
    parser.add_argument("--threads", type=int, help="torch's CPU threads (default: torch's own choice)")
    parser.add_argument("--use_cpu", action="store_true", help="run on the CPU though there is a GPU")
    parser.add_argument("--released_code", type=Path, help="checkout of github AIRLABkhu/SiNGER to measure beside it")
    parser.add_argument("--output", type=Path, help="JSON list that the rows are added to")
    parser.add_argument("--show", type=Path, help="print the tables of such a file, and measure nothing")
    args = parser.parse_args()
    if args.repetitions < 2:
        parser.error(f"--repetitions {args.repetitions}: quartiles need at least 2.")
    if args.released_code is not None and not set(args.teacher + args.student) <= set(RELEASED_MODELS):
        parser.error(f"the released code knows {', '.join(RELEASED_MODELS)} alone.")
    return args


def main() -> None:
    args = parse_arguments()
    if args.show is not None:
        print(tables(json.loads(args.show.read_text(encoding="utf-8"))))
        return
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    layers = [tuple(map(int, text.split(","))) for text in args.teacher_layers or ()] or [None]
    grid = itertools.product(args.teacher, args.student, args.batch, args.image_size, args.precision, layers)
    rows = []
    for case in itertools.starmap(Case, grid):
        rows.append(measure(case, args))
        if torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
            continue
        print(tables(rows[-1:]), flush=True)
        if args.output is not None:
            recorded = json.loads(args.output.read_text(encoding="utf-8")) if args.output.exists() else []
            args.output.write_text(json.dumps([*recorded, rows[-1]], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
