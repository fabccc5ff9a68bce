"""The study's grid and its summary; cells themselves are run by hand."""

import json
import sys
from dataclasses import fields, replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from families import tiny_vit
from PIL import Image
from scipy import stats
from transformers import AutoModel, ViTImageProcessor

from singer_hf import DistillationArguments, vision_backbone
from singer_hf.diagnosis import adapter_refinements
from singer_hf.nullspace import initial_basis
from singer_hf.objectives.projectors import PROJECTORS

STUDY = Path(__file__).parents[1] / "benchmarks" / "study"
SQUARE = {"height": 16, "width": 16}
SIZES = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
sys.path.append(str(STUDY))
from candidates import CANDIDATE_PROJECTORS, CandidateLoss  # noqa: E402
from grid import OWN_OBJECTIVES, Cell, Grid  # noqa: E402
from run import ADAPTER_OPTIONS, finished, run_cell  # noqa: E402
from starts import started_teacher  # noqa: E402
from summary import (  # noqa: E402
    draw,
    draw_scores,
    likeness_markdown,
    markdown,
    paired_difference,
    read_cells,
    summary_rows,
    teacher_markdown,
)
from teachers import check_same, prepare_teachers  # noqa: E402


def test_the_grids_cells():
    grid = Grid.read(STUDY / "cpu.yaml")
    names = [cell.name for cell in grid.cells()]
    assert len(names) == len(set(names))
    seeds = [int(name.rsplit(".", 1)[1]) for name in names]
    assert seeds == sorted(seeds) and set(seeds) == set(grid.seeds)  # the first seed of everything comes first
    for teacher, count in (("clean", 3), ("artifacts", 3), ("severe", 1)):
        own = [name for name in names if name.startswith(f"{teacher}.singer.")]
        assert own == [f"{teacher}.singer.{seed}" for seed in grid.seeds[:count]]
    assert [name for name in names if ".labels." in name] == [f"none.labels.{seed}" for seed in grid.seeds[:3]]
    first = {cell.seed for cell in grid.cells(seeds=2)}
    assert first == set(grid.seeds[:2])
    more = {cell.name for cell in grid.cells(candidates=True)} - set(names)
    assert "artifacts.layer_norm_whiten.0" in more and "artifacts.layer_norm_whiten.1" not in more


def test_a_result_of_other_options_or_another_setting_is_not_taken_for_the_cells(tmp_path):
    grid = Grid.read(STUDY / "cpu.yaml")
    cell, path = grid.cells()[0], tmp_path / "cell.json"
    assert not finished(path, grid, cell)
    path.write_text(json.dumps({"cell": {"options": cell.options}, "setting": grid.setting}))
    assert finished(path, grid, cell)
    with pytest.raises(ValueError, match="another options"):
        finished(path, grid, replace(cell, options=cell.options | {"num_train_epochs": 9}))
    with pytest.raises(ValueError, match="another setting"):
        finished(path, replace(grid, data=grid.data | {"classes": 7}), cell)


def test_a_cell_without_distillation_scores_first_weights_or_the_teacher_and_leaves_the_teacher(tmp_path, monkeypatch):
    scored = {}

    def scores(model, *_, **__):
        scored[model.name] = AutoModel.from_pretrained(model)
        return {"linear_top1": 0.5}

    monkeypatch.setattr("run.linear_scores", scores)
    grid = replace(Grid.read(STUDY / "cpu.yaml"), student=SIZES)
    labels = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features({"image": datasets.Image(), "label": labels})
    rows = {"image": [Image.new("RGB", (16, 16))] * 2, "label": [0, 1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    tiny_vit(hidden_size=32).save_pretrained(tmp_path / "clean")

    def result(teacher, objective):
        cell = Cell(teacher, objective, {"objective": objective}, seed=3)
        return run_cell(grid, cell, tmp_path, None, torch.device("cpu"))

    assert result("clean", "teacher")["scores"] == {"linear_top1": 0.5}
    assert result("none", "untrained")["training"] == {}
    assert scored["clean"].config.hidden_size == 32 and (tmp_path / "clean" / "config.json").exists()
    assert scored["none.untrained.3"].config.hidden_size == SIZES["hidden_size"]
    assert not list((tmp_path / "students").iterdir())


def test_a_teacher_that_comes_out_otherwise_is_not_taken_for_the_recorded_one(tmp_path):
    recorded = json.loads((STUDY.parent / "results" / "study" / "cpu" / "teachers.json").read_text())["artifacts"]
    check_same("artifacts", recorded, recorded | {"planting": None}, tmp_path)
    norms = [4.839, *recorded["largest_to_median"][1:]]  # what other kernels gave
    with pytest.raises(ValueError, match="artifacts teacher that this machine trains is not the one of"):
        check_same("artifacts", recorded, recorded | {"largest_to_median": norms}, tmp_path)


def test_teachers_are_prepared_once_and_recorded_with_every_folder_of_results(tmp_path, monkeypatch):
    grid, trained = Grid.read(STUDY / "cpu.yaml"), []
    report = json.loads((STUDY.parent / "results" / "study" / "cpu" / "teachers.json").read_text())

    def train(grid, missing, folder, own, device):
        trained.extend(missing)
        own |= report
        for name in missing:
            (folder / name).mkdir(parents=True)
            (folder / name / "config.json").write_text("{}")
        (folder / "teachers.json").write_text(json.dumps(own))

    monkeypatch.setattr("teachers._train", train)
    for results in ("first", "second"):
        prepare_teachers(grid, tmp_path / "work", tmp_path / results, "cpu")
        assert json.loads((tmp_path / results / "teachers.json").read_text()) == report
    assert trained == list(grid.teachers)
    with pytest.raises(ValueError, match="of another setting than the grid's: name another --work"):
        prepare_teachers(replace(grid, data=grid.data | {"classes": 7}), tmp_path / "work", tmp_path / "first", "cpu")
    others = report | {"severe": report["severe"] | {"top1_accuracy": 0.5}}
    (tmp_path / "second" / "teachers.json").write_text(json.dumps(others))
    with pytest.raises(ValueError, match="severe teacher that this machine trains is not the one of"):
        prepare_teachers(grid, tmp_path / "work", tmp_path / "second", "cpu")


@pytest.fixture
def noise():
    images = [Image.effect_noise((16, 16), 90).convert("RGB") for _ in range(250)]
    return datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": datasets.Image()}))


def test_a_start_from_the_jacobian_is_what_the_next_block_notices_least(noise):
    teacher, processor = tiny_vit(hidden_size=32, num_hidden_layers=4).eval(), ViTImageProcessor(size=SQUARE)
    adapted = started_teacher(teacher, processor, "jacobian", layers=[1, 3], rank=5, images=noise)
    found, backbone = adapter_refinements(adapted), vision_backbone(adapted)
    assert list(found) == [1, 3]
    for layer, block in ((1, 2), (3, 3)):
        basis = found[layer].down
        torch.testing.assert_close(basis.T @ basis, torch.eye(5), atol=1e-5, rtol=0)
        torch.testing.assert_close(found[layer].up, basis.T)
        everything = torch.linalg.qr(torch.cat([basis, torch.randn(32, 27)], dim=1)).Q
        hidden = backbone.features(torch.randn(8, 3, 32, 32), [block - 1], adapters=False).hidden[block - 1]
        noticed = []
        for direction in everything.T:
            moved = hidden.clone()
            moved[:, 3] += 1e-2 * direction
            outputs = [backbone.run_block(block, each, adapters=False) - each for each in (moved, hidden)]
            noticed.append((outputs[0] - outputs[1])[:, 3].norm().item())
        assert np.mean(noticed[:5]) < 0.7 * np.mean(noticed[5:])


def test_a_start_from_the_spectrum_is_the_papers_of_another_rank(noise):
    teacher, processor = (
        tiny_vit(hidden_size=32, num_hidden_layers=4, intermediate_size=24),
        ViTImageProcessor(size=SQUARE),
    )
    adapted = started_teacher(teacher, processor, "spectrum", layers=[1, 3], rank=5, images=noise)
    found = adapter_refinements(adapted)
    assert list(found) == [1, 3]
    for layer, refinement in found.items():
        rank = refinement.down.shape[1]
        assert rank >= 32 - 24  # W̃ has at least that many zero singular values
        torch.testing.assert_close(refinement.down, initial_basis(vision_backbone(adapted), layer, rank).float())


def test_no_closed_form_without_outliers(noise):
    teacher, processor = tiny_vit(hidden_size=32, num_hidden_layers=4), ViTImageProcessor(size=SQUARE)
    with pytest.raises(ValueError, match=r"Blocks \[1, 3\] have no outliers"):
        started_teacher(teacher, processor, "closed_form", layers=[1, 3], rank=5, images=noise)


@pytest.mark.parametrize("path", sorted(STUDY.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_made_of_options_that_exist(path, tmp_path, monkeypatch):
    for name, projector in CANDIDATE_PROJECTORS.items():
        monkeypatch.setitem(PROJECTORS, name, projector)
    grid = Grid.read(path)
    names = {field.name for field in fields(DistillationArguments)} | set(ADAPTER_OPTIONS) | {"feature_loss"}
    for cell in grid.cells(candidates=True):
        assert set(cell.options) <= names, cell.name
        assert cell.teacher in {*grid.teachers, "none"}
        CandidateLoss(**cell.options.get("feature_loss", {}))
        own = {name: cell.options[name] for name in cell.options.keys() - set(ADAPTER_OPTIONS) - {"feature_loss"}}
        if cell.options["objective"] not in OWN_OBJECTIVES:
            DistillationArguments(str(tmp_path), use_cpu=True, **(own | {"bf16": False}))


def test_what_is_no_grid(tmp_path):
    (tmp_path / "grid.yaml").write_text("seeds: [0]\nsizes: {}\n")
    with pytest.raises(ValueError, match="is not a grid"):
        Grid.read(tmp_path / "grid.yaml")


def test_the_interval_is_that_of_a_paired_t_test():
    own, other = np.random.default_rng(0).normal(size=(2, 4)) + [[1.0], [0.0]]
    found = paired_difference(dict(enumerate(own)), dict(enumerate(other)) | {7: 100.0})
    expected = stats.ttest_rel(own, other).confidence_interval(0.95)
    assert found["interval"] == pytest.approx([expected.low, expected.high])
    assert found["mean"] == pytest.approx((own - other).mean()) and found["seeds"] == 4
    assert paired_difference({0: 1.0}, {0: 0.5}) == {"mean": 0.5, "interval": None, "seeds": 1}
    assert paired_difference({0: 1.0}, {1: 0.5}) is None


def test_rows_and_tables_come_from_the_cells_files(tmp_path):
    values = {"fitnet": (0.30, 0.32), "singer": (0.35, 0.39, 0.40)}
    for recipe, of in values.items():
        for seed, value in enumerate(of):
            cell = {"teacher": "clean", "recipe": recipe, "seed": seed}
            alike = {"cka": None}
            if recipe == "singer":
                energy = {"5": {"up": {"prob": 0.1, "safe": 0.8}}, "7": {"up": {"prob": 0.3, "safe": 0.4}}}
                alike |= {"remaining_gradient_on_outliers": 0.125, "energy": energy}
            content = {"cell": cell, "scores": {"linear_top1": value}, "likeness": alike}
            (tmp_path / f"clean.{recipe}.{seed}.json").write_text(json.dumps(content))
    rows = summary_rows(read_cells(tmp_path))
    assert [(row["cell"], row["score"], row["seeds"]) for row in rows] == [
        ("fitnet", "linear_top1", 2),
        ("singer", "linear_top1", 3),
        ("singer", "remaining_gradient_on_outliers", 3),
        ("singer", "energy_prob", 3),
        ("singer", "energy_safe", 3),
    ]
    assert rows[1]["mean"] == pytest.approx(38) and rows[1]["std"] == pytest.approx(7**0.5)
    assert rows[1]["difference_from_fitnet"] == pytest.approx(6) and "difference_from_fitnet" not in rows[0]
    assert rows[1]["interval_against_fitnet"][0] < 6 < rows[1]["interval_against_fitnet"][1]
    lines = markdown(rows, "linear_top1").splitlines()
    assert lines[2] == "| fitnet | 31.0 ± 1.4 |  |" and lines[3].startswith("| singer | 38.0 ± 2.6 | +6.0 [")
    assert lines[3].endswith("] (2 pairs) |")
    draw(rows, tmp_path / "differences.png")  # of two seeds an interval says nothing
    draw_scores(read_cells(tmp_path), tmp_path / "scores.png")
    assert not (tmp_path / "differences.png").exists() and (tmp_path / "scores.png").exists()
    assert likeness_markdown(rows, "clean").splitlines()[3] == "| SiNGER, the paper's |  |  | 12.5 | 0.20 | 0.60 |"
    lines = teacher_markdown(rows, "clean").splitlines()
    assert [line.split(" | ")[:3] for line in lines[2:]] == [
        ["| FitNet", "2", "31.0 ± 1.4"],
        ["| SiNGER, the paper's", "3", "38.0 ± 2.6"],
    ]
    assert lines[3].split(" | ")[3].startswith("+6.0 [")
