import pytest
import torch
from families import tiny_model, tiny_vit

from singer_hf import vision_backbone
from singer_hf.diagnosis.norm_gain import NormGain, gain_table


def record(model, pixels, layer=1):
    backbone = vision_backbone(model)
    gain = NormGain(backbone)
    with torch.no_grad(), gain.recording():
        hidden, inputs = backbone.embed(pixels)
        for index in range(layer + 1):
            before, hidden = hidden, backbone.run_block(index, hidden, inputs)
            gain.add_block(index, before, hidden)
    return backbone, gain, before, hidden


def test_gains_are_those_of_the_blocks_parts_run_by_hand(images):
    backbone, gain, before, after = record(tiny_vit().eval(), images[:4])
    block = backbone.blocks[1]
    with torch.no_grad():
        middle = before + block.attention(block.layernorm_before(before))[0]
        normed = block.layernorm_after(middle)
        inner = block.mlp.fc1(normed)
        activated = block.mlp.activation_fn(inner)
        outer = block.mlp.fc2(activated)
    assert torch.allclose(middle + outer, after, atol=1e-5)
    expected = {"fc1": (inner, normed), "fc2": (outer, activated), "attention": (middle, before)}
    expected["feed_forward"] = (after, middle)
    for name, (output, source) in expected.items():
        ratio = output[:, 1:].norm(dim=-1) / source[:, 1:].norm(dim=-1)
        assert gain.ratios[1][name].mean == pytest.approx(ratio.mean().item(), rel=1e-4), name
        assert gain.ratios[1][name].count == ratio.numel()


def test_growth_is_gain_less_one_and_hooks_are_gone(images):
    backbone, gain, _, _ = record(tiny_vit().eval(), images[:4])
    table = gain_table(gain.ratios[1])
    assert table["feed_forward"]["mean"] == pytest.approx(gain.ratios[1]["feed_forward"].mean - 1)
    assert table["fc1"]["mean"] == pytest.approx(gain.ratios[1]["fc1"].mean)
    count = gain.ratios[1]["fc1"].count
    backbone.features(images[:2], [1])
    assert gain.ratios[1]["fc1"].count == count


@pytest.mark.parametrize("family", ["dinov2_giant", "timm_dinov2_giant"])
def test_of_a_gated_feed_forward_the_linear_branch_counts(family, images):
    backbone, gain, _, _ = record(tiny_model(family).eval(), images[:2])
    weights = backbone.feed_forward(1)
    modules = backbone.feed_forward_modules(1)
    seen = []
    handle = modules.linear_in.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    with torch.no_grad():
        backbone.features(images[:2], [1])
    handle.remove()
    source, output = seen[0]
    assert torch.allclose(modules.linear_branch(output), source @ weights.w_in, atol=1e-5)  # biases start at zero
