import pytest
import torch
from artifact_models import pixels
from families import tiny_vit
from peft import PeftModel, get_peft_model

from singer_hf import NullspaceLoraConfig, vision_backbone
from singer_hf.diagnosis import (
    Refinement,
    adapter_refinements,
    diagnose_teacher,
    energy_shares,
    initial_refinements,
    measure_refinements,
    refined_model,
)
from singer_hf.diagnosis.refinement import check_refinements
from singer_hf.diagnosis.spectrum import left_singular_vectors


def test_an_adapters_matrices_refine_as_its_layer_does():
    model = get_peft_model(
        tiny_vit(num_hidden_layers=4), NullspaceLoraConfig(r=4, lora_alpha=6, layers_to_transform=[1, 3])
    )
    hidden = torch.randn(2, 17, 32)
    found = adapter_refinements(model)
    assert sorted(found) == [1, 3]
    for layer, refinement in found.items():
        expected = vision_backbone(model).blocks[layer].refine(hidden)
        assert torch.allclose(refinement.of_tokens(hidden, 1), expected, atol=1e-5)
        assert torch.equal(refinement.of_tokens(hidden, 1)[:, 0], hidden[:, 0])


def test_refinements_of_several_adapters_add():
    model = get_peft_model(tiny_vit(num_hidden_layers=4), NullspaceLoraConfig(r=2, layers_to_transform=[1]))
    model.add_adapter("more", NullspaceLoraConfig(r=3, layers_to_transform=[1], init_lora_weights="random"))
    model.base_model.set_adapter(["default", "more"])
    hidden = torch.randn(2, 17, 32)
    expected = vision_backbone(model).blocks[1].refine(hidden)
    assert torch.allclose(adapter_refinements(model)[1].of_tokens(hidden, 1), expected, atol=1e-5)


def test_a_model_without_an_adapter():
    with pytest.raises(ValueError, match="no active nullspace adapter"):
        adapter_refinements(tiny_vit())


def test_initial_refinements_are_what_an_adapter_starts_as():
    model = tiny_vit(num_hidden_layers=4)
    initial = initial_refinements(vision_backbone(model), [1, 3], 4)
    carried = adapter_refinements(get_peft_model(model, NullspaceLoraConfig(r=4, layers_to_transform=[1, 3])))
    for layer in (1, 3):
        assert torch.allclose(initial[layer].down, carried[layer].down, atol=1e-6)
        assert torch.allclose(initial[layer].up, carried[layer].up, atol=1e-6)


def test_refinements_are_saved_as_an_adapter_and_come_back(tmp_path):
    tiny_vit(num_hidden_layers=4).save_pretrained(tmp_path / "teacher")
    load = type(tiny_vit()).from_pretrained
    made = {layer: Refinement(torch.randn(32, 5), torch.randn(5, 32)) for layer in (0, 2)}
    refined_model(load(tmp_path / "teacher", add_pooling_layer=False), made).save_pretrained(tmp_path / "adapter")
    back = PeftModel.from_pretrained(load(tmp_path / "teacher", add_pooling_layer=False), tmp_path / "adapter")
    for layer, refinement in adapter_refinements(back).items():
        assert torch.allclose(refinement.down, made[layer].down) and torch.allclose(refinement.up, made[layer].up)


@pytest.mark.parametrize("folded", [False, True])
def test_an_adapter_is_scored_by_the_surrogate_it_was_made_from(folded):
    """Its null basis then lies in the last quarter altogether; with the other surrogate it would not."""
    torch.manual_seed(0)
    model = tiny_vit(num_hidden_layers=4).eval()
    backbone = vision_backbone(model)
    for block in range(4):
        modules = backbone.feed_forward_modules(block)
        torch.nn.init.uniform_(modules.norm.weight, 0.1, 3.0)
    found = diagnose_teacher(backbone, [pixels()])
    config = NullspaceLoraConfig(r=4, layers_to_transform=[1, 3], fold_layer_norm=folded)
    refinements = adapter_refinements(get_peft_model(model, config))
    effects = measure_refinements(backbone, {"adapter": refinements}, found, [pixels(4)])["adapter"]
    for layer in (1, 3):
        summary = effects[layer].summary()
        assert summary["fold_layer_norm"] is folded and summary["init"] == "nullspace" and summary["rank"] == 4
        assert summary["energy"]["up"]["safe"] == pytest.approx(1, abs=1e-6)
        other = left_singular_vectors(backbone, min(layer + 1, 3), fold_layer_norm=not folded)
        assert energy_shares(refinements[layer].up.T, other)["safe"] < 0.99


@pytest.mark.parametrize(
    ("layer", "down", "up", "message"),
    [
        (7, (32, 2), (2, 32), "'mine' is for block 7, but the teacher has 3 blocks"),
        (1, (16, 2), (2, 16), r"'mine', block 1, has factors \(16, 2\) and \(2, 16\); the teacher's width is 32"),
        (1, (32, 2), (3, 32), "has factors"),
    ],
)
def test_refinements_of_another_teacher(layer, down, up, message):
    with pytest.raises(ValueError, match=message):
        check_refinements("mine", {layer: Refinement(torch.zeros(down), torch.zeros(up))}, vision_backbone(tiny_vit()))


def test_refinements_that_are_not_finite():
    broken = Refinement(torch.full((32, 2), float("nan")), torch.zeros(2, 32))
    with pytest.raises(ValueError, match="'mine', block 1, holds NaN"):
        check_refinements("mine", {1: broken}, vision_backbone(tiny_vit()))


def test_energy_of_a_null_basis_of_a_leading_basis_and_of_chance():
    left = left_singular_vectors(vision_backbone(tiny_vit()), 1)
    assert energy_shares(left[:, -8:], left) == pytest.approx({"prob": 0, "safe": 1}, abs=1e-9)
    assert energy_shares(left[:, :4], left) == pytest.approx({"prob": 1, "safe": 0}, abs=1e-9)
    shares = energy_shares(torch.randn(32, 4000), left)
    assert shares["prob"] == pytest.approx(0.25, abs=0.01) and shares["safe"] == pytest.approx(0.25, abs=0.01)


def test_energy_against_a_projector_made_independently():
    surrogate = torch.randn(12, 12, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(surrogate @ surrogate.T)  # ascending
    factor = torch.randn(12, 5, dtype=torch.float64)
    left = torch.linalg.svd(surrogate)[0]
    for part, basis in (("prob", vectors[:, -3:]), ("safe", vectors[:, :3])):
        expected = (basis @ basis.T @ factor).square().sum() / factor.square().sum()
        assert energy_shares(factor, left)[part] == pytest.approx(expected.item(), rel=1e-9)
