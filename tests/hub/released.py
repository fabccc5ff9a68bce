"""Runs, results and exports for the tests of a release, made once a session and copied where a test writes."""

import json

import torch
from families import tiny_vit, vit_processor
from images import image_dataset
from runs import trainer_of
from transformers import ViTForImageClassification

from singer_hf.evaluation import EvaluationResult, FrozenBackbone
from singer_hf.release import License, Run

MIT = License("mit", "inherited from its teacher")


def make_run(folder, **options):
    """A short run of a tiny student; its teacher lies beside it."""
    teacher = tiny_vit(hidden_size=32, num_hidden_layers=4).eval()
    teacher.save_pretrained(folder / "teacher")
    vit_processor().save_pretrained(folder / "teacher")
    teacher.config.name_or_path = str(folder / "teacher")
    trainer = trainer_of(folder / "run", teacher, **options)
    trainer.train()
    trainer.save_model()
    return folder / "run"


def make_classifier(run, folder, labels=("cat", "dog", "bird")):
    """The run's student with a head, as evaluate.py --export_classifier writes it."""
    torch.manual_seed(1)
    model, info = ViTForImageClassification.from_pretrained(
        run, num_labels=len(labels), id2label=dict(enumerate(labels)), output_loading_info=True
    )
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"classifier"}
    model.save_pretrained(folder)
    vit_processor().save_pretrained(folder)
    fingerprint = FrozenBackbone.load(str(run)).fingerprint()
    own = {"name": str(run), "fingerprint": fingerprint, "feature": "input of the classifier of ViT"}
    result_of(fingerprint, model=own, score=0.8125).save(folder / "pets.default.json")
    return folder


def record_of(run, **changes):
    """The run's record, with other content."""
    content = json.loads((run / "run.json").read_text())
    for name, value in changes.items():
        content[name] = content[name] | value if isinstance(value, dict) else value
    return Run(content)


def result_of(fingerprint, name="runs/run", task="pets", score=0.75, dataset="timm/oxford-iiit-pet", **changes):
    """A result of a classification, with no more in it than a card reads."""
    fields = {
        "model": {"name": name, "fingerprint": fingerprint, "revision": None},
        "task": {
            "name": task,
            "kind": "classification",
            "dataset": dataset,
            "config_name": None,
            "revision": "main" if dataset is not None else None,
            "test_split": "test",
            "splits": {"test": {"images": 3669}},
        },
        "protocol": {"name": "default"},
        "hyperparameters": {},
        "scores": {"top1_accuracy": score, "top5_accuracy": 0.9375, "knn_top1_accuracy": 0.625},
        "main_score": "top1_accuracy",
        "seed": 0,
        "seconds": {"total": 1.0},
        "environment": {},
    }
    return EvaluationResult(**(fields | changes))


def example_images():
    return image_dataset(3)["image"]
