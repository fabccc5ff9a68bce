import pytest
import torch
from families import tiny_model, tiny_vit

from singer_hf import vision_backbone
from singer_hf.planting import HIGH_NORM, background_patches, norm_profile, plant_artifacts

pytest.importorskip("sklearn")


def pictures(count=48, size=32, patch=8):
    """Noise, with the patches of the left column empty."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(count, 3, size, size, generator=generator)
    pixels[..., :patch] = -1.0
    return pixels


def test_background_patches_are_those_of_lowest_variance():
    background = background_patches(pictures(), (8, 8), 0.25)
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[:, 0] = True
    assert torch.equal(background, expected.flatten().expand(48, 16))


def test_a_norm_profile_agrees_with_its_definition():
    model, pixels = tiny_vit().eval(), pictures()
    profile = norm_profile(model, pixels, batch_size=7)
    with torch.no_grad():
        norms = vision_backbone(model).features(pixels, [1]).hidden[1][:, 1:].norm(dim=-1)
    assert profile.high_norm_share[1] == pytest.approx((norms > HIGH_NORM * norms.median()).float().mean().item())
    expected = (norms.max(dim=1).values / norms.median(dim=1).values).mean().item()
    assert profile.largest_to_median[1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", ["vit", "dinov2", "timm_augreg"])
def test_planted_tokens_have_several_times_the_median_norm_from_that_block_on(family):
    torch.manual_seed(0)
    model, pixels = tiny_model(family).eval(), pictures()
    report = plant_artifacts(model, pixels, block=1, strength=5.0, share=0.05)
    assert report.fired_share == pytest.approx(0.05, abs=0.01)
    assert report.background_precision > 0.9
    assert report.after.largest_to_median[0] == report.before.largest_to_median[0]
    for block in (1, 2):
        assert report.before.largest_to_median[block] < 2
        assert report.after.largest_to_median[block] > 3
        assert 0.02 < report.after.high_norm_share[block] < 0.08


def test_one_hidden_unit_is_all_that_changes():
    torch.manual_seed(0)
    model = tiny_vit().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = plant_artifacts(model, pictures(), block=1, share=0.05)
    changed = {name: tensor != before[name] for name, tensor in model.state_dict().items()}
    changed = {name: mask for name, mask in changed.items() if mask.any()}
    assert sorted(changed) == ["layers.1.mlp.fc1.bias", "layers.1.mlp.fc1.weight", "layers.1.mlp.fc2.weight"]
    assert changed["layers.1.mlp.fc1.weight"].any(dim=1).nonzero().flatten().tolist() == [report.unit]
    assert changed["layers.1.mlp.fc2.weight"].any(dim=0).nonzero().flatten().tolist() == [report.unit]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 3}, "block 3 is out of range: the model has 3 blocks"),
        ({"block": 1, "share": 0.3}, "0 < share < background < 1"),
        ({"block": 1, "strength": 1.0}, "must be above 1, got 1.0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        plant_artifacts(tiny_vit(), pictures(), **options)


def test_a_gated_feed_forward_part_is_refused():
    with pytest.raises(ValueError, match="block 1 is gated"):
        plant_artifacts(tiny_model("dinov3_gated"), pictures(), block=1)
