"""Advice that names the options, where memory runs out in training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .arguments import DistillationArguments


@contextmanager
def memory_advice(args: DistillationArguments) -> Iterator[None]:
    """Within, an out-of-memory error is raised again as its own class, with advice behind its message.

    The message stays in front, and alone in the error's arguments: `auto_find_batch_size` knows the error by it.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(f"{error}\n{_advice(args)}") from error
    except RuntimeError as error:
        if "DefaultCPUAllocator" not in str(error):
            raise
        raise RuntimeError(f"{error}\n{_advice(args)}") from error
    except MemoryError as error:
        raise MemoryError(f"{error}\n{_advice(args)}") from error


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
    advice.append("teacher_dtype=bfloat16 in examples/distill.py (half of the teacher's weights)")
    advice.append("a smaller image_size")
    return "Memory ran out. In this order: " + "; ".join(advice) + ". --dry_run estimates a run's memory."
