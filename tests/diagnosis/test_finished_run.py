import json

import pytest
import torch
from artifact_models import pixels
from families import tiny_vit
from runs import trainer_of
from safetensors.torch import load_file, save_file

from singer_hf import vision_backbone
from singer_hf.diagnosis import diagnose_teacher, load_fit, measure_student
from singer_hf.objectives.target_normalization import layer_norm


@pytest.fixture
def models():
    torch.manual_seed(0)
    return tiny_vit(num_hidden_layers=6).eval(), tiny_vit(hidden_size=16, num_hidden_layers=6).eval()


def finished(folder, models, **options):
    """A run's folder (the adapter put in is taken out again), and what was trained with what."""
    teacher, student = models
    trainer = trainer_of(folder, teacher, student, **options)
    trainer.save_model()
    objective = trainer.model.objective
    if hasattr(trainer.model.teacher, "unload"):
        trainer.model.teacher.unload()
    teacher.eval(), student.eval()
    return dict(zip(objective.teacher_layers, objective.student_layers, strict=True))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"objective": "singer"}, {3: 3, 5: 5}),
        ({"objective": "singer_reference"}, {3: 2, 5: 4}),
        ({"objective": "singer_reference", "layer_matching": "paper"}, {3: 3, 5: 5}),
        ({"objective": "fitnet", "teacher_layers": [5, 1], "student_layers": [4, 0]}, {1: 0, 5: 4}),
    ],
)
def test_the_pairs_are_the_runs_own(tmp_path, models, options, expected):
    pairs = finished(tmp_path, models, **options)
    teacher, student = map(vision_backbone, models)
    fit = load_fit(tmp_path, teacher, student, {})
    assert fit.student_layers == pairs == expected
    found = diagnose_teacher(teacher, [pixels()])
    measured = measure_student(teacher, student, [2], [(pixels(), pixels())], diagnosis=found, fit=fit)
    assert {entry["teacher_layer"]: entry["student_layer"] for entry in measured} == pairs


def test_the_targets_are_normalised_as_the_runs_were(tmp_path, models):
    finished(tmp_path, models, objective="fitnet", target_normalization="layer_norm", outlier_mask_ratio=2.0)
    loss = load_fit(tmp_path, *map(vision_backbone, models), {}).feature_loss
    assert loss.normalize_target is layer_norm and loss.mask_ratio == 2.0


def test_a_run_without_projectors(tmp_path, models):
    save_file({"mask": torch.zeros(1)}, tmp_path / "distillation.safetensors")
    assert load_fit(tmp_path, *map(vision_backbone, models), {}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_layers": [1, 5]}, "these are not files of one run"),
        ({"objective": "mine"}, "objective 'mine' is not registered"),
        (None, "training_args.json is missing"),
    ],
)
def test_pairs_that_cannot_be_told(tmp_path, models, change, message):
    finished(tmp_path, models, objective="fitnet", teacher_layers=[3, 5])
    path = tmp_path / "training_args.json"
    if change is None:
        path.unlink()
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"teacher_layers": None} | change))
    with pytest.raises(ValueError, match=message):
        load_fit(tmp_path, *map(vision_backbone, models), {})


def test_projectors_of_another_teacher(tmp_path, models):
    finished(tmp_path, models, objective="fitnet")
    assert load_file(tmp_path / "distillation.safetensors")
    with pytest.raises(ValueError, match="give the run's own teacher"):
        load_fit(
            tmp_path, vision_backbone(tiny_vit(hidden_size=48, num_hidden_layers=6)), vision_backbone(models[1]), {}
        )
