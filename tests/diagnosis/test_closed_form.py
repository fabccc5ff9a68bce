import pytest
import torch
from families import tiny_vit

from singer_hf import vision_backbone
from singer_hf.diagnosis import diagnose_teacher, fit_closed_form, measure_refinements
from singer_hf.diagnosis.closed_form import suppression
from singer_hf.nullspace import linear_surrogate


def test_the_map_is_the_minimum_of_its_objective():
    outliers = torch.randn(40, 6, dtype=torch.float64) * torch.tensor([5.0, 1, 1, 0.5, 2, 0.1])
    others = torch.randn(900, 6, dtype=torch.float64)

    def objective(inner):
        first = (outliers + outliers @ inner).square().sum(dim=1).mean()
        return first + 0.7 * (others @ inner).square().sum(dim=1).mean()

    inner = suppression(outliers.T @ outliers / 40, others.T @ others / 900, weight=0.7)
    inner.requires_grad_(True)
    (gradient,) = torch.autograd.grad(objective(inner), inner)
    assert gradient.abs().max() < 1e-10
    assert objective(inner) < objective(torch.zeros(6, 6, dtype=torch.float64))


def test_a_direction_that_outliers_alone_carry_is_taken_away_and_one_of_the_others_is_left():
    inner = suppression(torch.diag(torch.tensor([4.0, 0.0, 3.0])), torch.diag(torch.tensor([0.0, 2.0, 3.0])))
    assert torch.allclose(inner, -torch.diag(torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)), atol=1e-9)


def test_it_stays_in_the_null_basis_and_takes_norm_off_outliers_alone(artifact_teacher, images):
    backbone = vision_backbone(artifact_teacher)
    found = diagnose_teacher(backbone, images.split(16))
    fitted = fit_closed_form(backbone, [2], found, images.split(16), rank=8)
    surrogate = linear_surrogate(backbone.feed_forward(3))
    smallest = torch.linalg.svdvals(surrogate)[-8:]
    assert (fitted[2].down.T.double() @ surrogate).norm() == pytest.approx(smallest.norm().item(), rel=1e-3)
    full = fit_closed_form(backbone, [2], found, images.split(16), rank=32)
    effects = measure_refinements(backbone, {"null": fitted, "full": full}, found, images.split(16))
    before = effects["null"][2].outliers_before.mean
    assert effects["full"][2].outliers_after.mean < effects["null"][2].outliers_after.mean < before
    assert effects["full"][2].cosine_others.mean > 0.9


def test_a_layer_without_outliers_is_left_out(images):
    backbone = vision_backbone(tiny_vit().eval())
    found = diagnose_teacher(backbone, images.split(16))
    assert fit_closed_form(backbone, [1], found, images.split(16), rank=4) == {}


def test_a_weight_of_nothing(artifact_teacher, images):
    backbone = vision_backbone(artifact_teacher)
    found = diagnose_teacher(backbone, images.split(16))
    with pytest.raises(ValueError, match="weight must be positive"):
        fit_closed_form(backbone, [2], found, [images], rank=4, weight=0.0)
