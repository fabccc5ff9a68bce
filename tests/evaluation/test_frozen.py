import pytest
import torch
from families import FAMILIES, crop_processor, tiny_model, tiny_vit, vit_processor
from peft import get_peft_model
from transformers import AutoModel

from singer_hf import NullspaceLoraConfig, vision_backbone
from singer_hf.data import PixelNormalization
from singer_hf.evaluation import FrozenBackbone
from singer_hf.evaluation.frozen import weights_fingerprint


def frozen(model, processor=None, **options) -> FrozenBackbone:
    return FrozenBackbone(model, processor or vit_processor(), name="tiny", **options)


def some_pixels(count: int = 2, size: int = 32) -> torch.Tensor:
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8)


def own_features(model, pixels, processor, layer: int = 2) -> torch.Tensor:
    inputs = PixelNormalization.from_image_processor(processor)(pixels)
    with torch.no_grad():
        return vision_backbone(model.eval()).features(inputs, [layer]).hidden[layer]


# -- features ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_raw_output_of_the_last_block(family):
    model, processor, pixels = tiny_model(family), vit_processor(), some_pixels()
    backbone = frozen(model, processor)
    hidden, prefix = own_features(model, pixels, processor), vision_backbone(model).num_prefix_tokens
    tokens = backbone.tokens(pixels)
    assert torch.equal(torch.cat(tokens, dim=1), hidden) and tokens[0].shape[1] == prefix
    roles = vision_backbone(model).prefix
    expected = hidden[:, roles.index("cls")] if "cls" in roles else hidden[:, prefix:].mean(1)
    torch.testing.assert_close(backbone.pooled(pixels), expected)
    assert backbone.grid == (4, 4) and backbone.input_size == (32, 32)


def test_the_models_own_last_hidden_state_before_its_norm():
    """Without our contract: transformers gives a ViT's last hidden state in front of its final norm."""
    model, pixels = tiny_vit(), some_pixels()
    inputs = (pixels.float() / 255 - 0.5) / 0.5  # ViTImageProcessor's mean and deviation are 0.5
    with torch.no_grad():
        expected = model.eval()(inputs, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(frozen(model).pooled(pixels), expected[:, 0])
    assert not torch.allclose(model.layernorm(expected), expected, atol=1e-2)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_another_block_may_be_the_feature(layer):
    model, processor, pixels = tiny_vit(), vit_processor(), some_pixels()
    found = torch.cat(frozen(model, processor, layer=layer).tokens(pixels), dim=1)
    assert torch.equal(found, own_features(model, pixels, processor, layer))


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_that_the_model_lacks(layer):
    with pytest.raises(ValueError, match="layer"):
        frozen(tiny_vit(), layer=layer)


def test_the_backbone_is_frozen_and_in_eval_mode():
    model = tiny_vit(hidden_dropout_prob=0.5).train()
    backbone, pixels = frozen(model), some_pixels()
    assert torch.equal(backbone.pooled(pixels), backbone.pooled(pixels))
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("pooling", ["mean", "cls", "auto"])
def test_poolings(pooling):
    backbone = frozen(tiny_vit(), pooling=pooling)
    pixels = some_pixels()
    prefix, patches = backbone.tokens(pixels)
    expected = patches.mean(1) if pooling == "mean" else prefix[:, 0]
    torch.testing.assert_close(backbone.pooled(pixels), expected)


def test_a_model_without_cls_is_pooled_by_its_mean():
    assert frozen(tiny_model("siglip")).pooling == "mean"
    with pytest.raises(ValueError, match="no CLS token: use mean, or auto"):
        frozen(tiny_model("siglip"), pooling="cls")


def test_registers_are_neither_cls_nor_patches():
    backbone, pixels = frozen(tiny_model("dinov2_with_registers"), pooling="mean"), some_pixels()
    prefix, patches = backbone.tokens(pixels)
    assert prefix.shape[1] == 5 and patches.shape[1] == 16
    torch.testing.assert_close(backbone.pooled(pixels), patches.mean(1))


def test_another_input_size():
    backbone = frozen(tiny_vit(), image_size=64)
    assert backbone.input_size == (64, 64) and backbone.grid == (8, 8)
    assert backbone.description()["input_size"] == [64, 64]


# -- options ----------------------------------------------------------------------------------------------------------
def test_half_precision_is_near_and_stored_as_such():
    model, pixels = tiny_vit(), some_pixels()
    full, half = frozen(model).pooled(pixels), frozen(model, precision="bfloat16").pooled(pixels)
    assert (full.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    assert not torch.equal(half.float(), full)
    torch.testing.assert_close(half.float(), full, rtol=0.1, atol=0.1)


def test_auto_precision_of_a_cpu_is_float32():
    assert frozen(tiny_vit()).description()["precision"] == "float32"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, "precision='fp8' is not known: expected auto, float32, bfloat16, float16"),
        ({"pooling": "max"}, "pooling='max' is not known: expected one of auto, cls, mean"),
    ],
)
def test_unknown_options(options, message):
    with pytest.raises(ValueError, match=message):
        frozen(tiny_vit(), **options)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value):
    model = tiny_vit()
    model.layers[1].mlp.fc1.weight.data[0, 0] = value
    backbone = frozen(model)
    for call in (backbone.tokens, backbone.pooled):
        with pytest.raises(FloatingPointError, match=r"Features of tiny \(block 2, torch.float32\) are not finite"):
            call(some_pixels())


# -- fingerprint ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", FAMILIES)
def test_the_fingerprint_changes_with_one_weight(family):
    model = tiny_model(family)
    before = weights_fingerprint(model)
    assert weights_fingerprint(model) == before
    assert weights_fingerprint(tiny_model(family)) != before
    parameter = list(model.parameters())[-1]
    parameter.data.view(-1)[0] += 1e-3
    assert weights_fingerprint(model) != before


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fingerprint_is_the_same_out_of_a_folder(family, tmp_path):
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    assert weights_fingerprint(AutoModel.from_pretrained(tmp_path)) == weights_fingerprint(model)


def test_the_fingerprint_changes_with_what_the_weights_are_computed_with():
    model = tiny_vit()
    before = weights_fingerprint(model)
    model.config.layer_norm_eps = 1e-3
    assert weights_fingerprint(model) != before


def test_names_of_classes_do_not_change_the_fingerprint():
    model = tiny_vit()
    before = weights_fingerprint(model)
    model.config.id2label, model.config._name_or_path = {0: "cat"}, "elsewhere"
    assert weights_fingerprint(model) == before


def refined(teacher, **options):
    return get_peft_model(teacher, NullspaceLoraConfig(layers_to_transform=[1], r=4, **options))


def test_a_refined_teacher_has_a_fingerprint_and_features_of_its_own():
    teacher, pixels = tiny_vit(), some_pixels()
    plain = frozen(teacher)
    before, features = plain.fingerprint(), plain.pooled(pixels)
    model = refined(teacher)
    for name, parameter in model.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter.data)
    adapted = frozen(model)
    assert adapted.fingerprint() != before
    assert not torch.allclose(adapted.pooled(pixels), features)


def test_the_scale_of_an_adapter_changes_the_fingerprint():
    teacher, pixels = tiny_vit(), some_pixels()
    found = []
    for alpha in (4, 8):
        torch.manual_seed(1)
        model = tiny_vit()
        model.load_state_dict(teacher.state_dict())
        model = refined(model, lora_alpha=alpha)
        torch.manual_seed(2)
        for name, parameter in model.named_parameters():
            if "lora" in name:
                torch.nn.init.normal_(parameter.data)
        found.append(frozen(model))
    assert not torch.allclose(found[0].pooled(pixels), found[1].pooled(pixels))
    assert found[0].fingerprint() != found[1].fingerprint()


def test_what_features_depend_on_beside_the_weights_is_in_the_description():
    model = tiny_vit()
    plain = frozen(model).description()
    others = [
        {"layer": 1},
        {"pooling": "mean"},
        {"precision": "bfloat16"},
        {"image_size": 64},
        {"processor": vit_processor(image_mean=[0.1] * 3)},
        {"processor": vit_processor(image_std=[0.1] * 3)},
        {"processor": vit_processor(do_rescale=False)},
    ]
    for options in others:
        assert frozen(model, **options).description() != plain


# -- loading ----------------------------------------------------------------------------------------------------------
def test_a_folder_is_loaded_with_its_processor(tmp_path):
    model, pixels = tiny_vit(), some_pixels()
    model.save_pretrained(tmp_path), crop_processor(image_mean=[0.3] * 3).save_pretrained(tmp_path)
    backbone = FrozenBackbone.load(str(tmp_path))
    assert (backbone.name, backbone.revision) == (str(tmp_path), None)
    torch.testing.assert_close(
        backbone.pooled(pixels), frozen(model, crop_processor(image_mean=[0.3] * 3)).pooled(pixels)
    )
    assert backbone.num_parameters == sum(parameter.numel() for parameter in model.parameters())


def test_a_model_without_processor(tmp_path):
    tiny_vit().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="model comes without an image processor.*image_processor"):
        FrozenBackbone.load(str(tmp_path / "model"))
    vit_processor(image_mean=[0.3] * 3).save_pretrained(tmp_path / "processor")
    backbone = FrozenBackbone.load(str(tmp_path / "model"), image_processor=str(tmp_path / "processor"))
    assert "0.3" in backbone.description()["normalization"]


def test_a_refined_teacher_is_loaded_from_its_adapter(tmp_path):
    teacher, pixels = tiny_vit(), some_pixels()
    teacher.save_pretrained(tmp_path / "teacher"), vit_processor().save_pretrained(tmp_path / "teacher")
    model = refined(teacher)
    for name, parameter in model.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter.data)
    model.save_pretrained(tmp_path / "adapter")
    loaded = FrozenBackbone.load(str(tmp_path / "teacher"), adapter=str(tmp_path / "adapter"))
    torch.testing.assert_close(loaded.pooled(pixels), frozen(model).pooled(pixels))
    assert loaded.name.endswith("adapter") and " + " in loaded.name
    assert loaded.fingerprint() == frozen(model).fingerprint()


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("google/vit-base", "google--vit-base"),
        ("./out/model/", "out--model"),
        ("a/b + c/d", "a--b--+--c--d"),
        ("..", "model"),
    ],
)
def test_the_name_becomes_a_folders_name(name, slug):
    assert FrozenBackbone(tiny_vit(), vit_processor(), name=name).slug == slug
