"""What a run writes, and what goes on from it."""

import json

import pytest
import torch
from families import tiny_vit, vit_processor
from images import image_dataset
from peft import PeftModel
from runs import assert_same_weights, trainer_of, two_adapters, weights
from transformers import (
    AutoImageProcessor,
    AutoModel,
    TrainerCallback,
)

from singer_hf import (
    vision_backbone,
)
from singer_hf.records.run_record import RUN_FILE, read_record


@pytest.mark.parametrize(
    "objective",
    [{"objective": "singer"}, {"objective": "singer", "adapter_learning_rate": 1e-4}, {"objective": "vitkd"}],
    ids=["singer", "slow_adapter", "vitkd"],
)
def test_a_resumed_run_is_the_run_that_was_never_interrupted(tmp_path, objective):
    options = objective | {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "warmup_steps": 2}
    whole = trainer_of(tmp_path / "whole", **options)
    whole.train()
    again = trainer_of(tmp_path / "again", **options)
    with torch.no_grad():  # nothing of the new process's own values may survive
        for parameter in again.model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert_same_weights(weights(whole), weights(again))
    histories = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (whole, again)]
    assert histories[0] == histories[1]


def test_a_resume_with_another_grouping_of_parameters_says_so(tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer_of(tmp_path, **options).train()
    again = trainer_of(tmp_path, adapter_learning_rate=1e-4, **options)
    with pytest.raises(ValueError, match=r"does not fit this run's: .* Was adapter_learning_rate given there"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_run_stopped_in_the_middle_of_an_epoch_resumes_exactly(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:  # epochs of 4 steps
                control.should_save = control.should_training_stop = True

    options = {"max_steps": 10}
    whole = trainer_of(tmp_path / "whole", **options)
    whole.train()
    stopped = trainer_of(tmp_path / "stopped", callbacks=[Stop()], **options)
    stopped.train()
    again = trainer_of(tmp_path / "stopped", **options)
    again.train(resume_from_checkpoint=True)
    assert_same_weights(weights(whole), weights(again))


@pytest.mark.parametrize("step", [2, 6, 8, 10])
def test_a_streamed_run_resumes_exactly_in_whichever_pass(tmp_path, step):
    def stream():
        return image_dataset(32).to_iterable_dataset()  # 4 batches a pass

    options = {"max_steps": 12, "shuffle_buffer_size": 8, "save_strategy": "steps", "save_steps": 2}
    whole = trainer_of(tmp_path / "whole", dataset=stream(), **options)
    whole.train()
    again = trainer_of(tmp_path / "again", dataset=stream(), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
    assert_same_weights(weights(whole), weights(again))


def test_a_second_call_starts_the_stream_from_its_beginning(tmp_path):
    options = {"max_steps": 4, "shuffle_buffer_size": 8, "save_strategy": "steps", "save_steps": 2}
    trainer = trainer_of(tmp_path, dataset=image_dataset(64).to_iterable_dataset(), **options)
    step, seen = trainer.training_step, []

    def watched(model, inputs, *args, **kwargs):
        seen.append(inputs["sample_seed"].tolist())
        return step(model, inputs, *args, **kwargs)

    trainer.training_step = watched
    trainer.train()
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    trainer.train()
    assert seen == [*seen[:4], *seen[2:4], *seen[:4]]
    sessions = read_record(tmp_path / RUN_FILE)["sessions"]
    assert [(each["first_step"], each["last_step"]) for each in sessions] == [(0, 2), (2, 4), (0, 4)]


def test_a_run_with_a_named_adapter_resumes_and_its_folder_opens(tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = trainer_of(tmp_path / "whole", two_adapters(), **options)
    whole.train()
    torch.manual_seed(0)
    again = trainer_of(tmp_path / "again", two_adapters(), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_same_weights(
        {name: tensor for name, tensor in weights(whole).items() if ".default." not in name},
        {name: tensor for name, tensor in weights(again).items() if ".default." not in name},
    )
    folder = tmp_path / "whole" / "checkpoint-4" / "adapter"
    assert {path.name for path in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not any(path.is_dir() for path in folder.iterdir())
    loaded = PeftModel.from_pretrained(tiny_vit(hidden_size=32, num_hidden_layers=4), folder)
    ours = vision_backbone(whole.teacher).blocks[1].lora_A["mine"].weight
    assert torch.equal(vision_backbone(loaded).blocks[1].lora_A["default"].weight, ours)


def test_a_checkpoint_opens_as_the_plain_student(tmp_path):
    trainer = trainer_of(tmp_path, save_strategy="steps", save_steps=2)
    trainer.train()
    folder = tmp_path / "checkpoint-2"
    student = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = trainer.student.eval()(pixels).last_hidden_state
        assert torch.equal(student(pixels).last_hidden_state, expected)
    assert json.loads((folder / "config.json").read_text()).get("use_cache") is None
    processor = AutoImageProcessor.from_pretrained(folder)
    assert processor.image_mean == vit_processor().image_mean
    names = {path.name for path in folder.iterdir()}
    assert {"adapter", "distillation.safetensors", "optimizer.pt", "rng_state.pth", "training_args.json"} <= names
    assert not any(path.suffix == ".bin" for path in folder.rglob("*"))
    teacher_size = sum(p.numel() for p in tiny_vit(hidden_size=32, num_hidden_layers=4).parameters())
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) < 4 * teacher_size


def test_a_checkpoints_adapter_refines_the_teacher(tmp_path):
    teacher = tiny_vit(hidden_size=32, num_hidden_layers=4).eval()
    teacher.save_pretrained(tmp_path / "teacher")
    trainer = trainer_of(tmp_path / "run", teacher, save_strategy="steps", save_steps=2)
    trainer.train()
    base = AutoModel.from_pretrained(tmp_path / "teacher", add_pooling_layer=False).eval()
    refined = PeftModel.from_pretrained(base, tmp_path / "run" / "checkpoint-2" / "adapter")
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(refined(pixels).last_hidden_state, trainer.teacher(pixels).last_hidden_state)


def test_tokens_are_not_written(tmp_path):
    trainer = trainer_of(tmp_path, hub_token="hf_secret")
    trainer.save_model()
    assert not any("hf_secret" in path.read_text(errors="ignore") for path in tmp_path.rglob("*") if path.is_file())
