"""Advice that names the options, where memory runs out in training or evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ..arguments import DistillationArguments

_RAN_OUT = "Memory ran out. In this order: "


@contextmanager
def memory_advice(args: DistillationArguments, *, evaluation: bool = False) -> Iterator[None]:
    """Within, an out-of-memory error is raised again as its own class, with advice behind its message.

    The message stays in front, and alone in the error's arguments: `auto_find_batch_size` knows the error by it. An
    error that has its advice, of an evaluation within a training, passes.
    """
    advice = _evaluation_advice if evaluation else _advice
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        known = isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
        if not known or _RAN_OUT in str(error):
            raise
        kind = next(kind for kind in (torch.OutOfMemoryError, MemoryError, RuntimeError) if isinstance(error, kind))
        raise kind(f"{error}\n{advice(args)}") from error


def _advice(args: DistillationArguments) -> str:
    batch, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    advice = []
    if batch > 1:
        advice.append(
            f"per_device_train_batch_size={batch // 2} with gradient_accumulation_steps={accumulation * 2} (the same "
            "global batch in half the memory)"
        )
    if not args.bf16 and not args.fp16:
        advice.append("bf16=True on a GPU")
    if not args.gradient_checkpointing:
        advice.append("gradient_checkpointing=True (slower)")
    return _sentence([*advice, *_of_any_step(args)]) + " --dry_run estimates a run's memory."


def _evaluation_advice(args: DistillationArguments) -> str:
    batch = args.per_device_eval_batch_size
    advice = [f"per_device_eval_batch_size={batch // 2}"] if batch > 1 else []
    if args.eval_accumulation_steps is None:
        advice.append("eval_accumulation_steps=1 (embeddings go to the CPU after each batch)")
    return _sentence([*advice, *_of_any_step(args)])


def _of_any_step(args: DistillationArguments) -> list[str]:
    advice = ["teacher_dtype=bfloat16 in examples/distill.py (half of the teacher's weights)"]
    if args.world_size > 1 and not args.shard_teacher:
        advice.append("shard_teacher=True (--shard_teacher true; each process holds a part of the teacher)")
    return [*advice, "a smaller image_size"]


def _sentence(advice: list[str]) -> str:
    return f"{_RAN_OUT}{'; '.join(advice)}."
