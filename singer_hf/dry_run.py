"""What a run would do and cost, found before it starts."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import nn

from .trainer import DistillationTrainer


@dataclass(frozen=True)
class RunEstimate:
    """Layer mapping, parameters and cost of a run.

    Args:
        layers: (teacher block, student block) pairs.
        teacher_blocks, student_blocks: how many blocks each has.
        parameters: number of parameters by part.
        untrained: parameters of the student that the objective never reaches.
        memory: bytes of one process by part, at `batch_size` images.
        batch_size: images of one process and step.
        total_batch_size: images of an optimizer step, over accumulation and processes.
        step_seconds: measured forward and backward pass of one batch of random pixels; no data loading, no optimizer.
        steps: optimizer steps, `None` where the data have no length and max_steps is not set.
        accumulation: batches of an optimizer step.
    """

    layers: list[tuple[int, int]]
    teacher_blocks: int
    student_blocks: int
    parameters: dict[str, int]
    untrained: list[str]
    memory: dict[str, int]
    batch_size: int
    total_batch_size: int
    step_seconds: float
    steps: int | None
    accumulation: int

    def __str__(self) -> str:
        lines = ["Layers"]
        lines += [
            f"  teacher block {t} of {self.teacher_blocks}  ->  student block {s} of {self.student_blocks}"
            for t, s in self.layers
        ]
        lines += ["Parameters"]
        lines += [f"  {name:<22}{count:>15,}" for name, count in self.parameters.items()]
        if self.untrained:
            lines.append(f"  not reached by the objective, kept as they are: {', '.join(self.untrained)}")
        lines += [f"Memory of one process at {self.batch_size} images (estimate)"]
        lines += [f"  {name:<22}{size / 2**20:>11,.1f} MiB" for name, size in self.memory.items()]
        lines += [f"  {'sum':<22}{sum(self.memory.values()) / 2**20:>11,.1f} MiB"]
        lines.append("Time (measured on one batch of random pixels, without data loading)")
        lines.append(f"  {self.step_seconds:.3f} s a batch")
        if self.steps is None:
            lines.append("  number of steps unknown: streamed data need max_steps")
        else:
            seconds = self.steps * self.accumulation * self.step_seconds
            lines.append(
                f"  {self.steps:,} steps of {self.total_batch_size} images: about {_duration(seconds)} in all"
            )
        return "\n".join(lines)


def estimate_run(trainer: DistillationTrainer, repetitions: int = 2) -> RunEstimate:
    """Measures one batch and counts the rest. Leaves weights, gradients and random state as they were.

    Args:
        trainer: ready to train.
        repetitions: timed passes after one that warms up; the fastest counts.
    """
    args, distiller = trainer.args, trainer.model
    objective = distiller.objective
    with torch.random.fork_rng(devices=[]):
        seconds, saved = _measure(trainer, repetitions)
    trainable = [p for p in distiller.parameters() if p.requires_grad]
    gradients = sum(p.numel() * p.element_size() for p in trainable)
    images = len(trainer.train_dataset) if hasattr(trainer.train_dataset, "__len__") else None
    total_batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps = args.max_steps if args.max_steps > 0 else None
    if steps is None and images is not None:
        batches = images / (args.train_batch_size * args.world_size)
        batches = math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)
        steps = math.ceil(math.ceil(batches / args.gradient_accumulation_steps) * args.num_train_epochs)
    return RunEstimate(
        layers=list(zip(objective.teacher_layers, objective.student_layers, strict=True)),
        teacher_blocks=objective.teacher.num_blocks,
        student_blocks=objective.student.num_blocks,
        parameters={
            "teacher (frozen)": sum(p.numel() for p in distiller.teacher.parameters() if not p.requires_grad),
            "adapter": _trainable(distiller.teacher),
            "student": _trainable(distiller.student),
            "projectors and others": _trainable(objective),
            "trainable in all": sum(p.numel() for p in trainable),
        },
        untrained=trainer.untrained,
        memory={
            "weights": sum(p.numel() * p.element_size() for p in distiller.parameters()),
            "gradients": gradients,
            "AdamW's moments": 2 * gradients,
            "kept for backward": saved,
        },
        batch_size=args.train_batch_size,
        total_batch_size=total_batch,
        step_seconds=seconds,
        steps=steps,
        accumulation=args.gradient_accumulation_steps,
    )


def _trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _measure(trainer: DistillationTrainer, repetitions: int) -> tuple[float, int]:
    """Seconds of a forward and backward pass, and bytes that autograd keeps between the two."""
    device, batch = trainer.args.device, trainer.args.train_batch_size
    views = [trainer.data.student_size]
    if trainer.data.teacher_size != trainer.data.student_size:
        views.append(trainer.data.teacher_size)
    names = ("pixel_values", "teacher_pixel_values")
    inputs = {
        name: torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, device=device)
        for name, size in zip(names, views, strict=False)
    }
    inputs["sample_seed"] = torch.zeros(batch, dtype=torch.int64, device=device)
    weights = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model = trainer.model.to(device).train()
    if trainer.args.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    times = []
    for repetition in range(repetitions + 1):
        _wait(device)
        start = time.perf_counter()
        with trainer.accelerator.autocast(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(**inputs)["loss"]
        trainable = [p for p in model.parameters() if p.requires_grad]
        torch.autograd.grad(loss, trainable)
        _wait(device)
        if repetition:
            times.append(time.perf_counter() - start)
        else:
            saved = sum(kept.values())
    return min(times), saved


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
