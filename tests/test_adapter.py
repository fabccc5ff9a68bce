import subprocess
import sys
import textwrap

import pytest
import torch
from families import FAMILIES, tiny_model, tiny_vit
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, ViTConfig, ViTForImageClassification

from singer_hf import NullspaceLoraConfig, vision_backbone
from singer_hf.nullspace import initial_basis

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def disturb(model):
    """Gives the adapters values that no initialisation has."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_alpha_defaults_to_r():
    assert NullspaceLoraConfig(r=16).lora_alpha == 16
    assert NullspaceLoraConfig(r=16, rank_pattern={"layers.1": 8}).alpha_pattern == {"layers.1": 8}


@pytest.mark.parametrize(
    "option",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"lora_dropout": 0.1},
        {"bias": "all"},
        {"lora_bias": True},
        {"modules_to_save": ["layernorm"]},
        {"layers_pattern": "layers"},
        {"exclude_modules": ["layers.1"]},
        {"fan_in_fan_out": True},
    ],
)
def test_options_without_a_meaning_are_refused(option):
    with pytest.raises(ValueError, match=f"{next(iter(option))}=.* has no meaning for NullspaceLoraConfig"):
        NullspaceLoraConfig(**option)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"r": 0}, "positive integer"),
        ({"init_lora_weights": "pissa"}, "expected one of nullspace, random, reference"),
        ({"layers_to_transform": [-1]}, "block indices from 0 on"),
        ({"layers_to_transform": [1, 1]}, "names a block twice"),
    ],
)
def test_impossible_values_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        NullspaceLoraConfig(**option)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"r": 33}, "rank r=33 is above the model's width 32"),
        ({"layers_to_transform": [4]}, "layer 4 is out of range: the model has 4 blocks"),
        ({"layers_to_transform": [3], "init_lora_weights": "reference"}, "needs at least two layers"),
        ({"hidden_size": 64}, "for a model of width 64, but ViTModel has width 32"),
    ],
)
def test_an_adapter_that_does_not_fit_leaves_the_model_as_it_was(teacher, option, message):
    with pytest.raises(ValueError, match=message):
        get_peft_model(teacher, NullspaceLoraConfig(**({"r": 4} | option)))
    assert not any("lora" in name for name, _ in teacher.named_modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_adapter_refines_patches_alone_by_the_formula(family):
    model = tiny_model(family).eval()
    backbone = vision_backbone(model)
    with torch.no_grad():
        plain = backbone.features(PIXELS, [1]).hidden[1]
        refined_teacher = disturb(get_peft_model(model, NullspaceLoraConfig(r=4, layers_to_transform=[1])))
        refined = vision_backbone(refined_teacher).features(PIXELS, [1]).hidden[1]
    layer = backbone.blocks[1]
    down, up = layer.lora_A["default"].weight.T, layer.lora_B["default"].weight.T
    prefix = backbone.num_prefix_tokens
    assert torch.equal(refined[:, :prefix], plain[:, :prefix])
    expected = plain[:, prefix:] + plain[:, prefix:] @ down @ up
    torch.testing.assert_close(refined[:, prefix:], expected)
    assert not torch.allclose(refined[:, prefix:], plain[:, prefix:])


@pytest.mark.parametrize("init", ["nullspace", "random", "reference"])
def test_factors_start_from_the_basis(teacher, init):
    config = NullspaceLoraConfig(r=8, layers_to_transform=[1, 3], init_lora_weights=init)
    model = get_peft_model(teacher, config)
    backbone = vision_backbone(model)
    for layer in (1, 3):
        basis = initial_basis(
            backbone, layer, 8, init=init, own_block=init == "reference" and layer == 3, null_threshold=0.05
        ).float()
        torch.testing.assert_close(backbone.blocks[layer].lora_A["default"].weight, basis.T)
        torch.testing.assert_close(backbone.blocks[layer].lora_B["default"].weight, basis)


def test_the_reference_rule_uses_the_last_distilled_layers_own_block(teacher):
    config = NullspaceLoraConfig(r=4, layers_to_transform=[0, 2], init_lora_weights="reference", null_threshold=10.0)
    backbone = vision_backbone(get_peft_model(teacher, config))
    own = initial_basis(backbone, 2, 4, init="reference", own_block=True, null_threshold=10.0).float()
    torch.testing.assert_close(backbone.blocks[2].lora_B["default"].weight, own)


def test_default_layers_follow_the_paper(teacher):
    model = get_peft_model(teacher, NullspaceLoraConfig(r=4))
    assert model.peft_config["default"].layers_to_transform == [2, 3]
    assert sorted(model.peft_config["default"].target_modules) == ["layers.2", "layers.3"]


def test_only_the_adapter_trains(teacher):
    model = get_peft_model(teacher, NullspaceLoraConfig(r=4))
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trainable) == 4 and all("lora_" in name for name in trainable)


def test_hidden_states_show_the_refined_tokens(teacher):
    for warm_up in (False, True):  # transformers installs its hooks at the first request for hidden states
        if warm_up:
            teacher(PIXELS, output_hidden_states=True)
        model = disturb(get_peft_model(teacher, NullspaceLoraConfig(r=4, layers_to_transform=[1])))
        states = model(PIXELS, output_hidden_states=True).hidden_states
        features = vision_backbone(model).features(PIXELS, [0, 1, 2, 3]).hidden
        assert len(states) == 5
        for layer in range(4):
            torch.testing.assert_close(states[layer + 1], features[layer])
        teacher = model.unload()


def test_disabling_gives_the_plain_model(teacher):
    plain = teacher(PIXELS).last_hidden_state
    model = get_peft_model(teacher, NullspaceLoraConfig(r=4))
    assert not torch.equal(model(PIXELS).last_hidden_state, plain)
    with model.disable_adapter():
        assert torch.equal(model(PIXELS).last_hidden_state, plain)


def test_unloading_gives_the_base_back_exactly(teacher):
    plain = teacher(PIXELS).last_hidden_state
    base = get_peft_model(teacher, NullspaceLoraConfig(r=4)).unload()
    assert not any("lora" in name for name, _ in base.named_modules())
    assert torch.equal(base(PIXELS).last_hidden_state, plain)


@pytest.mark.parametrize("method", ["merge_and_unload", "merge_adapter"])
def test_merging_is_refused(teacher, method):
    model = get_peft_model(teacher, NullspaceLoraConfig(r=4))
    with pytest.raises(ValueError, match="cannot be merged"):
        getattr(model, method)()


def test_several_named_adapters(teacher):
    model = get_peft_model(teacher, NullspaceLoraConfig(r=4, layers_to_transform=[1, 3]))
    model.add_adapter("other", NullspaceLoraConfig(r=6, layers_to_transform=[2, 3], init_lora_weights="random"))
    disturb(model)
    first = model(PIXELS).last_hidden_state
    model.set_adapter("other")
    second = model(PIXELS).last_hidden_state
    assert not torch.allclose(first, second)
    assert {n for n, p in model.named_parameters() if p.requires_grad and ".default." in n} == set()
    model.delete_adapter("other")
    model.set_adapter("default")
    assert torch.equal(model(PIXELS).last_hidden_state, first)


def test_a_rank_for_each_layer(teacher):
    model = get_peft_model(teacher, NullspaceLoraConfig(r=8, layers_to_transform=[1, 3], rank_pattern={"layers.1": 2}))
    blocks = vision_backbone(model).blocks
    assert blocks[1].lora_A["default"].weight.shape == (2, 32)
    assert blocks[1].scaling["default"] == blocks[3].scaling["default"] == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_alpha": 0}, "lora_alpha must be positive, got 0"),
        ({"null_threshold": -0.1}, "null_threshold must not be negative"),
        ({"target_modules": "all-linear"}, "name blocks by layers_to_transform"),
    ],
)
def test_values_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        NullspaceLoraConfig(**options)


def test_half_precision_teacher_keeps_its_type_and_the_basis_its_precision(teacher):
    model = get_peft_model(teacher.to(torch.bfloat16), NullspaceLoraConfig(r=4))
    down = vision_backbone(model).blocks[3].lora_A["default"].weight
    assert down.dtype == torch.float32
    torch.testing.assert_close(down @ down.T, torch.eye(4), rtol=0, atol=1e-6)
    assert model(PIXELS.bfloat16()).last_hidden_state.dtype == torch.bfloat16


@pytest.fixture
def saved(tmp_path, teacher):
    teacher.save_pretrained(tmp_path / "teacher")
    base = AutoModel.from_pretrained(tmp_path / "teacher", add_pooling_layer=False).eval()
    model = disturb(get_peft_model(base, NullspaceLoraConfig(r=4, layers_to_transform=[1, 3])))
    model.save_pretrained(tmp_path / "adapter")
    save_file({"expected": model(PIXELS).last_hidden_state.detach(), "pixels": PIXELS}, tmp_path / "case.safetensors")
    return tmp_path


LOADERS = {
    "peft": "PeftModel.from_pretrained(AutoModel.from_pretrained(teacher), adapter)",
    "peft_lazy": "PeftModel.from_pretrained(AutoModel.from_pretrained(teacher), adapter, low_cpu_mem_usage=True)",
    "transformers": "AutoModel.from_pretrained(adapter)",
}


@pytest.mark.parametrize("loader", LOADERS)
def test_round_trip_in_a_new_process_is_identical(saved, loader):
    code = f"""
        import torch, singer_hf
        from peft import PeftModel
        from safetensors.torch import load_file
        from transformers import AutoModel
        torch.set_num_threads({torch.get_num_threads()})
        teacher, adapter = {str(saved / "teacher")!r}, {str(saved / "adapter")!r}
        case = load_file({str(saved / "case.safetensors")!r})
        model = {LOADERS[loader]}.eval()
        assert torch.equal(model(case["pixels"]).last_hidden_state, case["expected"])
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True)


def test_the_configuration_survives_saving(saved):
    config = PeftConfig.from_pretrained(saved / "adapter")
    assert isinstance(config, NullspaceLoraConfig)
    assert (config.r, config.layers_to_transform, config.hidden_size) == (4, [1, 3], 32)
    weights = load_file(saved / "adapter" / "adapter_model.safetensors")
    assert len(weights) == 4


def test_loading_into_a_teacher_of_another_width(saved):
    with pytest.raises(ValueError, match="for a model of width 32, but ViTModel has width 48"):
        PeftModel.from_pretrained(tiny_vit(hidden_size=48, num_hidden_layers=4), saved / "adapter")


def test_loading_into_another_model_class_says_where_the_blocks_are(saved):
    model = ViTForImageClassification(
        ViTConfig(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64)
    )
    with pytest.raises(ValueError, match=r"sits on \['layers.1', 'layers.3'\].*\['vit.layers.1', 'vit.layers.3'\]"):
        PeftModel.from_pretrained(model, saved / "adapter")
