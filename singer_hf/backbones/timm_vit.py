"""timm's Vision Transformers, through transformers' `TimmWrapperModel`: augreg ViT, DeiT-III."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .contract import FeedForwardModules, VisionBackbone, plain_block, register_backbone


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
        size = tuple(pixel_values.shape[-2:])
        if size != self.image_size and not self.model.dynamic_img_size:
            raise ValueError(
                f"This timm model was built for images of {self.image_size[0]}x{self.image_size[1]} pixels, got "
                f"{size[0]}x{size[1]}: load it by singer_hf.load_vision_model(..., image_size={size[0]})."
            )
        hidden = self.model._pos_embed(self.model.patch_embed(pixel_values))
        return self.model.norm_pre(self.model.patch_drop(hidden)), {}

    def feed_forward_modules(self, layer: int) -> FeedForwardModules:
        block = plain_block(self.blocks[layer])
        mlp = block.mlp
        if hasattr(mlp, "fc1_x"):  # SwiGLU with a projection for each branch
            return FeedForwardModules(block.norm2, mlp.fc1_x, mlp.fc2)
        if hasattr(mlp, "gate_last"):  # packed GLU: both branches in one projection
            return FeedForwardModules(block.norm2, mlp.fc1, mlp.fc2, packed_half=0 if mlp.gate_last else 1)
        return FeedForwardModules(block.norm2, mlp.fc1, mlp.fc2)

    def layer_scale(self, layer: int) -> Tensor | None:
        return getattr(plain_block(self.blocks[layer]).ls2, "gamma", None)
