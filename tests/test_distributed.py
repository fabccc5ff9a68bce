"""Two processes on one machine against one, through the example script and accelerate's own launcher."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import tiny_vit, vit_processor
from images import image_dataset
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]


@pytest.fixture
def inputs(tmp_path):
    torch.manual_seed(0)
    for name, sizes in {
        "teacher": {"hidden_size": 32, "num_hidden_layers": 4},
        "student": {"hidden_size": 16},
    }.items():
        tiny_vit(**sizes).save_pretrained(tmp_path / name)
        vit_processor().save_pretrained(tmp_path / name)
    image_dataset(32).to_parquet(tmp_path / "images.parquet")
    image_dataset(13, seed=1).to_parquet(tmp_path / "held_out.parquet")
    return tmp_path


def launch(inputs, output, processes, *options, launcher=(), check=True):
    command = [sys.executable, "-m", "accelerate.commands.launch", *launcher, str(ROOT / "examples" / "distill.py")]
    command += ["--teacher", str(inputs / "teacher"), "--student", str(inputs / "student")]
    command += ["--dataset", str(inputs / "images.parquet"), "--output_dir", str(output), "--lora_r", "4"]
    command += ["--max_steps", "6", "--logging_steps", "1", "--save_strategy", "no", "--report_to", "none"]
    command += ["--per_device_train_batch_size", str(8 // processes), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert not check or result.returncode == 0, result.stderr
    return result


def evaluation(output):
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    left_out = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
    return [{k: v for k, v in entry.items() if k not in left_out} for entry in history if "eval_loss" in entry]


def losses(output):
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [{k: v for k, v in entry.items() if k.startswith("loss")} for entry in history if "loss" in entry]


@pytest.mark.parametrize("objective", ["singer", pytest.param("vitkd", marks=pytest.mark.slow)])
def test_two_processes_train_as_one(inputs, objective):
    two = ("--config_file", str(ROOT / "examples" / "accelerate" / "cpu_2_processes.yaml"), "--main_process_port", "0")
    options = ("--use_cpu", "--objective", objective, "--eval_strategy", "steps", "--eval_steps", "3")
    # 13 images do not fill the last batch of either run.
    options += ("--eval_dataset", str(inputs / "held_out.parquet"), "--label_column", "label")
    options += ("--per_device_eval_batch_size", "4")
    launch(inputs, inputs / "one", 1, *options, launcher=("--num_processes", "1"))
    launch(inputs, inputs / "two", 2, *options, launcher=two)
    scores = [evaluation(inputs / name) for name in ("one", "two")]
    assert len(scores[0]) == len(scores[1]) == 2
    for one, other in zip(*scores, strict=True):
        assert other == pytest.approx(one, rel=1e-5)
    for one, other in zip(losses(inputs / "one"), losses(inputs / "two"), strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
    first, second = (load_file(inputs / name / "model.safetensors") for name in ("one", "two"))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=2e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with GPUs this launch is right")
def test_two_processes_that_do_not_see_each_other_are_refused(inputs):
    """A launch for GPUs on a machine without: accelerate starts two processes that each believe to be alone."""
    launcher = ("--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
    result = launch(inputs, inputs / "out", 2, launcher=launcher, check=False)
    assert result.returncode != 0
    assert "2 processes were launched but they do not see each other" in result.stderr
    assert not (inputs / "out" / "model.safetensors").exists()
