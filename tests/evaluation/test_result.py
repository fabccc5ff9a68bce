import json
from dataclasses import asdict, replace

import pytest
from head_inputs import result

from singer_hf.evaluation import EvaluationResult, ResultError, find_results
from singer_hf.evaluation.result import SCHEMA


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "pets.default.json"
    result("pets", 0.5).save(path)
    return path


def test_a_result_comes_back_as_it_was(saved):
    assert EvaluationResult.load(saved) == result("pets", 0.5)
    assert EvaluationResult.load(saved).value == 0.5


def test_tuples_numbers_as_keys_and_lists_with_gaps_come_back_as_they_were(tmp_path):
    rich = replace(
        result("ade20k", 0.3, score="mean_iou"),
        scores={"mean_iou": 0.1 + 0.2, "per_category_iou": [0.5, None]},
        protocol={"name": "default", "epochs": (10, 30)},
        task={"name": "ade20k", "label_map": {3: 1}, "description": "größer → 1"},
    )
    rich.save(tmp_path / "r.json")
    assert EvaluationResult.load(tmp_path / "r.json") == rich


def test_a_file_says_its_schema_and_is_made_for_reading(saved):
    text = saved.read_text(encoding="utf-8")
    assert json.loads(text)["schema"] == SCHEMA
    assert len(text.splitlines()) > 10 and text.endswith("}\n")


def test_folders_are_made_and_nothing_but_the_file_is_left(tmp_path):
    path = tmp_path / "a" / "b" / "r.json"
    result("pets", 0.5).save(path)
    result("pets", 0.6).save(path)
    assert [p.name for p in path.parent.iterdir()] == ["r.json"] and EvaluationResult.load(path).value == 0.6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_not_written_and_leaves_the_former_file(saved, value):
    with pytest.raises(ValueError):
        result("pets", value).save(saved)
    assert EvaluationResult.load(saved).value == 0.5 and len(list(saved.parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a result"),
        (b'{"schema": 1, "model"', "cannot be read as a result"),
        (b"\xff\xfe\x00", "cannot be read as a result"),
        (b"[1, 2]", "no evaluation result of schema"),
        (b"{}", "no evaluation result of schema"),
        (b'{"schema": 1}', "no evaluation result: .*missing"),
    ],
)
def test_a_damaged_file(tmp_path, content, message):
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(ResultError, match="r.json .*" + message):
        EvaluationResult.load(tmp_path / "r.json")


@pytest.mark.parametrize("schema", [SCHEMA + 1, SCHEMA - 1, None, "1"])
def test_another_schema(tmp_path, schema):
    (tmp_path / "r.json").write_text(json.dumps(asdict(result("pets", 0.5)) | {"schema": schema}))
    with pytest.raises(ResultError, match=f"no evaluation result of schema {SCHEMA}"):
        EvaluationResult.load(tmp_path / "r.json")


def test_an_unknown_field(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps(asdict(result("pets", 0.5)) | {"colour": "red"}))
    with pytest.raises(ResultError, match="no evaluation result: .*colour"):
        EvaluationResult.load(tmp_path / "r.json")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ResultError, match="none.json cannot be read"):
        EvaluationResult.load(tmp_path / "none.json")


# -- many files -------------------------------------------------------------------------------------------------------
def test_results_are_found_in_folders_below_and_by_name(tmp_path, saved):
    result("food101", 0.4).save(tmp_path / "models" / "vit" / "food101.default.json")
    (tmp_path / "models" / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "models" / "notes.txt").write_text("none")
    assert [r.task["name"] for r in find_results([tmp_path / "models"])] == ["food101"]
    assert [r.task["name"] for r in find_results([str(tmp_path / "models"), saved])] == ["food101", "pets"]
    assert {r.task["name"] for r in find_results([tmp_path])} == {"food101", "pets"}


def test_a_file_that_was_named_must_be_a_result(tmp_path, saved):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ResultError, match="config.json is no evaluation result"):
        find_results([saved, tmp_path / "config.json"])


def test_nothing_is_found(tmp_path):
    with pytest.raises(ResultError, match=f"No evaluation results in {tmp_path}"):
        find_results([tmp_path])
    with pytest.raises(ResultError, match="gone cannot be read"):
        find_results([tmp_path / "gone"])
