"""Computes one recorded distillation step with singer_hf and prints the result as one JSON object.

    python benchmarks/reference_case.py FILE [--variant reference|paper] [--dtype float32|float64]

FILE is a safetensors file that holds a whole step: `pixel_values`, the weights of a teacher and a student as
transformers' `ViTModel` names them, adapters, projectors and ViTKD's modules, and as metadata the sizes, layers and
weights of the losses. Where it also holds expected losses or gradients, the relative errors are printed. Adapters that
the file lacks are initialised by the variant's rule.
"""

from __future__ import annotations

import argparse
import json
import math

import torch
from peft import get_peft_model
from safetensors import safe_open
from torch import Tensor
from transformers import ViTConfig, ViTModel

from singer_hf import NullspaceLoraConfig, vision_backbone
from singer_hf.objectives import DistillationStep, FitNetObjective, ViTKDObjective, objective_class
from singer_hf.objectives.projectors import build_projector

VARIANTS = {"reference": ("singer_reference", "reference"), "paper": ("singer", "nullspace")}


def read_case(path: str, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict]:
    """Tensors in `dtype`, and the metadata with its JSON values parsed."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).to(dtype) for name in file.keys()}  # noqa: SIM118
        metadata = {name: parse(value) for name, value in (file.metadata() or {}).items()}
    return tensors, metadata


def parse(value: str):
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value  # metadata are strings, only some of them JSON


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name starts with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def build_vit(sizes: dict, weights: dict[str, Tensor], dtype: torch.dtype) -> ViTModel:
    config = ViTConfig(
        image_size=sizes["img"],
        patch_size=sizes["patch"],
        hidden_size=sizes["dim"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["heads"],
        intermediate_size=4 * sizes["dim"],
        layer_norm_eps=1e-6,
    )
    model = ViTModel(config, add_pooling_layer=False).to(dtype).eval()
    model.load_state_dict(weights)
    return model


def run_case(path: str, variant: str = "reference", dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """The case's losses, and relative errors wherever the file holds what to compare with."""
    tensors, meta = read_case(path, dtype)
    student_model = build_vit(meta["student"], under(tensors, "student."), dtype)
    teacher_model = build_vit(meta["teacher"], under(tensors, "teacher."), dtype).requires_grad_(False)
    objective_name, init = VARIANTS[variant]
    layers = meta["teacher_layers"]
    adapter = NullspaceLoraConfig(
        r=meta["rank"],
        layers_to_transform=layers,
        init_lora_weights=init,
        null_threshold=meta.get("null_threshold", 0.05),
    )
    peft_teacher = get_peft_model(teacher_model, adapter, autocast_adapter_dtype=False)
    teacher, student = vision_backbone(peft_teacher), vision_backbone(student_model)
    for layer in layers:
        if f"adapter.{layer}.down" in tensors:
            factors = tensors[f"adapter.{layer}.down"], tensors[f"adapter.{layer}.up"]
            teacher.blocks[layer].set_factors("default", *factors)

    objective = objective_class(objective_name)(
        teacher,
        student,
        teacher_layers=layers,
        student_layers=meta.get("student_layers"),
        kd_weight=1.0,
        outlier_weight=1.0,
        info_weight=1.0,
        outlier_quantile=meta["outlier_quantile"],
    ).to(dtype)
    fitnet = FitNetObjective(teacher, student, teacher_layers=layers, student_layers=meta.get("student_layers")).to(
        dtype
    )
    projectors = under(tensors, "projector.")
    objective.projectors.load_state_dict(projectors)
    fitnet.projectors.load_state_dict(projectors)

    pixel_values = tensors["pixel_values"]
    with torch.no_grad():
        teacher_features = teacher.features(pixel_values, range(teacher.num_blocks), adapters=False)
    student_features = student.features(pixel_values, range(student.num_blocks))
    step = DistillationStep(teacher_features, student_features)

    unweighted = {name.removeprefix("loss_"): term for name, term in objective(step).terms.items()}
    weights = dict(zip(("kd", "outlier", "info"), meta["loss_weights"], strict=True))
    weighted = {f"loss_{name}": weights[name] * term for name, term in unweighted.items()}
    result = {name: term.item() for name, term in weighted.items()}
    if variant == "paper":
        result |= {name: term.item() for name, term in unweighted.items()}
    result["fitnet_loss"] = fitnet(step).loss.item()
    if "vitkd.mask_token" in tensors:
        result["vitkd_loss"] = vitkd_loss(teacher, student, step, tensors, meta, dtype)
    if variant == "reference":
        result |= {
            f"{name}_relative_error": abs(result[name] - meta[name]) / abs(meta[name])
            for name in list(result)
            if meta.get(name)
        }
        result |= gradient_errors(sum(weighted.values()), student_model, teacher, objective, tensors)
    return result


def vitkd_loss(teacher, student, step, tensors: dict[str, Tensor], meta: dict, dtype: torch.dtype) -> float:
    """Pair by pair, since a file may mimic the last block too, which is the one that is generated."""
    modules = under(tensors, "vitkd.")
    noise = modules.pop("noise")
    kind = "linear" if "align.weight" in modules else "identity"
    last = {"teacher_layers": [teacher.num_blocks - 1], "student_layers": [student.num_blocks - 1]}
    vitkd = ViTKDObjective(teacher, student, **last, projector=kind).to(dtype)
    vitkd.load_state_dict({name: tensor for name, tensor in modules.items() if not name.startswith("align2.")})
    vitkd.mask = lambda step, patches: vitkd.mask_from_noise(noise)  # the recorded noise in place of a drawn one
    loss = vitkd(step).loss
    pairs = zip(meta["vitkd_teacher_layers"], meta["vitkd_student_layers"], strict=True)
    for index, pair in enumerate(pairs):
        projector = build_projector(kind, student.hidden_size, teacher.hidden_size).to(dtype)
        projector.load_state_dict(under(modules, f"align2.{index}."))
        loss = loss + vitkd.mimicking_weight * vitkd.mimic(step, projector, *pair)
    return loss.item()


def gradient_errors(loss: Tensor, student_model, teacher, objective, tensors: dict[str, Tensor]) -> dict[str, float]:
    """‖ours − recorded‖ / ‖recorded‖ over all gradients of a group, for each group the file has gradients of."""
    recorded = under(tensors, "grad.")
    if not recorded:
        return {}
    loss.backward()
    ours = {f"student.{name}": parameter.grad for name, parameter in student_model.named_parameters()}
    ours |= {f"projector.{name}": parameter.grad for name, parameter in objective.projectors.named_parameters()}
    for layer in objective.teacher_layers:
        block = teacher.blocks[layer]
        ours[f"adapter.{layer}.down"] = block.lora_A["default"].weight.grad.T
        ours[f"adapter.{layer}.up"] = block.lora_B["default"].weight.grad.T
    errors = {}
    for group in ("student", "adapter", "projector"):
        names = [name for name in recorded if name.startswith(f"{group}.")]
        if names:
            for name in names:  # of what the loss does not reach, the gradient is zero
                ours[name] = torch.zeros_like(recorded[name]) if ours[name] is None else ours[name]
            difference = sum((ours[name] - recorded[name]).double().square().sum().item() for name in names)
            norm = sum(recorded[name].double().square().sum().item() for name in names)
            errors[f"grad_{group}_relative_error"] = math.sqrt(difference / norm) if norm else math.sqrt(difference)
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", help="safetensors file of one recorded step")
    parser.add_argument("--variant", choices=VARIANTS, default="reference", help="whose formulas (default: reference)")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="precision of the step")
    args = parser.parse_args()
    print(json.dumps(run_case(args.file, args.variant, getattr(torch, args.dtype))))


if __name__ == "__main__":
    main()
