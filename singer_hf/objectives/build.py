"""From arguments to an objective and the teacher it needs."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from ..adapter import NullspaceLoraConfig
from ..backbones import vision_backbone
from .base import Objective, objective_class

if TYPE_CHECKING:
    from ..arguments import DistillationArguments


def build_objective(
    teacher: nn.Module,
    student: PreTrainedModel,
    args: DistillationArguments,
    peft_config: NullspaceLoraConfig | None = None,
) -> tuple[Objective, nn.Module]:
    """The objective that the arguments name, and the teacher with the adapter that it trains.

    Raises:
        ValueError: layers named twice over and differently, two adapters, an adapter for an objective that uses none.
    """
    kind = objective_class(args.objective)
    carried = teacher.active_peft_config if isinstance(teacher, PeftModel) else None
    if not kind.uses_adapter and (carried or peft_config):
        raise ValueError(
            f"objective={args.objective!r} uses no adapter: leave peft_config out and pass the plain teacher."
        )
    if carried and len(teacher.active_adapters) != 1:
        raise ValueError(f"One adapter is trained, but {teacher.active_adapters} are active: use set_adapter first.")
    if carried and peft_config:
        raise ValueError("The teacher already carries an adapter, which is trained on: leave peft_config out.")
    backbone = vision_backbone(teacher)
    layers = args.teacher_layers
    named = next((config.layers_to_transform for config in (carried, peft_config) if config is not None), None)
    if named and layers and sorted(named) != sorted(layers):
        raise ValueError(
            f"teacher_layers={sorted(layers)} but the adapter sits on {sorted(named)}: name the layers once."
        )
    layers = layers or named or kind.default_teacher_layers(backbone.num_blocks)
    if kind.uses_adapter and carried is None:
        if peft_config is None:
            config = NullspaceLoraConfig(init_lora_weights=kind.default_init_lora_weights, init_seed=args.seed)
        else:
            config = copy.deepcopy(peft_config)  # get_peft_model writes into it
        config.layers_to_transform = sorted(layers)
        teacher = get_peft_model(teacher, config)
        backbone = vision_backbone(teacher)
    return kind.from_arguments(backbone, vision_backbone(student), args, layers), teacher
