"""What happens to a run, and what it leaves behind."""

import math
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from images import image_dataset
from runs import assert_same_weights, trainer_of, weights
from safetensors.torch import load_file
from transformers import TrainerCallback

from singer_hf.data.errors import DataWorkerError
from singer_hf.faults.out_of_memory import memory_advice
from singer_hf.faults.stop_signals import RunStopped, leave_stopping_to_the_trainer

ROOT = Path(__file__).parents[1]


class At(TrainerCallback):
    """Calls something at the begin of a step."""

    def __init__(self, step, call):
        self.step, self.call = step, call

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.call()


class Poison(TrainerCallback):
    """Makes the loss of a few steps NaN, without touching weights."""

    def __init__(self, steps):
        self.steps = steps

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        bad = state.global_step in self.steps
        model.objective.weights = {"kd": math.nan if bad else 1.0, "outlier": 0.01, "info": 1.0}


# -- signals ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_a_checkpoint_and_the_resumed_run_is_the_whole_one(tmp_path, number):
    options = {"max_steps": 6, "dataloader_num_workers": 1}
    whole = trainer_of(tmp_path / "whole", **options)
    whole.train()
    stopped = trainer_of(tmp_path / "run", callbacks=[At(2, lambda: os.kill(os.getpid(), number))], **options)
    before = signal.getsignal(number)
    with pytest.raises(RunStopped, match="stopped the run.*checkpoint-3 is written") as error:
        stopped.train()
    assert error.value.code == 128 + number and signal.getsignal(number) is before
    again = trainer_of(tmp_path / "run", **options)
    again.train(resume_from_checkpoint=True)
    assert_same_weights(weights(whole), weights(again))


def test_a_stop_saves_whatever_the_save_strategy_says_of_its_step(tmp_path):
    def stop():
        trainer.compute_metrics = lambda prediction: {"gram_distance": 1.0}  # worse
        signal.raise_signal(signal.SIGTERM)

    options = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "best", "greater_is_better": False}
    options |= {"metric_for_best_model": "gram_distance"}
    trainer = trainer_of(tmp_path, eval_dataset=image_dataset(8), max_steps=6, callbacks=[At(3, stop)], **options)
    trainer.compute_metrics = lambda prediction: {"gram_distance": 0.0}
    with pytest.raises(RunStopped, match="checkpoint-4 is written"):
        trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert trainer.state.best_global_step == 2


@pytest.mark.parametrize("persistent", [False, True])
def test_a_signal_to_the_whole_group_while_workers_of_an_evaluation_live(tmp_path, persistent):
    class Stop(TrainerCallback):
        def signal_all(self):
            workers = multiprocessing.active_children()
            assert workers
            for worker in workers:
                os.kill(worker.pid, signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

        def on_prediction_step(self, args, state, control, **kwargs):
            if not persistent and not trainer.stop_signals.received:
                self.signal_all()

        def on_step_begin(self, args, state, control, **kwargs):
            if persistent and state.global_step == 1:
                self.signal_all()

    options = {"dataloader_num_workers": 1, "dataloader_persistent_workers": persistent, "max_steps": 4}
    options |= {"eval_dataset": image_dataset(48), "eval_strategy": "steps", "eval_steps": 1}
    trainer = trainer_of(tmp_path, callbacks=[Stop()], **options)
    with pytest.raises(RunStopped, match="checkpoint-2 is written"):
        trainer.train()


def test_a_stop_without_a_checkpoint_names_none(tmp_path):
    class Never(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_save = False

    trainer = trainer_of(tmp_path, callbacks=[At(1, lambda: signal.raise_signal(signal.SIGTERM))])
    trainer.add_callback(Never())
    with pytest.raises(RunStopped, match="No checkpoint of its last step was written"):
        trainer.train()


def test_a_second_interrupt_stops_at_once(tmp_path):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path, callbacks=[At(1, twice)]).train()


def test_workers_survive_the_signal_that_is_meant_for_the_run():
    code = (
        "import os, signal, time\n"
        "from singer_hf.faults.stop_signals import leave_stopping_to_the_trainer as init\n"
        "init(None, 0)\n"
        "os.kill(os.getpid(), signal.SIGTERM); print('alive', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGTERM); print('still', flush=True)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout == "alive\n" and result.returncode == -signal.SIGTERM
    called = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    leave_stopping_to_the_trainer(called.append, 3)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert called == [3]


# -- not finite -------------------------------------------------------------------------------------------------------
def test_the_images_of_a_bad_step_are_kept(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=4, callbacks=[Poison({2})])
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 2 \(loss_kd = nan.*Its images are in"):
        trainer.train()
    found = load_file(tmp_path / "nonfinite" / "step-2-process-0.safetensors")
    assert found["0.pixel_values"].dtype == torch.uint8 and found["0.pixel_values"].shape == (8, 3, 32, 32)
    assert len(set(found["0.sample_seed"].tolist())) == 8 and math.isnan(found["0.loss_kd"])


def test_bad_steps_are_left_out_a_bounded_number_of_times(tmp_path):
    options = {"max_steps": 6, "nonfinite": "skip", "max_nonfinite_steps": 2, "gradient_accumulation_steps": 2}
    options |= {"dataset": image_dataset(96)}
    trainer = trainer_of(tmp_path / "two", callbacks=[Poison({1, 3})], **options)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert trainer.nonfinite.skipped == 2 and history[-1]["nonfinite_steps"] == 2
    assert all(math.isfinite(entry.get("loss_kd", 0)) for entry in history)
    assert all(torch.isfinite(tensor).all() for tensor in weights(trainer).values())
    trainer = trainer_of(tmp_path / "three", callbacks=[Poison({1, 3, 4})], **options)
    with pytest.raises(FloatingPointError, match="2 such steps were skipped before"):
        trainer.train()


def test_a_resumed_run_remembers_the_bad_steps_before_it(tmp_path):
    options = {"max_steps": 4, "nonfinite": "skip", "max_nonfinite_steps": 1, "logging_steps": 50}
    options |= {"save_strategy": "steps", "save_steps": 2}
    trainer_of(tmp_path, callbacks=[Poison({1})], **options).train()
    again = trainer_of(tmp_path, callbacks=[Poison({3})], **options)
    with pytest.raises(FloatingPointError, match="1 such steps were skipped before"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_step_that_is_left_out_changes_nothing(tmp_path):
    kept = []

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            kept.append((weights(trainer), str(trainer.optimizer.state_dict()["state"])))

    trainer = trainer_of(tmp_path, max_steps=3, nonfinite="skip", callbacks=[Poison({1}), Keep()])
    trainer.train()
    assert_same_weights(kept[0][0], kept[1][0])
    assert kept[0][1] == kept[1][1] and kept[1][1] != kept[2][1]


def test_a_bad_gradient_of_a_finite_loss(tmp_path):
    class Spoil(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 1:
                parameter = next(p for p in model.student.parameters() if p.requires_grad)
                parameter.register_hook(lambda gradient: gradient * math.inf)

    before = []
    trainer = trainer_of(tmp_path, max_steps=3, callbacks=[Spoil(), At(1, lambda: before.append(weights(trainer)))])
    with pytest.raises(FloatingPointError, match="gradient's norm is (nan|inf) at step 1, with a finite loss"):
        trainer.train()
    assert_same_weights(before[0], weights(trainer))


# -- memory and workers -----------------------------------------------------------------------------------------------
def test_advice_on_memory_names_the_options(tmp_path):
    args = trainer_of(tmp_path).args
    advice = r"(?s)per_device_train_batch_size=4 with gradient_accumulation_steps=2"
    cuda, cpu = torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate")
    for error in (cuda, cpu):
        with pytest.raises(type(error), match=advice), memory_advice(args):
            raise error
    with pytest.raises(RuntimeError, match="^other$"), memory_advice(args):
        raise RuntimeError("other")


@pytest.mark.parametrize("where", ["optimizer", "evaluation"])
def test_memory_that_runs_out_anywhere_in_a_training(tmp_path, where):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    trainer = trainer_of(tmp_path, eval_dataset=image_dataset(8), eval_strategy="steps", eval_steps=1)
    if where == "optimizer":
        trainer.create_optimizer().step = fail
    else:
        trainer.prediction_step = fail
    with pytest.raises(torch.OutOfMemoryError) as error:
        trainer.train()
    wanted = "per_device_train_batch_size=4" if where == "optimizer" else "per_device_eval_batch_size=4"
    assert wanted in str(error.value) and str(error.value).count("Memory ran out") == 1


def test_a_worker_that_dies(tmp_path):
    images = image_dataset(32).with_transform(_die)
    with pytest.raises(
        DataWorkerError, match=r"(?s)worker.*lower dataloader_num_workers.*resume_from_checkpoint=True"
    ):
        trainer_of(tmp_path, dataset=images, dataloader_num_workers=1, image_column="image").train()


def _die(batch):
    if torch.utils.data.get_worker_info() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return batch


# -- the same run -----------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_seed_gives_the_same_run_in_fresh_processes(tmp_path):
    code = (
        "import sys; sys.path.append('tests')\n"
        "from runs import trainer_of\n"
        "trainer = trainer_of(sys.argv[1], max_steps=4, dataloader_num_workers=1)\n"
        "trainer.train(); trainer.save_model()\n"
    )
    for name in ("one", "two"):
        command = [sys.executable, "-c", code, str(tmp_path / name)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(len(name) + ord(name[0]))}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=200)
    for part in ("model.safetensors", "distillation.safetensors", "adapter/adapter_model.safetensors"):
        first, second = (load_file(tmp_path / name / part) for name in ("one", "two"))
        assert_same_weights(first, second)


def test_tokens_in_options_reach_no_file_and_no_log(tmp_path, caplog):
    trainer = trainer_of(tmp_path, hub_token="hf_secret", save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.save_model()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written and not any(b"hf_secret" in path.read_bytes() for path in written)
    assert "hf_secret" not in caplog.text
