"""ViT families of transformers. One class a way of embedding tokens and naming weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .contract import FeedForwardModules, VisionBackbone, plain_block, register_backbone


class _TransformersBackbone(VisionBackbone):
    norm_name = "layernorm_after"

    def embed(self, pixel_values: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return self.model.embeddings(pixel_values, **self._interpolation(pixel_values)), {}

    def _interpolation(self, pixel_values: Tensor) -> dict[str, bool]:
        # Asked for only where the size differs: at the model's own size both ways are the same function.
        return {"interpolate_pos_encoding": tuple(pixel_values.shape[-2:]) != self.image_size}

    def feed_forward_modules(self, layer: int) -> FeedForwardModules:
        block = plain_block(self.blocks[layer])
        norm, mlp = getattr(block, self.norm_name), block.mlp
        if hasattr(mlp, "fc1"):
            return FeedForwardModules(norm, mlp.fc1, mlp.fc2)
        if hasattr(mlp, "up_proj"):
            return FeedForwardModules(norm, mlp.up_proj, mlp.down_proj)
        # DINOv2's SwiGLU before transformers 5.23: gate and up projection packed into one
        return FeedForwardModules(norm, mlp.weights_in, mlp.weights_out, packed_half=1)


@register_backbone
class ViTBackbone(_TransformersBackbone):
    """ViT and ViT-MSN: one CLS token."""

    model_types = ("vit", "vit_msn")
    prefix = ("cls",)


@register_backbone
class DeiTBackbone(_TransformersBackbone):
    """DeiT: CLS and distillation token."""

    model_types = ("deit",)
    prefix = ("cls", "distillation")


@register_backbone
class IJepaBackbone(_TransformersBackbone):
    """I-JEPA: patches alone."""

    model_types = ("ijepa",)
    prefix = ()


@register_backbone
class ViTMAEBackbone(_TransformersBackbone):
    """ViT-MAE's encoder, with every patch kept in its place.

    Its own embedding masks 75 % of the patches, also in eval mode, and shuffles the rest, so tokens are embedded here
    from its parts.
    """

    model_types = ("vit_mae",)
    prefix = ("cls",)

    def embed(self, pixel_values: Tensor) -> tuple[Tensor, dict[str, Any]]:
        embeddings = self.model.embeddings
        patches = embeddings.patch_embeddings(pixel_values)
        if tuple(pixel_values.shape[-2:]) == self.image_size:
            positions = embeddings.position_embeddings
        else:
            positions = embeddings.interpolate_pos_encoding(patches, *pixel_values.shape[-2:])
        cls = (embeddings.cls_token + positions[:, :1]).expand(len(patches), -1, -1)
        return torch.cat([cls, patches + positions[:, 1:]], dim=1), {}


@register_backbone
class BeitBackbone(_TransformersBackbone):
    """BEiT, with its relative position biases, shared or per block."""

    model_types = ("beit",)
    prefix = ("cls",)

    def embed(self, pixel_values: Tensor) -> tuple[Tensor, dict[str, Any]]:
        interpolate = tuple(pixel_values.shape[-2:]) != self.image_size
        hidden = self.model.embeddings(pixel_values)
        bias = None
        if self.model.shared_position_bias is not None:
            grid = self.layout(pixel_values).grid
            bias = self.model.shared_position_bias(
                grid, interpolate_pos_encoding=interpolate, dim_size=hidden.shape[1]
            )
        resolution = tuple(pixel_values.shape[-2:])
        return hidden, {
            "attention_mask": bias,
            "interpolate_pos_encoding": interpolate,
            "resolution": resolution,
        }

    def layer_scale(self, layer: int) -> Tensor | None:
        scale = plain_block(self.blocks[layer]).lambda_2
        return scale if isinstance(scale, Tensor) else None


class _DinoBackbone(_TransformersBackbone):
    norm_name = "norm2"

    def _interpolation(self, pixel_values: Tensor) -> dict[str, bool]:
        return {}  # the embeddings always interpolate

    def layer_scale(self, layer: int) -> Tensor | None:
        return plain_block(self.blocks[layer]).layer_scale2.lambda1


@register_backbone
class Dinov2Backbone(_DinoBackbone):
    """DINOv2: CLS; LayerScale; SwiGLU in the giant model."""

    model_types = ("dinov2",)
    blocks_path = "encoder.layer"
    prefix = ("cls",)


@register_backbone
class Dinov2WithRegistersBackbone(_DinoBackbone):
    """DINOv2 with registers: CLS, then registers."""

    model_types = ("dinov2_with_registers",)
    blocks_path = "encoder.layer"

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("cls",) + ("register",) * self.model.config.num_register_tokens


@register_backbone
class Dinov3Backbone(_DinoBackbone):
    """DINOv3 ViT: CLS, registers, rotary position embeddings shared by all blocks."""

    model_types = ("dinov3_vit",)
    blocks_path = "model.layer"

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("cls",) + ("register",) * self.model.config.num_register_tokens

    def embed(self, pixel_values: Tensor) -> tuple[Tensor, dict[str, Any]]:
        positions = self.model.rope_embeddings(pixel_values)
        return self.model.embeddings(pixel_values), {"position_embeddings": positions}


class _TwoTowerVisionBackbone(_TransformersBackbone):
    blocks_path = "encoder.layers"
    norm_name = "layer_norm2"

    def embed(self, pixel_values: Tensor) -> tuple[Tensor, dict[str, Any]]:
        hidden = self.model.embeddings(pixel_values, **self._interpolation(pixel_values))
        return hidden, {"attention_mask": None}


@register_backbone
class ClipVisionBackbone(_TwoTowerVisionBackbone):
    """CLIP's vision model: CLS, and a LayerNorm in front of block 0."""

    model_types = ("clip_vision_model",)
    prefix = ("cls",)

    def embed(self, pixel_values: Tensor) -> tuple[Tensor, dict[str, Any]]:
        hidden, block_inputs = super().embed(pixel_values)
        return self.model.pre_layrnorm(hidden), block_inputs


@register_backbone
class SiglipVisionBackbone(_TwoTowerVisionBackbone):
    """SigLIP's vision model: patches alone."""

    model_types = ("siglip_vision_model",)
    prefix = ()
