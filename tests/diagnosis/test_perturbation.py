import pytest
import torch
from artifact_models import pixels
from families import tiny_model, tiny_vit

from singer_hf import vision_backbone
from singer_hf.diagnosis import BASES, measure_perturbations
from singer_hf.diagnosis.jacobian import mean_outer_product
from singer_hf.diagnosis.perturbation import BasisContext, random_perturbation
from singer_hf.measures.similarity import linear_cka


def test_perturbations_lie_in_the_basis_and_have_the_size_asked_for():
    basis = torch.linalg.qr(torch.randn(32, 5))[0]
    patches = torch.randn(3, 16, 32)
    delta = random_perturbation(patches, basis, 0.2, torch.Generator().manual_seed(0))
    assert torch.allclose(delta.norm(dim=-1), 0.2 * patches.norm(dim=-1), rtol=1e-5)
    assert torch.allclose(delta @ basis @ basis.T, delta, atol=1e-5)


def test_table_8_is_what_the_real_block_does(images):
    model = tiny_vit(initializer_range=0.2).eval()
    backbone = vision_backbone(model)
    basis = torch.linalg.qr(torch.randn(32, 5))[0]
    measured = measure_perturbations(backbone, [1], images[:24], rank=5, seed=3, bases={"mine": lambda context: basis})
    with torch.no_grad():
        features = backbone.features(images[12:24], [1, 2])
        hidden, output = features.hidden[1], features.hidden[2][:, 1:]
        delta = random_perturbation(hidden[:, 1:], basis, 0.2, torch.Generator().manual_seed(3))
        perturbed = backbone.run_block(2, torch.cat([hidden[:, :1], hidden[:, 1:] + delta], dim=1))[:, 1:]
    change = perturbed - output
    values = measured[1]["mine"]
    assert values["l2"] == pytest.approx((change.norm(dim=-1) / output.norm(dim=-1)).mean().item(), rel=1e-4)
    assert values["cosine"] == pytest.approx(
        torch.nn.functional.cosine_similarity(output, perturbed, dim=-1).mean().item(), abs=1e-5
    )
    assert values["cka"] == pytest.approx(linear_cka(output.flatten(0, 1), perturbed.flatten(0, 1)), abs=1e-5)
    update = (output - hidden[:, 1:]).norm(dim=-1).flatten()
    expected = (change - delta).norm(dim=-1).mean() / update.sort().values[(len(update) - 1) // 2]
    assert values["update_l2"] == pytest.approx(expected.item(), rel=0.005)


def test_bases_are_made_from_the_whole_first_half(images):
    seen = []

    def basis(context):
        seen.extend(len(hidden) for hidden, _ in context.batches)
        return torch.linalg.qr(torch.randn(32, 4))[0]

    backbone = vision_backbone(tiny_vit().eval())
    values = measure_perturbations(backbone, [1], images[:41], rank=4, batch_size=8, bases={"mine": basis})[1]["mine"]
    assert seen == [8, 8, 4] and (values["basis_images"], values["images"]) == (20, 21)


@pytest.mark.parametrize("exact", [True, False])
def test_the_jacobian_basis_does_not_depend_on_how_images_are_cut(images, monkeypatch, exact):
    if not exact:
        monkeypatch.setattr("singer_hf.diagnosis.jacobian.mean_outer_product.__kwdefaults__", {
            **mean_outer_product.__kwdefaults__, "exact_up_to": 0,
        })  # fmt: skip
    backbone = vision_backbone(tiny_vit(initializer_range=0.2).eval())
    with torch.no_grad():
        hidden = backbone.features(images[:32], [1]).hidden[1]
    cut = BasisContext(backbone, 1, 8, [(part, {}) for part in hidden.split(8)], seed=0)
    whole = BasisContext(backbone, 1, 8, [(hidden, {})], seed=0)
    first, second = BASES["full Jacobian"](cut), BASES["full Jacobian"](whole)
    assert (first.T @ second).square().sum() / 8 > 0.5  # other tokens are drawn; chance is 0.25


def test_null_directions_disturb_the_update_less_than_random_ones(images):
    backbone = vision_backbone(tiny_vit(initializer_range=0.2, hidden_size=64, intermediate_size=128).eval())
    values = measure_perturbations(backbone, [1], images[:32], rank=8)[1]
    assert set(values) == set(BASES)
    assert values["full Jacobian"]["update_l2"] < values["random"]["update_l2"]
    assert values["feed-forward surrogate, norms folded"]["update_l2"] < values["random"]["update_l2"]


@pytest.mark.parametrize("family", ["beit", "dinov3_gated", "siglip", "timm_registers"])
def test_families_that_need_more_than_tokens(family):
    values = measure_perturbations(vision_backbone(tiny_model(family).eval()), [0, 2], pixels(6), rank=4)
    assert list(values) == [0]  # no block sees the output of the last
    assert all(0 < of["cosine"] <= 1.0001 for of in values[0].values())


def test_what_cannot_be_measured(images):
    backbone = vision_backbone(tiny_vit().eval())
    with pytest.raises(ValueError, match="got 1, need 2"):
        measure_perturbations(backbone, [0], images[:1], rank=4)
    with pytest.raises(ValueError, match="size must be positive"):
        measure_perturbations(backbone, [0], images, rank=4, size=0.0)
