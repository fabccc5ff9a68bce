"""timm's Vision Transformers through transformers' `TimmWrapperModel`: augreg ViT, DeiT-III, … (the paper's teachers)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .contract import FeedForward, VisionBackbone, plain_block, register_backbone
from .transformers_vit import linear_weights


@register_backbone
class TimmBackbone(VisionBackbone):
    """Any timm model of the class `VisionTransformer`."""

    model_types = ("timm_wrapper",)
    blocks_path = "blocks"

    @classmethod
    def find_root(cls, model: nn.Module) -> tuple[str, nn.Module] | None:
        for name, module in model.named_modules():
            if all(hasattr(module, part) for part in ("patch_embed", "_pos_embed", "blocks", "embed_dim")):
                return name, module
        return None

    @property
    def hidden_size(self) -> int:
        return self.model.embed_dim

    @property
    def patch_size(self) -> tuple[int, int]:
        return tuple(self.model.patch_embed.patch_size)

    @property
    def image_size(self) -> tuple[int, int]:
        return tuple(self.model.patch_embed.img_size)

    @property
    def prefix(self) -> tuple[str, ...]:
        cls = () if self.model.cls_token is None else ("cls",)
        return cls + ("register",) * (self.model.num_prefix_tokens - len(cls))

    def embed(self, pixel_values: Tensor) -> tuple[Tensor, dict[str, Any]]:
        hidden = self.model._pos_embed(self.model.patch_embed(pixel_values))
        return self.model.norm_pre(self.model.patch_drop(hidden)), {}

    def feed_forward(self, layer: int) -> FeedForward:
        block = plain_block(self.blocks[layer])
        mlp = block.mlp
        layer_scale = getattr(block.ls2, "gamma", None)
        if hasattr(mlp, "fc1_x"):  # SwiGLU with a projection for each branch
            return linear_weights(mlp.fc1_x, mlp.fc2, block.norm2, layer_scale)
        weights = linear_weights(mlp.fc1, mlp.fc2, block.norm2, layer_scale)
        if not hasattr(mlp, "gate_last"):
            return weights
        first, second = weights.w_in.chunk(2, dim=1)  # packed GLU: both branches in one projection
        return FeedForward(
            first if mlp.gate_last else second,
            weights.w_out,
            weights.norm_scale,
            weights.norm_centers,
            layer_scale,
        )
