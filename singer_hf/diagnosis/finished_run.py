"""What a finished distillation run trained: its projectors, and which student layer met which teacher layer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ..backbones import VisionBackbone
from ..checkpoints.folder import OBJECTIVE_FILE
from ..checkpoints.manifest import verify_if_listed
from ..layers import match_layers
from ..objectives import OBJECTIVES
from ..objectives.feature_loss import FeatureLoss
from .refinement import Refinement
from .student import StudentFit


def load_fit(
    folder: str | Path, teacher: VisionBackbone, student: VisionBackbone, targets: Mapping[int, Refinement]
) -> StudentFit | None:
    """Projectors and pairs of layers of a run; `None` where its objective has no projector a layer (ViTKD).

    Args:
        folder: output of `examples/distill.py`, with `distillation.safetensors` and `training_args.json`.
        teacher, student: the run's models.
        targets: refinements of its adapter; empty for a run without.

    Raises:
        ValueError: the pairs cannot be told from what the run recorded, or the projectors are of other models.
        DamagedCheckpointError: a file is not what the folder's manifest says.
    """
    folder = Path(folder)
    verify_if_listed(folder)
    weights = load_file(folder / OBJECTIVE_FILE)
    layers = sorted(int(name.split(".")[1]) for name in weights if re.fullmatch(r"projectors\.\d+\.weight", name))
    if not layers:
        return None
    recorded = _recorded(folder)
    pairs = _pairs(folder, recorded, layers, teacher.num_blocks, student.num_blocks)
    weight, projectors = next(student.model.parameters()), {}
    for layer in layers:
        matrix, bias = weights[f"projectors.{layer}.weight"], weights[f"projectors.{layer}.bias"]
        if tuple(matrix.shape) != (teacher.hidden_size, student.hidden_size):
            raise ValueError(
                f"{folder}: the projector of layer {layer} is {tuple(matrix.shape)}; between this teacher and student "
                f"it is {(teacher.hidden_size, student.hidden_size)}: give the run's own teacher."
            )
        projectors[layer] = torch.nn.Linear(matrix.shape[1], matrix.shape[0])
        projectors[layer].load_state_dict({"weight": matrix.float(), "bias": bias.float()})
        projectors[layer].to(weight.device)
    loss = FeatureLoss(
        recorded.get("target_normalization") or "none",
        recorded.get("outlier_mask_ratio"),
        recorded.get("prefix_share"),
    )
    return StudentFit(projectors, pairs, targets, loss)


def _recorded(folder: Path) -> dict[str, Any]:
    path = folder / "training_args.json"
    if not path.exists():
        raise ValueError(f"{folder}: training_args.json is missing: it cannot be told which layers met.")
    return json.loads(path.read_text(encoding="utf-8"))


def _pairs(
    folder: Path, recorded: dict[str, Any], layers: Sequence[int], teacher_blocks: int, student_blocks: int
) -> dict[int, int]:
    """Teacher layer -> student layer, as the run matched the layers that it has projectors of."""
    named = recorded.get("teacher_layers") or list(layers)
    if sorted(named) != list(layers):
        raise ValueError(
            f"{folder}: training_args.json names teacher layers {named}, {OBJECTIVE_FILE} has projectors of "
            f"{list(layers)}: these are not files of one run."
        )
    matching, objective = recorded.get("layer_matching"), recorded.get("objective")
    if matching is None and recorded.get("student_layers") is None:
        if objective not in OBJECTIVES:
            raise ValueError(
                f"{folder}: objective {objective!r} is not registered, so its rule of matching layers is not known: "
                "register it, or train with --layer_matching or --student_layers."
            )
        matching = OBJECTIVES[objective].default_layer_matching
    matched = match_layers(
        named,
        teacher_blocks,
        student_blocks,
        matching=matching or "paper",
        student_layers=recorded.get("student_layers"),
    )
    return dict(zip(sorted(named), matched, strict=True))
