"""Two processes on one machine against one, through the example script and accelerate's own launcher."""

import json
import os
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from families import tiny_vit, vit_processor
from images import image_dataset
from safetensors.torch import load_file

from singer_hf.checkpoints.manifest import verify_manifest
from singer_hf.preflight import check_launch, check_sharding
from singer_hf.sharded_teacher import shard_teacher

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


def launch(inputs, output, processes, *options, launcher=(), check=True, rank=0, within=(), **environment):
    command = [
        *within,
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *launcher,
        str(ROOT / "examples" / "distill.py"),
    ]
    command += ["--teacher", str(inputs / "teacher"), "--student", str(inputs / "student")]
    command += ["--dataset", str(inputs / "images.parquet"), "--output_dir", str(output), "--lora_r", "4"]
    command += ["--max_steps", "6", "--logging_steps", "1", "--save_strategy", "no", "--report_to", "none"]
    command += ["--per_device_train_batch_size", str(8 // processes), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment
    environment["HF_DATASETS_CACHE"] = str(inputs / f"cache-{rank}")  # a machine has its own
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


def assert_trained_as_one(inputs, *files):
    """Loss terms of the runs "one" and "two" at every step, and the weights that they ended with."""
    for one, other in zip(losses(inputs / "one"), losses(inputs / "two"), strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
    for name in ("model.safetensors", *files):
        first, second = (load_file(inputs / run / name) for run in ("one", "two"))
        for key, tensor in first.items():
            torch.testing.assert_close(second[key], tensor, rtol=1e-3, atol=2e-5)


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
    assert_trained_as_one(inputs)


@pytest.mark.slow
def test_two_processes_with_a_sharded_teacher_train_as_one(inputs):
    two = ("--config_file", str(ROOT / "examples" / "accelerate" / "cpu_2_processes.yaml"), "--main_process_port", "0")
    held_out = ("--eval_strategy", "steps", "--eval_steps", "3", "--eval_dataset", str(inputs / "held_out.parquet"))
    options = ("--use_cpu", *held_out, "--per_device_eval_batch_size", "4")
    launch(inputs, inputs / "one", 1, *options, launcher=("--num_processes", "1"))
    sharded = launch(inputs, inputs / "two", 2, *options, "--shard_teacher", "true", launcher=two)
    assert "Error" not in sharded.stderr
    # What was saved is whole: student and adapter of a teacher in pieces.
    assert_trained_as_one(inputs, "adapter/adapter_model.safetensors")
    for one, other in zip(evaluation(inputs / "one"), evaluation(inputs / "two"), strict=True):
        assert other == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_two_machines_train_as_one_process(inputs):
    """Two launches that meet over two loopback addresses, as two machines do over a network."""
    options = ("--use_cpu", "--save_strategy", "steps", "--save_steps", "3", "--per_device_eval_batch_size", "4")
    launch(inputs, inputs / "one", 1, *options, launcher=("--num_processes", "1"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    config = ("--config_file", str(ROOT / "examples" / "accelerate" / "2_machines.yaml"), "--mixed_precision", "no")
    config += ("--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", port)

    def machine(rank):
        return launch(
            inputs,
            inputs / "two",
            2,
            *options,
            launcher=(*config, "--machine_rank", str(rank)),
            rank=rank,
            ACCELERATE_USE_CPU="true",
        )

    with ThreadPoolExecutor() as pool:
        list(pool.map(machine, range(2)))
    assert_trained_as_one(inputs)
    verify_manifest(inputs / "two" / "checkpoint-6")
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in (inputs / "two/checkpoint-6").iterdir()}


@pytest.fixture
def namespaces():
    """Two machines as far as the network goes: each a namespace with one address, and a cable between them."""
    names = [f"singer{os.getpid()}{end}" for end in "ab"]
    made = shutil.which("ip") and all(
        subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
        for name in names
    )
    try:
        if not made:
            pytest.skip("network namespaces are not permitted")
        ends = ["ip", "link", "add", "cable", "netns", names[0], "type", "veth", "peer", "cable", "netns", names[1]]
        subprocess.run(ends, check=True)
        for number, name in enumerate(names, start=1):
            address = ["ip", "-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "cable"]
            subprocess.run(address, check=True)
            for link in ("lo", "cable"):
                subprocess.run(["ip", "-n", name, "link", "set", link, "up"], check=True)
        yield [("ip", "netns", "exec", name) for name in names]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@pytest.mark.slow
def test_two_machines_with_a_network_between_them(inputs, namespaces):
    options = ("--use_cpu",)
    launch(inputs, inputs / "one", 1, *options, launcher=("--num_processes", "1"))
    config = ("--config_file", str(ROOT / "examples" / "accelerate" / "2_machines.yaml"), "--mixed_precision", "no")
    config += ("--num_processes", "2", "--main_process_ip", "10.77.0.1", "--main_process_port", "29511")

    def machine(rank):
        launcher = (*config, "--machine_rank", str(rank))
        environment = {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "cable"}
        return launch(
            inputs, inputs / "two", 2, *options, launcher=launcher, rank=rank, within=namespaces[rank], **environment
        )

    with ThreadPoolExecutor() as pool:
        list(pool.map(machine, range(2)))
    assert_trained_as_one(inputs)


_BAD_IN_ONE = """
import math, sys
sys.path.append("tests")
import torch
from runs import trainer_of, weights
from safetensors.torch import save_file
from transformers import TrainerCallback

class Poison(TrainerCallback):
    def on_step_begin(self, args, state, control, model=None, **kwargs):
        bad = state.global_step == 1 and args.process_index == 1
        model.objective.weights = {"kd": math.nan if bad else 1.0, "outlier": 0.01, "info": 1.0}

for policy in ("skip", "stop"):
    folder = f"{sys.argv[1]}/{policy}"
    trainer = trainer_of(folder, max_steps=3, per_device_train_batch_size=4, nonfinite=policy, callbacks=[Poison()])
    message = ""
    try:
        trainer.train()
    except FloatingPointError as error:
        message = str(error)
    assert trainer.args.world_size == 2
    assert ("at step 1" in message) == (policy == "stop"), message
    assert trainer.nonfinite.skipped == (policy == "skip")
    kept = {name: tensor.contiguous() for name, tensor in weights(trainer).items()}
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    save_file(kept, f"{folder}-{trainer.args.process_index}.safetensors")
    torch.distributed.barrier()
"""


@pytest.mark.slow
def test_a_bad_batch_of_one_process_is_every_process_s(tmp_path):
    (tmp_path / "train.py").write_text(_BAD_IN_ONE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    command += [str(tmp_path / "train.py"), str(tmp_path)]
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr
    for policy in ("skip", "stop"):
        first, second = (load_file(tmp_path / f"{policy}-{rank}.safetensors") for rank in range(2))
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_what_a_launcher_asks_for_in_vain_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_launch(2)
    with pytest.raises(ValueError, match="2 processes were launched but they do not see each other"):
        check_launch(1)
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.setenv(name, "true")
        with pytest.raises(ValueError, match=f"{name}.*shard_teacher=True"):
            check_sharding(SimpleNamespace())
        monkeypatch.delenv(name)
    with pytest.raises(ValueError, match="shard_teacher=True needs several processes"):
        shard_teacher(None, "cpu")


@pytest.mark.slow
def test_fsdp_of_the_whole_run_is_refused(inputs):
    result = launch(
        inputs, inputs / "out", 1, "--use_cpu", launcher=("--use_fsdp", "--num_processes", "1"), check=False
    )
    assert result.returncode != 0 and "shard_teacher=True" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="with GPUs this launch is right")
def test_two_processes_that_do_not_see_each_other_are_refused(inputs):
    """A launch for GPUs on a machine without: accelerate starts two processes that each believe to be alone."""
    launcher = ("--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
    result = launch(inputs, inputs / "out", 2, launcher=launcher, check=False)
    assert result.returncode != 0
    assert "2 processes were launched but they do not see each other" in result.stderr
    assert not (inputs / "out" / "model.safetensors").exists()
