"""Mistakes in how a run is set up that would otherwise show after hours, or never."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .arguments import DistillationArguments

_SCORES = ("gram_distance", "knn_accuracy", "loss", "outlier_norm_share_", "peak_to_median_")


def check_processes(args: DistillationArguments) -> None:
    """Raises ValueError unless there is one process a device, all in one world."""
    if args.n_gpu > 1:
        raise ValueError(
            f"One process sees {args.n_gpu} GPUs, which Trainer would use by DataParallel: launch one process a GPU "
            f"with `accelerate launch --multi_gpu --num_processes {args.n_gpu}`, or set CUDA_VISIBLE_DEVICES=0."
        )
    check_launch(args.world_size)
    check_sharding(args)


def check_sharding(args: DistillationArguments) -> None:
    """Raises ValueError where FSDP or DeepSpeed is asked for, by the launcher or the arguments.

    On a CPU accelerate would turn FSDP into DistributedDataParallel without a word (accelerate 1.15); anywhere else
    the adapters' blocks, which run without their hooks, would meet weights that were not gathered.
    """
    asked = [name for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED") if _is_set(name)]
    asked += [name for name in ("fsdp", "deepspeed") if getattr(args, name, None)]
    if asked:
        raise ValueError(
            f"{', '.join(asked)}: a distillation run cannot be sharded as a whole. Launch one process a device "
            "(examples/accelerate/), and for a teacher that no device holds whole set shard_teacher=True "
            "(--shard_teacher true), which shards the frozen teacher alone."
        )


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "false").strip().lower() in ("1", "true", "yes", "y", "on", "t")


def check_launch(world_size: int) -> None:
    """Raises ValueError where the processes that were launched do not see each other."""
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != world_size:
        raise ValueError(
            f"{launched} processes were launched but they do not see each other (world size {world_size}), so each "
            "would run alone. On a machine without GPUs, set use_cpu=True (--use_cpu)."
        )


def check_metric(args: DistillationArguments, eval_dataset: Any) -> None:
    """Raises ValueError where `metric_for_best_model` is a score that evaluation will not give."""
    name = (args.metric_for_best_model or "").removeprefix("eval_")
    if isinstance(eval_dataset, dict):  # of several held-out sets, scores carry the set's name
        sets = [key for key in eval_dataset if name.startswith(f"{key}_")]
        if name and not sets:
            raise ValueError(
                f"metric_for_best_model={args.metric_for_best_model!r}: of several held-out sets, name the one that "
                f"counts: {', '.join(f'{key}_gram_distance' for key in eval_dataset)}, …"
            )
        name = name.removeprefix(f"{sets[0]}_") if name else name
    if not name:
        return
    if args.prediction_loss_only and name in ("gram_distance", "knn_accuracy"):
        raise ValueError(f"prediction_loss_only=True measures no {name}, which metric_for_best_model names.")
    if name == "knn_accuracy" and args.label_column is None:
        raise ValueError("metric_for_best_model='knn_accuracy' needs label_column, the column of the held-out labels.")
    if not name.startswith(_SCORES):
        raise ValueError(
            f"metric_for_best_model={args.metric_for_best_model!r} is not measured: expected gram_distance, "
            "knn_accuracy (with label_column), loss or one of its terms, such as loss_kd."
        )
