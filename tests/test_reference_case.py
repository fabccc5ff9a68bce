"""Our implementation against one recorded step of the released code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import tiny_vit
from safetensors.torch import save_file

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "reference_case.py"
sys.path.append(str(SCRIPT.parent))
from reference_case import run_case  # noqa: E402


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


def test_a_case_of_other_sizes_without_expected_results(tmp_path):
    """Three layers, other widths and depths, no adapters, no results."""
    torch.manual_seed(0)
    sizes = {
        "teacher": {"img": 32, "patch": 8, "dim": 24, "depth": 5, "heads": 3},
        "student": {"img": 32, "patch": 8, "dim": 12, "depth": 3, "heads": 2},
    }
    layers = [1, 3, 4]
    tensors = {"pixel_values": torch.randn(2, 3, 32, 32)}
    for name, options in sizes.items():
        config = {"hidden_size": options["dim"], "num_hidden_layers": options["depth"]}
        model = tiny_vit(**config, num_attention_heads=options["heads"], intermediate_size=4 * options["dim"])
        tensors |= {f"{name}.{key}": tensor for key, tensor in model.state_dict().items()}
    for layer in layers:
        tensors |= {f"projector.{layer}.weight": torch.randn(24, 12), f"projector.{layer}.bias": torch.randn(24)}
    # ViTKD that mimics the last block too, which it also generates; a gradient of what no loss reaches.
    pairs = {"vitkd_teacher_layers": [0, 4], "vitkd_student_layers": [0, 2]}
    for name in ("align2.0", "align2.1", "align"):
        tensors |= {f"vitkd.{name}.weight": torch.randn(24, 12), f"vitkd.{name}.bias": torch.randn(24)}
    for name in ("generation.0", "generation.2"):
        tensors |= {f"vitkd.{name}.weight": torch.randn(24, 24, 3, 3), f"vitkd.{name}.bias": torch.randn(24)}
    tensors |= {"vitkd.mask_token": torch.randn(1, 1, 24), "vitkd.noise": torch.rand(2, 16)}
    tensors["grad.student.layernorm.weight"] = torch.zeros(12)
    meta = {
        **sizes,
        **pairs,
        "teacher_layers": layers,
        "student_layers": [0, 1, 2],
        "rank": 4,
        "outlier_quantile": 0.9,
    }
    meta = {key: json.dumps(value) for key, value in (meta | {"loss_weights": [1.0, 0.5, 2.0]}).items()}
    save_file(tensors, tmp_path / "case.safetensors", metadata=meta)
    for variant in ("reference", "paper"):
        command = [sys.executable, SCRIPT, tmp_path / "case.safetensors", "--variant", variant]
        printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment()).stdout
        result = json.loads(printed)
        wanted = {"loss_kd", "loss_outlier", "loss_info", "fitnet_loss", "vitkd_loss"}
        own = {"grad_student_relative_error"} if variant == "reference" else {"kd", "outlier", "info"}
        assert set(result) == wanted | own
        assert result.pop("grad_student_relative_error", 0) == 0
        assert all(value > 0 for value in result.values())
    assert result["loss_outlier"] == pytest.approx(0.5 * result["outlier"])
    assert result["loss_info"] == pytest.approx(2 * result["info"])


def environment():
    return os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
