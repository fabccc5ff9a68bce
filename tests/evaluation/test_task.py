import json
from importlib.resources import files

import pytest
import yaml

from singer_hf.evaluation import GROUPS, TASKS, Task, TaskError, read_task, register_task, resolve_tasks
from singer_hf.evaluation import task as task_module
from singer_hf.evaluation.paper import COLUMNS
from singer_hf.evaluation.task import KINDS


@pytest.fixture
def registry(monkeypatch):
    """A copy of the registry, to register tasks in."""
    monkeypatch.setattr(task_module, "TASKS", dict(TASKS))
    return task_module.TASKS


def file_of(folder, name: str = "birds.yaml", **fields):
    path = folder / name
    path.write_text(json.dumps(fields) if name.endswith("json") else yaml.safe_dump(fields))
    return str(path)


def names(tasks) -> list[str]:
    return [task.name for task in tasks]


# -- the registry -----------------------------------------------------------------------------------------------------
def test_every_registered_task_is_complete():
    for name, task in TASKS.items():
        assert task.name == name and task.kind in KINDS
        assert task.description.endswith(".")
        assert task.dataset is not None or "give its folder" in task.description
        assert task.head_of is None or (task.head_of in TASKS and task.train_split is None)
        assert task.head_of is not None or task.num_labels or task.kind == "depth"
        assert task.paper_column in COLUMNS


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("imagenet-1k", 1000),
        ("inat2019", 1010),
        ("aircraft", 100),
        ("pets", 37),
        ("food101", 101),
        ("flowers102", 102),
    ],
)
def test_classifications_have_the_sets_classes(name, classes):
    assert TASKS[name].num_labels == classes


def test_dense_tasks_are_the_papers():
    """METHOD.md section 5: ADE20K has 150 classes; NYUd-v2 is in metres, 0 to 10."""
    assert (TASKS["ade20k"].num_labels, TASKS["ade20k"].reduce_labels) == (150, True)
    assert (TASKS["nyu-depth-v2"].max_depth, TASKS["nyu-depth-v2"].depth_scale) == (10.0, 1.0)


def test_the_groups_are_the_papers():
    assert set(GROUPS["ds"]) == {"imagenet-r", "imagenet-v2"}
    assert set(GROUPS["fg"]) == {"aircraft", "pets", "food101", "flowers102"}
    assert all(TASKS[name].head_of == "imagenet-1k" for name in GROUPS["ds"])


def test_the_group_paper_is_every_task_of_every_column_of_table_1():
    assert len(set(GROUPS["paper"])) == len(GROUPS["paper"])
    assert {TASKS[name].paper_column for name in GROUPS["paper"]} == set(COLUMNS)
    for column in COLUMNS:
        of_column = {name for name, task in TASKS.items() if task.paper_column == column}
        assert of_column == {name for name in GROUPS["paper"] if TASKS[name].paper_column == column}
        if column in GROUPS:
            assert of_column == set(GROUPS[column])


def test_imagenet_r_is_200_of_imagenets_classes_in_timms_order():
    pytest.importorskip("timm")
    label_map = TASKS["imagenet-r"].labels()
    assert len(label_map) == len(set(label_map.values())) == 200
    indices = (files("timm.data") / "_info" / "imagenet_r_indices.txt").read_text().split()
    assert sorted(label_map.values()) == sorted(map(int, indices))
    # Classes of ImageNet that everybody knows by number: goldfish, great white shark.
    assert label_map["n01443537"] == 1 and label_map["n01484850"] == 2


# -- names, groups, files ---------------------------------------------------------------------------------------------
def test_names_and_groups_give_each_task_once_in_order():
    assert names(resolve_tasks(["pets"])) == ["pets"]
    assert names(resolve_tasks(["fg", "pets", "ade20k"])) == [*GROUPS["fg"], "ade20k"]
    assert resolve_tasks(["pets"]) == [TASKS["pets"]]
    assert resolve_tasks([]) == []


def test_a_task_that_reuses_a_head_is_named_alone():
    assert names(resolve_tasks(["imagenet-v2"])) == ["imagenet-v2"]
    assert names(resolve_tasks(["ds"])) == ["imagenet-r", "imagenet-v2"]
    assert names(resolve_tasks(["paper"])) == list(GROUPS["paper"])


@pytest.mark.parametrize("name", ["birds.yaml", "birds.yml", "birds.json"])
def test_a_file_describes_a_task(tmp_path, name):
    path = file_of(tmp_path, name, kind="segmentation", dataset="some/birds", num_labels=3, ignore_label=255)
    expected = Task("birds", "segmentation", "some/birds", num_labels=3, ignore_label=255)
    assert resolve_tasks([path]) == [expected] == [read_task(path)]


def test_a_files_task_may_have_a_name_of_its_own(tmp_path):
    assert read_task(file_of(tmp_path, name="birds.yaml", kind="depth")).name == "birds"
    (tmp_path / "other.yaml").write_text("name: owls\nkind: depth\n")
    assert read_task(tmp_path / "other.yaml").name == "owls"


@pytest.mark.parametrize("name", ["petz", "pets/", "some/folder", "birds.csv"])
def test_an_unknown_name(name):
    with pytest.raises(TaskError, match=f"Unknown task '{name}': .*imagenet-1k.*a group .ds, fg, paper.*YAML"):
        resolve_tasks(["pets", name])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: depth\nmax_deepth: 5\nscale: 2\n", "unknown options: max_deepth, scale"),
        ("- depth\n", "holds list; expected options"),
        ("", "holds NoneType"),
        ("kind: [depth\n", "cannot be read as YAML or JSON"),
        ("dataset: some/birds\n", "does not describe a task: .*kind"),
        ("kind: detection\n", "of kind 'detection'; expected one of classification, segmentation, depth"),
        ("kind: segmentation\nnum_labels: many\n", "num_labels is 'many'; expected a whole number"),
        ("kind: depth\nmax_depth: deep\n", "max_depth is 'deep'; expected a number"),
        ("kind: depth\n1: 2\n", "unknown options: 1"),
    ],
)
def test_a_file_that_describes_no_task(tmp_path, text, message):
    path = tmp_path / "birds.yaml"
    path.write_text(text)
    with pytest.raises(TaskError, match=message):
        resolve_tasks([str(path)])


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(TaskError, match="none.yaml cannot be read"):
        resolve_tasks([str(tmp_path / "none.yaml")])
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00kind")
    with pytest.raises(TaskError, match="bytes.yaml cannot be read"):
        resolve_tasks([str(tmp_path / "bytes.yaml")])


def test_a_file_that_reuses_a_head(tmp_path):
    path = file_of(tmp_path, kind="classification", dataset="x", train_split=None, head_of="imagenet-1k")
    assert names(resolve_tasks([path])) == ["birds"]


def test_a_file_may_reuse_the_head_of_another_file(tmp_path):
    birds = file_of(tmp_path, kind="classification", dataset="x")
    owls = file_of(tmp_path, "owls.yaml", kind="classification", dataset="x", train_split=None, head_of="birds")
    assert names(resolve_tasks([birds, owls])) == ["birds", "owls"]


def test_two_tasks_of_one_name_are_refused(tmp_path):
    path = file_of(tmp_path, "pets.yaml", kind="classification", dataset="my/pets")
    with pytest.raises(TaskError, match="pets"):
        resolve_tasks(["pets", path])


def test_a_registered_task_is_found_by_name_and_replaced_under_the_same(registry):
    register_task(Task("birds", "classification", "some/birds"))
    assert resolve_tasks(["birds"])[0].dataset == "some/birds"
    register_task(Task("birds", "classification", "other/birds"))
    assert resolve_tasks(["birds"])[0].dataset == "other/birds"
    assert "birds" not in TASKS


# -- fields -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "detection"}, "of kind 'detection'"),
        ({"name": ""}, "becomes a file's name"),
        ({"name": "a/b"}, "becomes a file's name; got 'a/b'"),
        ({"kind": "segmentation"}, "set num_labels"),
        ({"num_labels": 1}, "num_labels = 1; expected 2 to"),
        ({"num_labels": 0}, "num_labels = 0"),
        ({"kind": "depth", "depth_scale": 0.0}, "must be positive"),
        ({"kind": "depth", "max_depth": -1.0}, "must be positive"),
        ({"test_fraction": 0.0}, "test_fraction must lie between 0 and 1"),
        ({"test_fraction": 1.0}, "test_fraction must lie between 0 and 1"),
        ({"kind": "depth", "head_of": "imagenet-1k"}, "only a classification can"),
        ({"train_split": None}, "no train_split, and no head_of"),
        ({"label_map": "imagenet_s", "num_labels": 3}, "label_map='imagenet_s' is not known.*imagenet_r"),
        ({"label_map": {"a": 0}}, "set num_labels"),
    ],
)
def test_fields_that_do_not_go_together(fields, message):
    with pytest.raises(TaskError, match=message):
        Task(**({"name": "t", "kind": "classification"} | fields))


def test_options_make_a_checked_copy():
    task = TASKS["pets"].with_options(dataset="my/pets")
    assert task.dataset == "my/pets" and TASKS["pets"].dataset == "timm/oxford-iiit-pet"
    with pytest.raises(TaskError, match="num_labels = 1"):
        task.with_options(num_labels=1)


def test_a_label_map_may_be_a_name_or_a_map_or_none():
    assert Task("t", "classification").labels() is None
    assert Task("t", "classification", num_labels=2, label_map={"a": 1}).labels() == {"a": 1}
