import errno
import json
import runpy
import sys
from pathlib import Path

import datasets
import pytest
import yaml
from families import tiny_vit, vit_processor
from images import image_dataset
from transformers import AutoModel

from singer_hf import CheckpointError
from singer_hf.data.errors import DataWorkerError

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "examples"))
import distill  # noqa: E402

CONFIGS = sorted((ROOT / "examples" / "configs").glob("*.yaml"))


@pytest.fixture
def command(tmp_path):
    tiny_vit(hidden_size=32, num_hidden_layers=4).save_pretrained(tmp_path / "teacher")
    vit_processor().save_pretrained(tmp_path / "teacher")
    tiny_vit(hidden_size=16).save_pretrained(tmp_path / "student")
    vit_processor().save_pretrained(tmp_path / "student")
    images = image_dataset()
    for index, row in enumerate(images):
        folder = tmp_path / "images" / str(row["label"])
        folder.mkdir(parents=True, exist_ok=True)
        row["image"].save(folder / f"{index}.jpg")
    options = {
        "teacher": str(tmp_path / "teacher"),
        "student": str(tmp_path / "student"),
        "dataset": str(tmp_path / "images"),
        "output_dir": str(tmp_path / "out"),
        "lora_r": 4,
        "use_cpu": True,
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "report_to": "none",
        "disable_tqdm": True,
    }

    def build(**changes):
        merged = {k: v for k, v in (options | changes).items() if v is not None}
        return [item for name, value in merged.items() for item in (f"--{name}", str(value))]

    build.options, build.folder = options, tmp_path
    return build


def test_an_image_folder_is_distilled(command):
    distill.main(command())
    assert AutoModel.from_pretrained(command.folder / "out", add_pooling_layer=False).config.hidden_size == 16
    assert json.loads((command.folder / "out" / "metrics.json").read_text())["train_loss"] > 0


def test_a_parquet_file_with_an_evaluation(command):
    image_dataset().to_parquet(command.folder / "train.parquet")
    image_dataset(16, seed=1).to_parquet(command.folder / "held_out.parquet")
    distill.main(
        command(
            dataset=command.folder / "train.parquet",
            eval_dataset=command.folder / "held_out.parquet",
            label_column="label",
            eval_strategy="steps",
            eval_steps=1,
        )
    )
    assert "eval_knn_accuracy" in json.loads((command.folder / "out" / "metrics.json").read_text())


def test_a_stream_is_distilled(command):
    image_dataset().to_parquet(command.folder / "train.parquet")
    distill.main(command(dataset=command.folder / "train.parquet", streaming=True, shuffle_buffer_size=8))
    assert (command.folder / "out" / "model.safetensors").exists()


def test_a_streams_held_out_images_are_taken_without_preparing_it(command, monkeypatch):
    folder = command.folder / "parquet"
    folder.mkdir()
    image_dataset(16).to_parquet(folder / "train-0.parquet")
    image_dataset(8, seed=1).to_parquet(folder / "validation-0.parquet")
    options = {"dataset": folder, "streaming": True, "eval_split": "validation"}
    monkeypatch.setattr(datasets.DatasetBuilder, "download_and_prepare", lambda *_: pytest.fail("prepared"))
    script, _ = distill.parse_arguments(command(**options, max_eval_samples=5))
    train, held_out = distill.load_data(script, 2)
    assert isinstance(train, datasets.IterableDataset) and isinstance(held_out, datasets.Dataset)
    assert held_out["label"] == image_dataset(8, seed=1)["label"][:5]
    assert held_out[4]["image"].tobytes() == image_dataset(8, seed=1)[4]["image"].tobytes()
    script, _ = distill.parse_arguments(command(**options))
    with pytest.raises(ValueError, match="max_eval_samples"):
        distill.load_data(script, 2)


def test_a_student_from_scratch_of_a_named_size(command):
    distill.main(command(student="tiny", max_steps=1))
    assert AutoModel.from_pretrained(command.folder / "out", add_pooling_layer=False).config.hidden_size == 192


def test_a_run_goes_on_from_its_newest_checkpoint(command):
    def losses():
        history = json.loads((command.folder / "out" / "trainer_state.json").read_text())["log_history"]
        return [entry["loss"] for entry in history if "loss" in entry]

    distill.main(command(save_strategy="steps", save_steps=1, logging_steps=1))
    first = losses()
    # With another seed a run from the start would log other losses.
    distill.main(command(max_steps=3, logging_steps=1, seed=7, resume_from_checkpoint="true"))
    assert len(losses()) == 3 and losses()[:2] == first


def test_a_checkpoint_that_is_not_there(command):
    with pytest.raises(SystemExit, match="^error: There is no checkpoint folder .*nowhere"):
        distill.main(command(resume_from_checkpoint=str(command.folder / "nowhere")))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_ends_the_training_in_one_line(command, workers):
    next((command.folder / "images").rglob("*.jpg")).write_bytes(b"no image")
    with pytest.raises(SystemExit, match="^error: [^\n]*cannot be read[^\n]*$"):
        distill.main(command(max_steps=4, dataloader_num_workers=workers))


@pytest.mark.parametrize(
    "fault", [FloatingPointError("nan"), OSError(errno.ENOSPC, "full"), CheckpointError("x"), DataWorkerError("died")]
)
def test_a_fault_in_training_is_one_line_and_a_bug_is_not(command, monkeypatch, fault):
    def fail(self, *args, **kwargs):
        raise error

    monkeypatch.setattr(distill.DistillationTrainer, "train", fail)
    error = fault
    with pytest.raises(SystemExit, match="^error: "):
        distill.main(command())
    error = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        distill.main(command())


def test_a_dry_run_prints_and_stops(command, capsys):
    distill.main([*command(), "--dry_run"])
    printed = capsys.readouterr().out
    assert "teacher block 3 of 4  ->  student block 2 of 3" in printed
    assert not (command.folder / "out" / "model.safetensors").exists()


def test_the_command_line_wins_over_the_config_file(command):
    path = command.folder / "config.yaml"
    path.write_text(yaml.safe_dump(command.options | {"kd_weight": 2.0, "learning_rate": "1e-4"}))
    script, args = distill.parse_arguments(["--config", str(path), "--kd_weight", "3.0"])
    assert (script.lora_r, args.kd_weight, args.learning_rate) == (4, 3.0, 1e-4)


def test_a_json_config_file(command):
    path = command.folder / "config.json"
    path.write_text(json.dumps(command.options | {"teacher_layers": [1, 3]}))
    assert distill.parse_arguments(["--config", str(path)])[1].teacher_layers == [1, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora_r: 8.5", "invalid int value: '8.5'"),
        ("teacher_layers: [two]", "invalid int value: 'two'"),
        ("streaming: 3", "Truthy value expected"),
        ("teacher_dtype: float17", "invalid choice: 'float17'"),
        ("config: other.yaml", "unknown options: config"),
        ("just text", "holds str; expected options"),
        ("a: [1", "cannot be read as YAML or JSON"),
    ],
)
def test_values_of_a_config_file_are_checked(command, capsys, text, message):
    path = command.folder / "config.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit):
        distill.parse_arguments(["--config", str(path)])
    assert message in capsys.readouterr().err


def test_one_number_for_a_list_and_null_for_a_default(command):
    path = command.folder / "config.yaml"
    path.write_text("teacher_layers: 17\nkd_weight: null\nlr_scheduler_kwargs: {min_lr_rate: 0.5}\nuse_cpu: true\n")
    _, args = distill.parse_arguments(["--config", str(path)])
    assert (args.teacher_layers, args.kd_weight) == ([17], 1.0)
    path.write_text(
        "report_to: [tensorboard]\neval_strategy: no\nrun_name: -x\nuse_cpu: true\nteacher_layers: [1, 2]\n"
    )
    _, args = distill.parse_arguments(["--config", str(path)])
    assert (args.report_to, args.eval_strategy.value, args.run_name) == (["tensorboard"], "no", "-x")
    assert args.teacher_layers == [1, 2]
    path.write_text("lr_scheduler_kwargs: {min_lr_rate: 0.5}\nuse_cpu: true\n")
    _, args = distill.parse_arguments(["--config", str(path)])
    assert args.lr_scheduler_kwargs == {"min_lr_rate": 0.5}


def test_an_image_column_that_is_not_there(command):
    with pytest.raises(SystemExit, match="^error: The dataset has no column 'typo'; its columns are 'image', 'label'"):
        distill.main(command(image_column="typo"))


def test_streaming_needs_the_number_of_steps(command):
    with pytest.raises(SystemExit, match="--streaming needs --max_steps"):
        distill.main(command(streaming=True, max_steps=None))


def test_a_student_that_is_nothing(command):
    with pytest.raises(SystemExit, match="--student tinyy: expected tiny, small, base, a folder"):
        distill.main(command(student="tinyy"))


def test_a_teacher_folder_that_is_not_there(command):
    with pytest.raises(SystemExit, match=r"nowhere' is no folder here \(working directory"):
        distill.main(command(teacher=str(command.folder / "nowhere")))


def test_options_are_not_completed(command):
    with pytest.raises(SystemExit, match="--outlier_quantil'"):
        distill.main([*command(), "--outlier_quantil", "0.9"])


def test_early_stopping_without_a_score(command):
    with pytest.raises(SystemExit, match="--early_stopping_patience needs --metric_for_best_model"):
        distill.main(command(early_stopping_patience=2))


def test_a_bug_is_not_taken_for_the_users_mistake(command, monkeypatch):
    monkeypatch.setattr(distill, "build_trainer", lambda *args: None + 1)
    with pytest.raises(TypeError):
        distill.main(command())


def test_the_demonstration_refuses_options_it_does_not_read():
    with pytest.raises(SystemExit, match="does not read --eval_split, --streaming"):
        distill.main(["--streaming", "--eval_split", "test", "--use_cpu"])


def test_unknown_options_of_a_config_file_are_refused(command, capsys):
    path = command.folder / "config.yaml"
    path.write_text("teachr: x\n")
    with pytest.raises(SystemExit):
        distill.parse_arguments(["--config", str(path)])
    assert "unknown options: teachr" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["teacher", "dataset"])
def test_half_a_command_says_what_is_missing(command, missing):
    with pytest.raises(SystemExit, match=f"--{missing} is missing"):
        distill.main(command(**{missing: None}))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_parse_and_name_the_papers_row_or_say_they_have_none(path):
    script, args = distill.parse_arguments(["--config", str(path), "--use_cpu", "--bf16", "false"])
    assert script.teacher.startswith("timm/") and script.student in distill.STUDENT_SIZES
    assert (args.learning_rate, args.weight_decay, args.num_train_epochs) == (1e-3, 1e-4, 100)
    text = path.read_text()
    ours = path.stem.endswith(("_masked", "_gated"))
    assert ("not of the paper" if ours else "Table 1") in text and path.name in text
    assert len(CONFIGS) == 7


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_a_script_does_not_import_evaluate_py_in_place_of_the_library(script, monkeypatch):
    path = ROOT / "examples" / script
    if "__main__" not in path.read_text():
        pytest.skip("no script")
    monkeypatch.setattr(sys, "path", [str(path.parent), *(each for each in sys.path if each != str(path.parent))])
    runpy.run_path(str(path), run_name="script")
    assert sys.path[-1] == str(path.parent)
