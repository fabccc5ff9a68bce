import pytest
import torch
from artifact_models import pixels
from families import tiny_model, tiny_vit

from singer_hf import vision_backbone
from singer_hf.diagnosis import Refinement, StudentFit, diagnose_teacher, measure_student
from singer_hf.diagnosis.gradient_share import outlier_gradient_share, outlier_loss_share
from singer_hf.losses import gram_distance
from singer_hf.measures.similarity import linear_cka
from singer_hf.objectives.feature_loss import FeatureLoss
from singer_hf.objectives.target_normalization import target_normalization


@pytest.fixture
def diagnosis(teacher, images):
    return diagnose_teacher(vision_backbone(teacher), [images])


def last_patches(model, images):
    backbone = vision_backbone(model)
    last = backbone.num_blocks - 1
    with torch.no_grad():
        return backbone.features(images, [last]).hidden[last][:, backbone.num_prefix_tokens :]


def test_table_2_is_that_of_all_features_at_once(teacher, student, images, diagnosis):
    student.eval()
    pairs = [(batch, batch) for batch in images.split(10)]
    found = measure_student(vision_backbone(teacher), vision_backbone(student), [1], pairs, diagnosis=diagnosis)
    assert [(entry["teacher_layer"], entry["student_layer"]) for entry in found] == [(1, 1), (3, 2)]
    own, other = last_patches(teacher, images), last_patches(student, images)
    assert found[1]["gram_distance_per_patch"] == pytest.approx(gram_distance(own, other).mean().item(), rel=1e-4)
    assert found[1]["gram_distance"]["mean"] == pytest.approx(16 * gram_distance(own, other).mean().item(), rel=1e-4)
    assert found[1]["cka"] == pytest.approx(linear_cka(own.flatten(0, 1), other.flatten(0, 1)), abs=1e-5)
    assert found[1]["norms"]["mean"] == pytest.approx(other.norm(dim=-1).mean().item(), rel=1e-4)


def test_a_teacher_is_like_itself(teacher, images, diagnosis):
    backbone = vision_backbone(teacher)
    nothing = Refinement(torch.randn(32, 2), torch.zeros(2, 32))
    found = measure_student(backbone, backbone, [], [(images, images)], diagnosis=diagnosis, refinements={3: nothing})
    assert found[0]["cka"] == pytest.approx(1) and found[0]["gram_distance"]["mean"] == pytest.approx(0, abs=1e-4)
    assert found[0]["gram_distance_to_refined"]["mean"] == pytest.approx(0, abs=1e-4)


def test_models_of_other_grids_and_prefix_tokens_are_aligned():
    teacher, student = tiny_model("dinov2_with_registers").eval(), tiny_vit(image_size=48, num_hidden_layers=3).eval()
    pairs = [(pixels(6), pixels(6, size=48))]
    found = measure_student(
        vision_backbone(teacher),
        vision_backbone(student),
        [0],
        pairs,
        diagnosis=diagnose_teacher(vision_backbone(teacher), [pixels(63)]),
    )
    assert len(found) == 2 and found[-1]["cka"] is None  # of 6 images: too few
    assert found[-1]["norms"]["count"] == 6 * 36  # the student's own patches, not interpolated ones


def test_no_images(teacher, student, diagnosis):
    with pytest.raises(ValueError, match="no images"):
        measure_student(vision_backbone(teacher), vision_backbone(student.eval()), [], [], diagnosis=diagnosis)


@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
def test_the_remaining_loss_is_that_of_the_projected_student(artifact_teacher, student, images, normalize):
    found = diagnose_teacher(vision_backbone(artifact_teacher), [images])
    projector, target = torch.nn.Linear(16, 32), Refinement(0.1 * torch.randn(32, 2), torch.randn(2, 32))
    result = measure_student(
        vision_backbone(artifact_teacher),
        vision_backbone(student.eval()),
        [],
        [(batch, batch) for batch in images.split(10)],
        diagnosis=found,
        fit=StudentFit({3: projector}, {3: 2}, {3: target}, FeatureLoss(normalize)),
    )[0]
    own = last_patches(artifact_teacher, images)
    outliers = found.is_outlier(3, own.norm(dim=-1))
    parts = projector(last_patches(student, images)), target_normalization(normalize)(target(own)), outliers
    assert 0 < result["remaining_loss_on_outliers"] < 1
    assert result["remaining_loss_on_outliers"] == pytest.approx(outlier_loss_share(*parts), rel=1e-4)
    assert result["remaining_gradient_on_outliers"] == pytest.approx(outlier_gradient_share(*parts), rel=1e-4)


def test_what_a_run_did_not_compare_is_no_remaining_loss(artifact_teacher, student, images):
    found = diagnose_teacher(vision_backbone(artifact_teacher), [images])
    fit = StudentFit({3: torch.nn.Linear(16, 32)}, {3: 2}, feature_loss=FeatureLoss(mask_ratio=1.5))
    backbones = vision_backbone(artifact_teacher), vision_backbone(student.eval())
    result = measure_student(*backbones, [], [(images, images)], diagnosis=found, fit=fit)[0]
    assert result["remaining_loss_on_outliers"] == result["remaining_gradient_on_outliers"] == 0


def test_a_student_that_cannot_be_measured(teacher, student, images, diagnosis):
    parts = vision_backbone(teacher), vision_backbone(student), [], [(images, images)]
    student.train()
    with pytest.raises(ValueError, match="Student 'student' is in training mode"):
        measure_student(*parts, diagnosis=diagnosis)
    with torch.no_grad():
        next(student.eval().parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="Student 'student': .* holds NaN"):
        measure_student(*parts, diagnosis=diagnosis)


def test_projectors_without_a_student_layer():
    with pytest.raises(ValueError, match="every projector needs the student layer"):
        StudentFit({3: torch.nn.Linear(16, 32)}, {})


def test_the_layers_that_a_run_joined_are_compared(teacher, student, images, diagnosis):
    fit = StudentFit({1: torch.nn.Linear(16, 32)}, {1: 0})
    pairs = [(images, images)]
    found = measure_student(
        vision_backbone(teacher), vision_backbone(student.eval()), [1], pairs, diagnosis=diagnosis, fit=fit
    )
    assert [(entry["teacher_layer"], entry["student_layer"]) for entry in found] == [(1, 0)]  # and no other pair
    own = vision_backbone(student).features(images, [0]).hidden[0][:, 1:].detach()
    other = vision_backbone(teacher).features(images, [1]).hidden[1][:, 1:].detach()
    assert found[0]["cka"] == pytest.approx(linear_cka(other.flatten(0, 1), own.flatten(0, 1)), abs=1e-5)
