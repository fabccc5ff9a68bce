"""Classifiers for pipelines, made from backbones."""

import pytest
import torch
from accelerate import PartialState
from families import TIMM, tiny_model, tiny_vit, vit_processor
from images import image_dataset
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    TimmWrapperImageProcessor,
    pipeline,
)

from singer_hf.data import processor_to_save
from singer_hf.evaluation import Extractor, FrozenBackbone, LinearEvaluator, Task
from singer_hf.evaluation.export import export_classifier

# The families for which transformers has a classifier.
CLASSIFIERS = ["vit", "vit_msn", "deit", "ijepa", "beit", "dinov2", "dinov2_with_registers", *TIMM]


@pytest.fixture
def task(tmp_path):
    image_dataset(60, classes=3).to_parquet(tmp_path / "train.parquet")
    image_dataset(30, classes=3, seed=1).to_parquet(tmp_path / "test.parquet")
    data = {"dataset": str(tmp_path / "train.parquet"), "test_dataset": str(tmp_path / "test.parquet")}
    return Task("colors", "classification", **data)


def evaluator(folder, **changes):
    backbone = FrozenBackbone.load(str(folder))
    extractor = Extractor(backbone, cache_dir=folder / "cache", state=PartialState(cpu=True), progress=False)
    options = {"epochs": (30,), "weight_decays": (1e-4,)}
    return LinearEvaluator(backbone, extractor, **({"options": options, "output_dir": folder} | changes))


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_the_pipeline_runs_what_was_exported_at_the_accuracy_that_was_reported(tmp_path, task, family):
    torch.manual_seed(0)
    model = tiny_model(family, num_hidden_layers=2)
    folder = tmp_path / "model"
    if family in TIMM:  # whose processor is part of the config
        settings = {"input_size": (3, 32, 32), "crop_pct": 1.0, "mean": (0.4, 0.4, 0.4)}
        processor_to_save(TimmWrapperImageProcessor(settings, architecture=TIMM[family][0]), model.config)
    else:
        vit_processor(image_mean=[0.4, 0.4, 0.4]).save_pretrained(folder)
    model.save_pretrained(folder)
    result = export_classifier(evaluator(folder), task, str(folder), tmp_path / "classifier")
    classify = pipeline("image-classification", str(tmp_path / "classifier"))
    assert type(classify.model).__name__.endswith("ForImageClassification")
    assert classify.model.config.id2label == {0: "0", 1: "1", 2: "2"}
    rows = image_dataset(30, classes=3, seed=1)
    answers = [answer[0]["label"] for answer in classify(list(rows["image"]))]
    right = sum(answer == str(label) for answer, label in zip(answers, rows["label"], strict=True))
    assert right / 30 == pytest.approx(result.value)
    assert result.value > 0.8
    assert "input of the classifier" in result.model["feature"]
    assert list((tmp_path / "classifier").glob("colors.default*.json"))


def test_the_backbone_in_it_is_the_students(tmp_path, task):
    torch.manual_seed(0)
    model = tiny_vit()
    model.save_pretrained(tmp_path / "model")
    vit_processor(image_std=[0.3, 0.3, 0.3]).save_pretrained(tmp_path / "model")
    export_classifier(evaluator(tmp_path / "model"), task, str(tmp_path / "model"), tmp_path / "classifier")
    classifier = AutoModelForImageClassification.from_pretrained(tmp_path / "classifier")
    for name, tensor in model.state_dict().items():
        assert torch.equal(classifier.vit.state_dict()[name], tensor), name
    assert list(AutoImageProcessor.from_pretrained(tmp_path / "classifier").image_std) == [0.3, 0.3, 0.3]


def test_a_processor_whose_images_the_classifier_cannot_take(tmp_path, task):
    tiny_vit().save_pretrained(tmp_path / "model")
    vit_processor(size=48).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"cannot take the images that its processor makes \(48x48 pixels\)"):
        export_classifier(evaluator(tmp_path / "model"), task, str(tmp_path / "model"), tmp_path / "classifier")


def test_a_second_export_takes_its_features_from_the_cache(tmp_path, task):
    tiny_vit().save_pretrained(tmp_path / "model")
    vit_processor().save_pretrained(tmp_path / "model")
    run = [
        export_classifier(evaluator(tmp_path / "model"), task, str(tmp_path / "model"), tmp_path / name)
        for name in ("first", "second")
    ]
    assert [result.seconds["images_extracted"] for result in run] == [90, 0]
    assert run[0].scores == run[1].scores


def test_a_family_without_a_classifier(tmp_path, task):
    tiny_model("vit_mae").save_pretrained(tmp_path / "model")
    vit_processor().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="transformers has no image classifier for"):
        export_classifier(evaluator(tmp_path / "model"), task, str(tmp_path / "model"), tmp_path / "classifier")


def test_the_papers_protocol_makes_no_classifier(tmp_path, task):
    tiny_vit().save_pretrained(tmp_path / "model")
    vit_processor().save_pretrained(tmp_path / "model")
    paper = evaluator(tmp_path / "model", protocol="paper", options={})
    with pytest.raises(ValueError, match="exported by the default protocol"):
        export_classifier(paper, task, str(tmp_path / "model"), tmp_path / "classifier")
