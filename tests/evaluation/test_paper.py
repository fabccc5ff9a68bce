import math

import pytest
from head_inputs import result

from singer_hf.evaluation import GROUPS, TASKS
from singer_hf.evaluation.paper import COLUMNS, TABLE_1, by_model, paper_columns, paper_table
from singer_hf.evaluation.table import comparison_table, paper_table_shown, results_table

FG = dict(zip(GROUPS["fg"], (0.1, 0.2, 0.3, 0.8), strict=True))


def row(values: dict[str, float]) -> dict[str, float]:
    return paper_columns({name: result(name, value) for name, value in values.items()})


@pytest.mark.parametrize(
    ("pair", "method", "figures"),
    [
        ("ViT-L → ViT-S", "SiNGER", [79.13, 30.06, 0.9026, 57.21, 48.91, 77.59]),
        ("ViT-L → ViT-S", "teacher ViT-L", [79.58, 26.57, 0.9157, 71.42, 54.20, 82.27]),
        ("ViT-L → ViT-T", "ViT-T, not distilled", [58.03, 14.20, 1.1807, 43.95, 28.75, 62.02]),
        ("ViT-L → ViT-T", "ViTKD", [5.07, 11.92, 1.1903, 23.69, 2.08, 33.52]),
        ("DeiT-III-L → DeiT-III-B", "FitNet", [60.00, 26.79, 1.1625, 50.04, 31.53, 74.78]),
        ("DeiT-III-S → DeiT-III-T", "SiNGER", [63.50, 20.67, 0.9827, 37.68, 32.28, 64.32]),
    ],
)
def test_figures_of_table_1(pair, method, figures):
    """METHOD.md section 6: IN-val, ADE20K, NYUd, iNat2019, DS, FG."""
    assert list(TABLE_1[pair][method].values()) == figures
    assert list(TABLE_1[pair][method]) == ["in_val", "ade", "nyud", "inat", "ds", "fg"]


def test_the_papers_method_is_best_on_imagenet_among_students_that_were_distilled():
    for methods in TABLE_1.values():
        distilled = {name: row["in_val"] for name, row in methods.items() if name in ("FitNet", "ViTKD", "SiNGER")}
        assert max(distilled, key=distilled.get) == "SiNGER"


def test_of_all_columns_depth_alone_is_an_error():
    assert {key for key, column in COLUMNS.items() if column.lower_is_better} == {"nyud"}


def test_accuracies_are_in_percent_and_depth_in_metres():
    found = row({"imagenet-1k": 0.7913, "ade20k": 0.3006, "nyu-depth-v2": 0.9026, "inat2019": 0.5})
    assert found == pytest.approx({"in_val": 79.13, "ade": 30.06, "nyud": 0.9026, "inat": 50})


def test_fg_and_ds_are_means_of_their_tasks():
    assert row(FG) == pytest.approx({"fg": 35})
    assert row({"imagenet-r": 0.2, "imagenet-v2": 0.6}) == pytest.approx({"ds": 40})


@pytest.mark.parametrize("lacking", GROUPS["fg"])
def test_a_mean_that_lacks_one_task_is_left_out(lacking):
    assert row({name: value for name, value in FG.items() if name != lacking} | {"imagenet-r": 0.5}) == {}


def test_other_tasks_stand_in_no_column():
    assert row({"my-birds": 0.5}) == {}


def test_the_whole_group_fills_the_whole_row():
    assert list(row(dict.fromkeys(GROUPS["paper"], 0.5))) == list(COLUMNS)
    assert all(TASKS[name].paper_column in COLUMNS for name in GROUPS["paper"])


def test_other_images_than_the_papers_stand_in_no_column():
    for task in ({"dataset": "./imagenette"}, {"max_test_images": 10}, {"max_train_images": 10}):
        ours = result("imagenet-1k", 0.99)
        ours.task.update(task)
        assert paper_columns({"imagenet-1k": ours}) == {}


def test_renditions_count_among_all_classes():
    renditions = result("imagenet-r", 0.9)
    renditions.scores["top1_accuracy_all_classes"] = 0.2
    assert paper_columns({"imagenet-r": renditions, "imagenet-v2": result("imagenet-v2", 0.6)}) == {"ds": 40}


# -- models -----------------------------------------------------------------------------------------------------------
def test_results_are_grouped_by_model():
    found = by_model(
        [result("pets", 0.5, model="a"), result("pets", 0.4, model="b"), result("food101", 0.6, model="a")]
    )
    assert {model: sorted(tasks) for model, tasks in found.items()} == {"a": ["food101", "pets"], "b": ["pets"]}


def test_two_results_of_one_model_and_task_are_refused():
    with pytest.raises(ValueError, match="Two results of a on pets"):
        by_model([result("pets", 0.5, model="a"), result("pets", 0.6, model="a")])


def test_protocols_are_told_apart():
    found = by_model([result("pets", 0.5), result("pets", 0.6, protocol="paper")])
    assert {model: tasks["pets"].value for model, tasks in found.items()} == {
        "ours (default)": 0.5,
        "ours (paper)": 0.6,
    }


# -- tables -----------------------------------------------------------------------------------------------------------
def test_the_papers_rows_stand_under_ours():
    table = paper_table([result("imagenet-1k", 0.7), *(result(n, v) for n, v in FG.items())], ["ViT-L → ViT-T"])
    assert list(table.columns) == ["IN-val", "ADE20K", "NYUd", "iNat2019", "DS", "FG"]
    assert list(table.index) == ["ours (default)", *(f"paper, ViT-L → ViT-T, {m}" for m in TABLE_1["ViT-L → ViT-T"])]
    assert table.loc["ours (default)", "IN-val"] == pytest.approx(70) and table.loc[
        "ours (default)", "FG"
    ] == pytest.approx(35)
    assert math.isnan(table.loc["ours (default)", "DS"])
    assert table.loc["paper, ViT-L → ViT-T, SiNGER", "NYUd"] == 0.9406


def test_a_pair_that_the_table_lacks():
    with pytest.raises(ValueError, match="no pair 'ViT-H → ViT-S': expected one of ViT-L → ViT-S"):
        paper_table([result("pets", 0.5)], ["ViT-H → ViT-S"])


def test_figures_are_shown_with_the_papers_digits():
    shown = paper_table_shown(paper_table([result("imagenet-1k", 0.7)], ["ViT-L → ViT-S"]))
    assert list(shown.loc["ours (default)"]) == ["70.00", "–", "–", "–", "–", "–"]
    assert list(shown.loc["paper, ViT-L → ViT-S, SiNGER"]) == ["79.13", "30.06", "0.9026", "57.21", "48.91", "77.59"]


def test_models_side_by_side():
    table = comparison_table(
        [
            result("pets", 0.512, model="a"),
            result("nyu-depth-v2", 0.91234, model="a", score="rmse"),
            result("pets", 0.6, model="b"),
        ]
    )
    assert table.loc["a"].to_dict() == {"pets": "51.20 %", "nyu-depth-v2": "0.9123"}
    assert table.loc["b"].to_dict() == {"pets": "60.00 %", "nyu-depth-v2": "–"}


def test_the_console_table_has_a_line_a_result():
    lines = results_table([result("pets", 0.512), result("food101", 0.25, model="other")]).strip().splitlines()
    assert len(lines) == 3
    assert "pets" in lines[1] and "top1_accuracy 51.20 %" in lines[1] and "0.1 / 0 / 3" in lines[1]
    assert "other" in lines[2] and "25.00 %" in lines[2]
