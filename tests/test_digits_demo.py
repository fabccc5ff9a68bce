"""The main job without arguments: quickly, with an untrained teacher and two steps; by hand, as users run it."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import digits_demo  # noqa: E402
import digits_world  # noqa: E402
import distill  # noqa: E402
from peft import PeftModel  # noqa: E402

from singer_hf import load_vision_model  # noqa: E402


@pytest.fixture
def untrained(monkeypatch):
    def train_teacher(train, test, **options):
        return *digits_world.new_teacher(train.features["label"].names), {}

    def digits_datasets():
        train, test = digits_world.digits_datasets()
        return train.select(range(128)), test.select(range(100))

    monkeypatch.setattr(digits_demo, "train_teacher", train_teacher)
    monkeypatch.setattr(digits_demo, "digits_datasets", digits_datasets)


def run(folder, *options):
    distill.main(["--output_dir", str(folder), "--use_cpu", "--disable_tqdm", "true", *options])


def check_folder(folder):
    for objective in ("singer", "fitnet"):
        AutoModel.from_pretrained(folder / objective, add_pooling_layer=False)
        AutoImageProcessor.from_pretrained(folder / objective)
    AutoModelForImageClassification.from_pretrained(folder / "teacher")
    PeftModel.from_pretrained(load_vision_model(str(folder / "teacher")), folder / "singer" / "adapter")
    with Image.open(folder / "patch_norms.png") as picture:
        assert picture.width == 1000
    metrics = json.loads((folder / "metrics.json").read_text())
    assert list(metrics["models"]) == ["teacher", "student, untrained", "student, singer", "student, fitnet"]
    assert metrics["options"]["seed"] == 42 and metrics["versions"]["torch"]
    return metrics


def test_the_demonstration_writes_what_it_promises(tmp_path, untrained, capsys):
    run(tmp_path, "--max_steps", "2")
    metrics = check_folder(tmp_path)
    printed = capsys.readouterr().out
    for name, row in metrics["models"].items():
        line = next(line for line in printed.splitlines() if line.startswith(name + " "))
        assert f"{row['probe']['patches']:.1%}" in line


def test_its_options_can_be_changed(tmp_path, untrained):
    run(tmp_path, "--max_steps", "1", "--lora_r", "3", "--objective", "singer_reference")
    adapter = json.loads((tmp_path / "singer_reference" / "adapter" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["init_lora_weights"]) == (3, "reference")


def test_a_dry_run_trains_nothing(tmp_path, untrained, capsys):
    run(tmp_path, "--dry_run")
    assert "teacher block 5 of 6  ->  student block 3 of 4" in capsys.readouterr().out
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_the_digits_are_always_split_the_same_way():
    (train, test), again = digits_world.digits_datasets(), digits_world.digits_datasets()
    assert (len(train), len(test)) == (1297, 500)
    assert train["label"] == again[0]["label"] and test["label"] == again[1]["label"]
    pictures = [{image.tobytes() for image in part["image"]} for part in (train, test)]
    assert not pictures[0] & pictures[1]


@pytest.mark.slow
def test_the_demonstration_as_users_run_it(tmp_path):
    run(tmp_path)
    metrics = check_folder(tmp_path)
    teacher = metrics["teacher"]
    assert max(teacher["largest_to_median_before"]) < 2 < 3 < min(teacher["largest_to_median_after"][2:])
    assert abs(teacher["accuracy_tuned"] - teacher["accuracy_trained"]) < 0.03
    assert all(peaks["after"] < peaks["before"] / 2 for peaks in metrics["refinement"].values())
    models = metrics["models"]
    assert models["student, singer"]["largest_to_median"] < models["student, fitnet"]["largest_to_median"]
