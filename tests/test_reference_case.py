"""Our implementation against one recorded step of the released code."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from reference_case import run_case


@pytest.fixture(scope="module")
def case(shared_data):
    return shared_data / "reference" / "small_vit_case.safetensors"


def test_the_released_code_is_reproduced(case):
    result = run_case(case, "reference")
    losses = [result[f"{name}_relative_error"] for name in ("loss_kd", "loss_outlier", "loss_info", "fitnet_loss")]
    assert max(*losses, result["vitkd_loss_relative_error"]) < 1e-5
    groups = [result[f"grad_{group}_relative_error"] for group in ("student", "adapter", "projector")]
    assert max(groups) < 1e-4


def test_the_papers_formulas_on_the_same_case(case):
    """Values computed separately in float64; see the case's README."""
    result = run_case(case, "paper", torch.float64)
    assert result["kd"] == pytest.approx(1.20514713, rel=1e-7)
    assert result["outlier"] == pytest.approx(0.44905040, rel=1e-6)
    assert result["info"] == pytest.approx(0.00742564, rel=1e-6)


def test_the_recorded_adapters_follow_our_reference_rule(case):
    from peft import get_peft_model
    from reference_case import build_vit, read_case, under

    from singer_hf import NullspaceLoraConfig, vision_backbone

    tensors, meta = read_case(case, torch.float32)
    teacher = build_vit(meta["teacher"], under(tensors, "teacher."), torch.float32)
    layers = meta["teacher_layers"]
    config = NullspaceLoraConfig(
        r=meta["rank"],
        layers_to_transform=layers,
        init_lora_weights="reference",
        null_threshold=meta["null_threshold"],
    )
    blocks = vision_backbone(get_peft_model(teacher, config)).blocks
    for layer in layers:
        ours, recorded = blocks[layer].lora_B["default"].weight, tensors[f"adapter.{layer}.down"]
        # Singular vectors have no sign of their own.
        torch.testing.assert_close((ours.T @ recorded).abs(), torch.eye(meta["rank"]), rtol=0, atol=1e-3)
