import pytest
import torch
from families import FAMILIES, tiny_model, tiny_vit
from torch import nn
from transformers import AutoConfig, AutoModel, ResNetConfig, ViTConfig, ViTForImageClassification

from singer_hf import STUDENT_SIZES, StudentSize, VisionBackbone, build_student, register_backbone, vision_backbone
from singer_hf.backbones import blocks_prefix, contract, load_vision_model


def own_hidden_states(family, model, pixels, backbone):
    """Block outputs as the model itself reports them, patches alone for timm (which reports only those)."""
    if family.startswith("timm"):
        _, maps = model.timm_model.forward_intermediates(pixels, norm=False)
        return [m.flatten(2).transpose(1, 2) for m in maps]
    kwargs = {}
    if family == "vit_mae":
        model.config.mask_ratio = 0.0
        kwargs["noise"] = torch.arange(16.0).repeat(len(pixels), 1)  # keep the patches in order
    return list(model(pixels, output_hidden_states=True, **kwargs).hidden_states[1:])


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_models_own_hidden_states(family):
    model = tiny_model(family).eval()
    backbone = vision_backbone(model)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = backbone.features(pixels, [0, 2])
        expected = own_hidden_states(family, model, pixels, backbone)
    assert list(features.hidden) == [0, 2]
    assert features.layout.grid == (4, 4)
    for layer, hidden in features.hidden.items():
        assert hidden.shape == (2, backbone.num_prefix_tokens + 16, 32)
        skipped = backbone.num_prefix_tokens if family.startswith("timm") else 0
        torch.testing.assert_close(hidden[:, skipped:], expected[layer], rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_running_one_block_alone_continues_the_pass(family):
    backbone = vision_backbone(tiny_model(family).eval())
    with torch.no_grad():
        features = backbone.features(torch.randn(2, 3, 32, 32), [1, 2])
        alone = backbone.run_block(2, features.hidden[1], features.block_inputs)
    torch.testing.assert_close(alone, features.hidden[2], rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_feed_forward_weights_are_those_the_block_uses(family):
    """The surrogate's matrices must reproduce the block's own feed-forward where that is made linear."""
    model = tiny_model(family).eval().double()
    backbone = vision_backbone(model)
    weights = backbone.feed_forward(1)
    assert weights.w_in.shape[0] == weights.w_out.shape[1] == 32
    assert weights.w_in.shape[1] == weights.w_out.shape[0]
    assert weights.norm_scale.shape == (32,) and weights.norm_centers
    mlp = backbone.blocks[1].mlp
    for module in mlp.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    gated = "giant" in family or family == "dinov3_gated"
    if gated:
        _open_gate(mlp)
    for name in ("activation_fn", "activation", "act_fn", "act"):
        if hasattr(mlp, name):
            setattr(mlp, name, nn.Identity())
    tokens = torch.randn(5, 32, dtype=torch.float64)
    torch.testing.assert_close(mlp(tokens), tokens @ weights.w_in @ weights.w_out)


def _open_gate(mlp):
    """Makes the gating branch constantly one."""
    if hasattr(mlp, "gate_proj"):
        nn.init.zeros_(mlp.gate_proj.weight)
        nn.init.ones_(mlp.gate_proj.bias)
    elif hasattr(mlp, "weights_in"):  # transformers before 5.23
        half = mlp.weights_in.weight.shape[0] // 2
        with torch.no_grad():
            mlp.weights_in.weight[:half] = 0
            mlp.weights_in.bias[:half] = 1.2784645427610738  # silu of it is one
    else:  # timm's packed GLU
        half = mlp.fc1.weight.shape[0] // 2
        gate = slice(half, None) if mlp.gate_last else slice(None, half)
        with torch.no_grad():
            mlp.fc1.weight[gate] = 0
            mlp.fc1.bias[gate] = 1


@pytest.mark.parametrize(
    ("family", "prefix"),
    [
        ("vit", ("cls",)),
        ("deit", ("cls", "distillation")),
        ("siglip", ()),
        ("dinov2_with_registers", ("cls",) + 4 * ("register",)),
        ("timm_registers", ("cls",) + 4 * ("register",)),
    ],
)
def test_prefix_tokens_by_role(family, prefix):
    assert vision_backbone(tiny_model(family)).prefix == prefix


@pytest.mark.parametrize("family", ["dinov2", "dinov3", "beit", "timm_deit3"])
def test_layer_scale_is_reported(family):
    assert vision_backbone(tiny_model(family)).feed_forward(0).layer_scale.shape == (32,)


def test_the_pass_stops_at_the_last_block_needed(teacher):
    calls = []
    for index, block in enumerate(teacher.layers):
        block.register_forward_hook(lambda *_, index=index: calls.append(index))
    vision_backbone(teacher).features(torch.randn(1, 3, 32, 32), [1])
    assert calls == [0, 1]


def test_other_input_sizes_interpolate_positions(teacher):
    features = vision_backbone(teacher).features(torch.randn(1, 3, 48, 40), [0])
    assert features.layout.grid == (6, 5)
    assert features.hidden[0].shape[1] == 1 + 30


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([4], "layer 4 is out of range: the model has 4 blocks, 0 to 3"),
        ([-1], "layer -1 is out of range"),
        ([], "No layer was given"),
        ([1, 1], r"layers \[1, 1\] name a block twice"),
        ([True], "layer True is out of range"),
    ],
)
def test_impossible_layers_are_named(teacher, layers, message):
    with pytest.raises(ValueError, match=message):
        vision_backbone(teacher).features(torch.randn(1, 3, 32, 32), layers)


def test_images_below_one_patch(teacher):
    with pytest.raises(ValueError, match="smaller than one 8x8 patch"):
        vision_backbone(teacher).features(torch.randn(1, 3, 4, 4), [0])


def test_a_model_with_a_head_is_seen_through_it():
    model = ViTForImageClassification(ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2))
    assert vision_backbone(model).num_blocks == 2
    assert blocks_prefix(model) == "vit.layers"


def test_an_unknown_family_says_what_is_supported_and_how_to_register():
    with pytest.raises(ValueError, match=r"'resnet'.*dinov2.*register_backbone"):
        vision_backbone(AutoModel.from_config(ResNetConfig(depths=[1, 1], hidden_sizes=[8, 8], embedding_size=8)))


def test_a_registered_family_is_used(teacher, monkeypatch):
    monkeypatch.setattr(contract, "_FAMILIES", dict(contract._FAMILIES))

    @register_backbone
    class Mine(type(vision_backbone(teacher))):
        model_types = ("vit",)

    assert isinstance(vision_backbone(teacher), Mine)
    with pytest.raises(ValueError, match="model_types is empty"):
        register_backbone(type("Nameless", (VisionBackbone,), {"model_types": ()}))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_from_scratch_has_the_family_and_the_size(family):
    teacher = tiny_model(family)
    student = build_student(teacher.config, StudentSize(hidden_size=24, num_hidden_layers=2, num_attention_heads=2))
    backbone = vision_backbone(student)
    assert type(student) is type(teacher)
    assert (backbone.hidden_size, backbone.num_blocks) == (24, 2)
    assert backbone.patch_size == vision_backbone(teacher).patch_size
    assert getattr(student, "pooler", None) is None or family in ("siglip",)


def test_student_sizes_are_the_fields():
    student = build_student(ViTConfig(), "tiny")
    assert sum(p.numel() for p in student.parameters()) == 5_524_416  # timm's vit_tiny_patch16_224 without its head
    assert set(STUDENT_SIZES) == {"tiny", "small", "base"}
    with pytest.raises(ValueError, match="expected one of tiny, small, base"):
        build_student(ViTConfig(), "huge")


def test_loading_leaves_the_untrained_pooler_out(tmp_path):
    tiny_vit().save_pretrained(tmp_path)
    assert load_vision_model(str(tmp_path)).pooler is None
    assert AutoConfig.from_pretrained(tmp_path).model_type == "vit"


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_two_tower_checkpoint_gives_its_vision_model(tmp_path, name):
    config = AutoConfig.for_model(
        name,
        text_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "image_size": 32,
            "patch_size": 8,
        },
    )
    both = AutoModel.from_config(config).eval()
    both.save_pretrained(tmp_path)
    vision = load_vision_model(str(tmp_path)).eval()
    assert vision.config.model_type == f"{name}_vision_model"
    pixels = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(
        vision_backbone(vision).features(pixels, [1]).hidden[1],
        both.vision_model(pixels, output_hidden_states=True).hidden_states[2],
    )
