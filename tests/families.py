"""Tiny random models of every supported family."""

import pytest
from transformers import (
    AutoModel,
    BeitConfig,
    BitImageProcessor,
    CLIPVisionConfig,
    DeiTConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    IJepaConfig,
    SiglipVisionConfig,
    TimmWrapperConfig,
    TimmWrapperModel,
    ViTConfig,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTModel,
    ViTMSNConfig,
)

SIZES = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}

CONFIGS = {
    "vit": (ViTConfig, {}),
    "vit_msn": (ViTMSNConfig, {}),
    "vit_mae": (ViTMAEConfig, {}),
    "deit": (DeiTConfig, {}),
    "ijepa": (IJepaConfig, {}),
    "beit": (BeitConfig, {"use_relative_position_bias": True}),
    "beit_shared_bias": (BeitConfig, {"use_shared_relative_position_bias": True}),
    "dinov2": (Dinov2Config, {"mlp_ratio": 2}),
    "dinov2_giant": (Dinov2Config, {"mlp_ratio": 2, "use_swiglu_ffn": True}),
    "dinov2_with_registers": (Dinov2WithRegistersConfig, {"num_register_tokens": 4}),
    "dinov3": (DINOv3ViTConfig, {"num_register_tokens": 4}),
    "dinov3_gated": (DINOv3ViTConfig, {"num_register_tokens": 4, "use_gated_mlp": True}),
    "clip": (CLIPVisionConfig, {}),
    "siglip": (SiglipVisionConfig, {}),
}

TIMM = {
    "timm_augreg": ("vit_tiny_patch16_224", {"patch_size": 8, "img_size": 32}),
    "timm_deit3": ("deit3_small_patch16_224", {"patch_size": 8, "img_size": 32}),
    "timm_dinov2_giant": ("vit_giant_patch14_dinov2", {"patch_size": 8, "img_size": 32}),
    "timm_registers": ("vit_small_patch14_reg4_dinov2", {"patch_size": 8, "img_size": 32}),
}

FAMILIES = [*CONFIGS, *TIMM]


def tiny_model(family: str, **sizes):
    """A tiny random model of a family; `sizes` override `SIZES`."""
    sizes = SIZES | sizes
    if family in TIMM:
        pytest.importorskip("timm")
        architecture, model_args = TIMM[family]
        model_args = model_args | {
            "embed_dim": sizes["hidden_size"],
            "depth": sizes["num_hidden_layers"],
            "num_heads": sizes["num_attention_heads"],
        }
        return TimmWrapperModel(TimmWrapperConfig(architecture=architecture, model_args=model_args))
    config_class, extra = CONFIGS[family]
    return AutoModel.from_config(config_class(**(sizes | extra)))


def tiny_vit(**sizes) -> ViTModel:
    sizes.setdefault("intermediate_size", 2 * sizes.get("hidden_size", 32))
    return ViTModel(ViTConfig(**(SIZES | sizes)), add_pooling_layer=False)


def vit_processor(size: int = 32, **kwargs) -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": size, "width": size}, **kwargs)


def crop_processor(size: int = 32, **kwargs) -> BitImageProcessor:
    return BitImageProcessor(
        size={"shortest_edge": size * 8 // 7}, crop_size={"height": size, "width": size}, **kwargs
    )
