"""Whole evaluations of a tiny model, from files to results."""

import json

import datasets
import numpy as np
import pytest
import torch
from accelerate import PartialState
from families import FAMILIES, crop_processor, tiny_model, tiny_vit, vit_processor
from images import image_dataset
from scenes import scenes

from singer_hf.evaluation import (
    AnnotationError,
    Extractor,
    FrozenBackbone,
    LinearEvaluator,
    Task,
    find_results,
    register_task,
)
from singer_hf.evaluation.task import TASKS


@pytest.fixture(scope="module")
def state():
    return PartialState(cpu=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    image_dataset(96, classes=6).to_parquet(folder / "train.parquet")
    image_dataset(48, classes=6, seed=1).to_parquet(folder / "test.parquet")
    scenes(24).to_parquet(folder / "scenes.parquet")
    scenes(8, seed=1).to_parquet(folder / "scenes_test.parquet")
    return folder


@pytest.fixture
def evaluator(tmp_path, state):
    def build(model=None, folder="out", options=None, **changes):
        torch.manual_seed(0)
        model = model or tiny_vit(num_hidden_layers=2)
        backbone = FrozenBackbone(model, vit_processor(), name="tiny")
        extractor = Extractor(backbone, cache_dir=tmp_path / "cache", state=state, progress=False, batch_size=16)
        options = {"epochs": (20,), "weight_decays": (1e-4,)} if options is None else options
        return LinearEvaluator(backbone, extractor, options=options, output_dir=tmp_path / folder, **changes)

    return build


def classification(data, **changes):
    options = {"dataset": str(data / "train.parquet"), "test_dataset": str(data / "test.parquet")}
    return Task(**({"name": "colors", "kind": "classification"} | options | changes))


def dense(data, kind, **changes):
    options = {"dataset": str(data / "scenes.parquet"), "test_dataset": str(data / "scenes_test.parquet")}
    options |= {"segmentation": {"num_labels": 3, "ignore_label": 9}, "depth": {"depth_scale": 1e-3}}[kind]
    return Task(**({"name": f"scenes-{kind}", "kind": kind} | options | changes))


def test_a_classification(data, evaluator, tmp_path):
    result = evaluator().run(classification(data))
    assert result.value > 0.9
    assert set(result.scores) == {"top1_accuracy", "top5_accuracy", "knn_top1_accuracy"}
    assert result.scores["knn_top1_accuracy"] > 0.9
    splits = result.task["splits"]
    assert (splits["train"]["images"], splits["test"]["images"]) == (96, 48)
    assert result.protocol["selected"]["validation_images"] == 10  # 10 % of 96
    assert find_results([tmp_path / "out"]) == [result]


def test_a_second_run_takes_its_features_from_the_cache_and_gives_the_same(data, evaluator):
    first = evaluator().run(classification(data))
    again = evaluator(folder="again").run(classification(data))
    assert (first.seconds["images_extracted"], again.seconds["images_extracted"]) == (144, 0)
    assert again.scores == first.scores and again.hyperparameters == first.hyperparameters


def test_another_model_of_the_same_make_has_features_of_its_own(data, evaluator):
    evaluator().run(classification(data))
    torch.manual_seed(1)
    other = evaluator(tiny_vit(num_hidden_layers=2))
    with torch.no_grad():
        next(other.backbone.model.parameters()).add_(1.0)
    assert other.run(classification(data)).seconds["images_extracted"] == 144


def test_a_damaged_shard_is_rebuilt_and_said_to_be(data, evaluator, tmp_path, caplog):
    first = evaluator().run(classification(data))
    (path, *_) = sorted((tmp_path / "cache").rglob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    again = evaluator(folder="again").run(classification(data))
    assert again.scores == first.scores
    assert again.seconds["images_extracted"] in (48, 96)
    assert f"{path} are not used, since its checksum is wrong" in caplog.text


def test_the_papers_protocol_takes_the_best_epoch_and_says_so(data, evaluator):
    options = {"epochs": (6,), "learning_rates": (0.05,), "views": 3}
    result = evaluator(protocol="paper", options=options).run(classification(data))
    assert result.seconds["images_extracted"] == 3 * 96 + 96 + 48  # views, once as they are for k-NN, test
    assert "best epoch on the test images" in result.protocol["selected"]["rule"]
    assert result.value >= result.protocol["selected"]["last_epoch_score"]
    assert (result.protocol["views"], result.hyperparameters["epochs"]) == (3, 6)


def test_a_segmentation(data, evaluator):
    result = evaluator(options={"epochs": (20,), "weight_decays": (1e-4,)}).run(dense(data, "segmentation"))
    assert result.main_score == "mean_iou"
    assert result.value > 0.5
    assert len(result.scores["per_category_iou"]) == 3
    # Sky and ground are a third and two thirds of an image: who tells nothing apart has about 0.6 of the pixels.
    assert result.scores["overall_accuracy"] > 0.85


def test_a_depth_estimation(data, evaluator):
    result = evaluator().run(dense(data, "depth"))
    depths = [np.asarray(image) / 1000 for image in scenes(8, seed=1)["depth"]]
    valid = [depth[depth > 0] for depth in depths]
    constant = np.mean([np.sqrt(((depth - np.median(np.concatenate(valid))) ** 2).mean()) for depth in valid])
    assert result.main_score == "rmse"
    assert result.value < 0.75 * constant
    assert result.scores["images_without_depth"] == 0
    assert {"rmse_pooled", "abs_rel", "delta1"} <= set(result.scores)


@pytest.mark.parametrize("kind", ["segmentation", "depth"])
def test_the_papers_protocol_of_dense_tasks(data, evaluator, kind):
    options = {"epochs": (2,), "views": 2, "learning_rates": (0.05,)}
    result = evaluator(protocol="paper", options=options).run(dense(data, kind))
    assert result.seconds["images_extracted"] == 2 * 24 + 8
    assert np.isfinite(result.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_goes_through_all_kinds(data, tmp_path, state, family):
    torch.manual_seed(0)
    backbone = FrozenBackbone(tiny_model(family, num_hidden_layers=1), vit_processor(), name=family)
    extractor = Extractor(backbone, cache_dir=tmp_path / "cache", state=state, progress=False)
    options = {"epochs": (2,), "learning_rates": (0.1,), "weight_decays": (0.0,), "pixels": 16}
    limits = {"max_train_images": 12, "max_test_images": 4}
    evaluate = LinearEvaluator(backbone, extractor, options=options, output_dir=tmp_path, **limits)
    tasks = (classification(data, num_labels=6), dense(data, "segmentation"), dense(data, "depth"))
    for task in tasks:
        assert np.isfinite(evaluate.run(task).value)


@pytest.fixture
def reusing(data):
    """A task whose head another reuses, on images of its first four classes."""
    head = register_task(classification(data, name="head-task"))
    names = {"0": 0, "1": 1, "2": 2, "3": 3}
    yield (
        Task(
            "renditions",
            "classification",
            str(data / "test.parquet"),
            train_split=None,
            test_split="test",
            head_of=head.name,
            label_map=None,
        ),
        names,
    )
    del TASKS[head.name]


def test_a_head_is_trained_once_and_reused(data, evaluator, tmp_path, reusing):
    task, _ = reusing
    evaluate = evaluator()
    result = evaluate.run(task)
    (head_result,) = (found for found in find_results([tmp_path / "out"]) if found.task["name"] == "head-task")
    assert result.scores["top1_accuracy"] == head_result.value
    path = tmp_path / "out" / "heads" / "head-task.default.safetensors"
    written = path.stat().st_mtime_ns
    evaluate.run(task)
    assert path.stat().st_mtime_ns == written
    evaluator(options={"epochs": (5,)}).run(task)  # by another protocol it is another head
    assert path.stat().st_mtime_ns != written


def test_classes_of_a_reused_head_are_matched_by_name(data, evaluator, tmp_path, reusing):
    """A set that lacks the first classes counts the others from 0."""
    images = image_dataset(48, classes=6, seed=1).filter(lambda label: label >= 2, input_columns="label")
    renamed = datasets.ClassLabel(names=["2", "3", "4", "5"])
    images = images.map(lambda row: {"label": row["label"] - 2}).cast_column("label", renamed)
    images.to_parquet(tmp_path / "late.parquet")
    task, _ = reusing
    assert evaluator().run(task.with_options(dataset=str(tmp_path / "late.parquet"))).value > 0.8


def test_a_head_of_other_labels_is_not_reused(data, evaluator, reusing):
    task, _ = reusing
    assert evaluator().run(task).value > 0.8
    shifted = image_dataset(96, classes=6).map(lambda row: {"label": (row["label"] + 1) % 6})
    shifted.to_parquet(data / "shifted.parquet")
    register_task(TASKS["head-task"].with_options(dataset=str(data / "shifted.parquet")))
    assert evaluator().run(task).value < 0.2


def test_masks_that_are_missing_are_found_before_the_backbone_runs(data, evaluator, tmp_path):
    images = scenes(6).cast_column("annotation", datasets.Image(decode=False))
    masks = [None if index == 3 else mask for index, mask in enumerate(images["annotation"])]
    images = images.remove_columns("annotation").add_column("annotation", masks, feature=datasets.Image())
    images.to_parquet(tmp_path / "lacking.parquet")
    with pytest.raises(AnnotationError, match="1 of 6 images have no annotation.*the first is image 3"):
        evaluator().run(dense(data, "segmentation", dataset=str(tmp_path / "lacking.parquet")))
    assert not (tmp_path / "cache").exists()


def test_depths_of_another_unit_are_found_before_the_backbone_runs(data, evaluator, tmp_path):
    with pytest.raises(AnnotationError, match="not one pixel of 8 depth maps lies between 0 and 10 m"):
        evaluator().run(dense(data, "depth", depth_scale=1.0))
    assert not (tmp_path / "cache").exists()


def test_the_papers_protocol_is_for_the_papers_resolution(data, evaluator):
    with pytest.raises(ValueError, match="at 224x224 pixels; this model's input is 32x32. Set image_size=224"):
        evaluator(protocol="paper", options={}).run(classification(data, resolution=224))


def test_results_of_other_options_stand_beside_each_other(data, evaluator, tmp_path):
    evaluator().run(classification(data))
    evaluator(seed=1).run(classification(data))
    evaluator().run(classification(data))
    assert len(find_results([tmp_path / "out"])) == 2


@pytest.mark.parametrize("protocol", ["default", "paper"])
def test_images_of_some_classes_are_told_apart_among_these_or_all(data, evaluator, tmp_path, reusing, protocol):
    # Images of classes 4 and 5 stand for 1 and 2, the next ones by colour: what a head of all classes cannot know.
    few = image_dataset(48, classes=6, seed=2)
    few = few.map(lambda row: {"wnid": f"n{row['label'] if row['label'] < 4 else row['label'] - 3}"})
    few.to_parquet(tmp_path / "few.parquet")
    task, _ = reusing
    task = task.with_options(
        dataset=str(tmp_path / "few.parquet"), target_column="wnid", label_map={f"n{c}": c for c in range(4)}
    )
    options = {"epochs": (30,), "learning_rates": (0.1,), "standardize": True}
    options |= {"views": 1} if protocol == "paper" else {}
    scores = evaluator(protocol=protocol, options=options).run(task).scores
    other = "top1_accuracy_all_classes" if protocol == "default" else "top1_accuracy_4_classes"
    first, second = scores["top1_accuracy"], scores[other]
    among, everything = (first, second) if protocol == "default" else (second, first)
    assert everything < among


def test_a_set_without_a_test_split(data, evaluator):
    task = classification(data, test_dataset=None, test_split=None, test_fraction=0.25)
    result = evaluator().run(task)
    splits = result.task["splits"]
    assert (splits["train"]["images"], splits["test"]["images"]) == (72, 24)
    assert splits["test"]["split"] == "0.25 of train"


def test_only_as_many_images_as_asked_for(data, evaluator):
    result = evaluator(max_train_images=48, max_test_images=20).run(classification(data))
    assert [result.task["splits"][name]["images"] for name in ("train", "test")] == [48, 20]


def test_a_result_is_json_that_holds_what_it_was_made_of(data, evaluator, tmp_path):
    evaluator(seed=3).run(classification(data))
    (path,) = (tmp_path / "out").glob("colors.default.*.json")
    record = json.loads(path.read_text())
    assert record["seed"] == 3
    assert record["model"]["layer"] == 1 and record["model"]["pooling"] == "cls"
    assert record["environment"]["torch"] and record["environment"]["processes"] == 1
    assert record["protocol"]["selected"]["grid"][0].keys() == {
        "learning_rate",
        "weight_decay",
        "epochs",
        "top1_accuracy",
    }


def test_the_default_protocol_on_a_wide_image_without_cropping_it_away(data, evaluator, tmp_path, state):
    """A processor that crops only says how large the input is."""
    backbone = FrozenBackbone(tiny_vit(num_hidden_layers=1), crop_processor(32), name="tiny")
    extractor = Extractor(backbone, cache_dir=tmp_path / "cache", state=state, progress=False)
    options = {"epochs": (2,), "weight_decays": (0.0,)}
    evaluate = LinearEvaluator(backbone, extractor, options=options, output_dir=tmp_path)
    assert evaluate.run(dense(data, "segmentation")).model["input_size"] == [32, 32]
