"""run.json: what a run records of itself, and a run started again from it."""

import json
import sys
from pathlib import Path

import datasets
import pytest
import torch
from families import tiny_vit, vit_processor
from images import image_dataset
from runs import arguments, assert_same_weights, trainer_of, weights

from singer_hf import DistillationArguments
from singer_hf.command_line import ConfigError, parse_options, read_config
from singer_hf.records.run_record import RUN_FILE, RunRecord, given_options, read_record

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import distill  # noqa: E402


def test_models_data_and_time_are_recorded(tmp_path):
    dataset = image_dataset(24)
    trainer = trainer_of(tmp_path, dataset=dataset, max_steps=3, gradient_accumulation_steps=2)
    trainer.train()
    record = read_record(tmp_path / RUN_FILE)
    assert record["script"] is None
    assert record["options"]["max_steps"] == 3 and "learning_rate" not in record["options"]
    assert record["arguments"]["learning_rate"] == 1e-3
    assert record["objective"] == "singer"
    teacher, student = record["teacher"], record["student"]
    assert teacher["parameters"] == sum(p.numel() for p in tiny_vit(hidden_size=32, num_hidden_layers=4).parameters())
    assert teacher["adapter"]["r"] == 4 and teacher["dtype"] == "float32"
    trained = sum(p.numel() for p in trainer.student.parameters() if p.requires_grad)
    assert student["trainable_parameters"] == trained < student["parameters"]
    assert record["train_data"]["fingerprint"] == dataset._fingerprint and record["train_data"]["images"] == 24
    assert record["eval_data"] is None
    (session,) = record["sessions"]
    assert (session["first_step"], session["last_step"], session["images"]) == (0, 3, 3 * 2 * 8)
    assert 0 < session["seconds"] < 600
    assert session["versions"]["torch"] and session["hardware"]["processes"] == 1


def test_images_are_counted_by_the_batch_that_was_found(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=3, auto_find_batch_size=True)
    step, tried = trainer.training_step, []

    def small_memory(model, inputs, *args, **kwargs):
        tried.append(len(inputs["pixel_values"]))
        if tried[-1] == 8:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(model, inputs, *args, **kwargs)

    trainer.training_step = small_memory
    trainer.train()
    (session,) = read_record(tmp_path / RUN_FILE)["sessions"]
    assert tried[0] == 8 and session["images"] == sum(tried[1:])


def test_a_resumed_run_adds_a_session(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    trainer_of(tmp_path, **options).train()
    record = read_record(tmp_path / "checkpoint-2" / RUN_FILE)
    assert [session["last_step"] for session in record["sessions"]] == [2]
    trainer_of(tmp_path, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    sessions = read_record(tmp_path / RUN_FILE)["sessions"]
    assert [(each["first_step"], each["last_step"]) for each in sessions] == [(0, 2), (2, 4)]
    assert [each["images"] for each in sessions] == [16, 16]
    assert not any("changed_options" in each for each in sessions)


def test_a_run_resumed_with_other_options_says_so_and_records_it(tmp_path, caplog):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "outlier_mask_ratio": 2.0}
    trainer_of(tmp_path / "first", **options).train()
    again = trainer_of(tmp_path / "again", **options | {"outlier_mask_ratio": 3.0, "detach_target": True})
    again.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-2"))
    first, second = read_record(tmp_path / "again" / RUN_FILE)["sessions"]
    assert "changed_options" not in first
    assert second["changed_options"] == {"outlier_mask_ratio": [2.0, 3.0], "detach_target": [None, True]}
    assert "outlier_mask_ratio was 2.0, is 3.0; detach_target was None, is True" in caplog.text


def test_a_stream_and_several_held_out_sets(tmp_path):
    held_out = {"a": image_dataset(8), "b": image_dataset(9)}
    trainer = trainer_of(tmp_path, dataset=image_dataset(24).to_iterable_dataset(), eval_dataset=held_out)
    assert trainer.record.content["train_data"]["images"] is None
    assert {name: part["images"] for name, part in trainer.record.content["eval_data"].items()} == {"a": 8, "b": 9}


def test_the_files_of_a_stream_are_recorded(tmp_path, monkeypatch):
    from singer_hf.data import loading
    from singer_hf.records.run_record import _data

    for name, count in (("train-0", 8), ("train-1", 9), ("test-0", 4)):
        image_dataset(count).to_parquet(tmp_path / f"{name}.parquet")
    sizes = {path.name: path.stat().st_size for path in sorted(tmp_path.glob("train-*"))}
    record = _data(loading.load_images(tmp_path, split="train", streaming=True, max_samples=10))
    assert record["files"] == sizes and record["images"] is None and record["split"] == "train"
    other = _data(loading.load_images(tmp_path, split="test", streaming=True))
    assert record["fingerprint"] != other["fingerprint"] is not None
    monkeypatch.setattr(loading, "_MOST_FILES", 1)
    record = _data(loading.load_images(tmp_path, split="train", streaming=True))
    assert record["files"] == {f"{tmp_path.name}/": sum(sizes.values())}
    assert _data(image_dataset(4))["files"] is None


def test_the_commit_of_a_streamed_hub_dataset_is_noted():
    from singer_hf.data.loading import _sizes
    from singer_hf.records.run_record import _data

    commit = "0123456789abcdef0123456789abcdef01234567"
    stream = image_dataset(4).to_iterable_dataset()
    stream.info.download_checksums = _sizes([f"hf://datasets/owner/name@{commit}/data/train-{n}.tar" for n in (0, 1)])
    record = _data(stream)
    assert record["revision"] == commit and record["files"] == {"train-0.tar": None, "train-1.tar": None}


def test_tokens_are_not_recorded(tmp_path):
    trainer = trainer_of(tmp_path, hub_token="hf_secret")
    trainer.train()
    trainer.save_model()
    for path in tmp_path.rglob("*.json"):
        assert "hf_secret" not in path.read_text(), path


@pytest.fixture
def command(tmp_path):
    tiny_vit(hidden_size=32, num_hidden_layers=4).save_pretrained(tmp_path / "teacher")
    vit_processor().save_pretrained(tmp_path / "teacher")
    tiny_vit(hidden_size=16, num_hidden_layers=3).save_pretrained(tmp_path / "student")
    image_dataset(24).to_parquet(tmp_path / "images.parquet")
    return [
        *("--teacher", str(tmp_path / "teacher"), "--student", str(tmp_path / "student")),
        *("--dataset", str(tmp_path / "images.parquet"), "--output_dir", str(tmp_path / "run")),
        *("--per_device_train_batch_size", "8", "--max_steps", "3", "--use_cpu", "--report_to", "none"),
        *("--lora_r", "4", "--teacher_layers", "1", "3", "--lr_scheduler_type", "linear", "--save_strategy", "no"),
        *("--warmup_steps", "0.5", "--eval_split", "train", "--metric_for_best_model", "gram_distance"),
    ]


def test_a_run_starts_again_from_its_record(tmp_path, command):
    first = distill.build_trainer(*distill.parse_arguments(command))
    first.train()
    again = ["--config", str(tmp_path / "run" / RUN_FILE)]
    script, args = distill.parse_arguments(again)
    assert given_options(script) == given_options(distill.parse_arguments(command)[0])
    assert args.to_dict() == first.args.to_dict()
    second = distill.build_trainer(*distill.parse_arguments([*again, "--output_dir", str(tmp_path / "second")]))
    second.train()
    assert_same_weights(weights(first), weights(second))


def test_what_cannot_be_started_again(tmp_path):
    trainer_of(tmp_path).record.save(tmp_path)
    with pytest.raises(ConfigError, match="started from Python"):
        read_config(tmp_path / RUN_FILE, known=set())


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"options": [], "sessions": []}', '{"options": {}, "sessions": [1]}']
)
def test_what_is_no_record(tmp_path, text):
    (tmp_path / RUN_FILE).write_text(text)
    with pytest.raises(ValueError, match=RUN_FILE):
        read_record(tmp_path / RUN_FILE)


def test_unknown_fields_of_a_record_are_refused(tmp_path):
    (tmp_path / RUN_FILE).write_text(json.dumps({"options": {}, "sessions": [], "sha256_": ""}))
    with pytest.raises(ValueError, match="unknown fields: sha256_"):
        read_record(tmp_path / RUN_FILE)


def test_tokens_inside_of_addresses_are_left_out_and_asked_for(tmp_path, capsys):
    script = distill.ScriptArguments(
        dataset="https://me:s3cr1t@host/x.parquet?token=s3cr2t", teacher="https://s3cr3t@host/t"
    )
    RunRecord(arguments(tmp_path), "distill.py", script).save(tmp_path)
    text = (tmp_path / RUN_FILE).read_text()
    assert "s3cr" not in text and "https://me:<left out>@host" in text
    again = ["--config", str(tmp_path / RUN_FILE), "--teacher", "t"]
    with pytest.raises(SystemExit):
        parse_options((distill.ScriptArguments, DistillationArguments), again)
    assert "dataset is recorded without the token that it held" in capsys.readouterr().err
    script, *_ = parse_options((distill.ScriptArguments, DistillationArguments), [*again, "--dataset", "d"])
    assert (script.teacher, script.dataset) == ("t", "d")


@pytest.mark.parametrize(
    "option",
    [{"dataset": {"a": 1}}, {"lora_r": [4]}, {"teacher_layers": [[1]]}, {"teacher_layers": ["--lora_r", "8"]}],
)
def test_values_of_a_shape_that_the_option_has_not(tmp_path, option, capsys):
    (tmp_path / "config.json").write_text(json.dumps(option))
    with pytest.raises(SystemExit):
        distill.parse_arguments(["--config", str(tmp_path / "config.json")])
    assert next(iter(option)) in capsys.readouterr().err


def test_text_beyond_16_bits_in_json(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"dataset": "\U0001f426"}))
    assert read_config(tmp_path / "config.json", known={"dataset"}) == {"dataset": "\U0001f426"}


def test_unknown_options_of_a_record_are_refused(tmp_path, capsys):
    record = {"script": "distill.py", "options": {"no_such_option": 1}, "sessions": []}
    (tmp_path / RUN_FILE).write_text(json.dumps(record))
    with pytest.raises(SystemExit):
        parse_options((distill.ScriptArguments,), ["--config", str(tmp_path / RUN_FILE)])
    assert "no_such_option" in capsys.readouterr().err


def test_the_commit_of_a_hub_dataset_is_found():
    from singer_hf.records.run_record import _data

    dataset = image_dataset(4)
    commit = "0123456789abcdef0123456789abcdef01234567"
    dataset.info.download_checksums = {
        f"hf://datasets/owner/name@{commit}/data/train-{part}.parquet": {"num_bytes": 1} for part in range(2)
    }
    assert _data(dataset)["revision"] == commit
    assert _data(datasets.Dataset.from_dict({"image": [1]}))["revision"] is None
