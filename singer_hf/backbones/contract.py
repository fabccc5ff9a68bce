"""The one contract through which singer_hf sees a Vision Transformer.

Everything else in the package (objectives, adapter, diagnosis, evaluation) knows a model only as a
[`VisionBackbone`]: a list of blocks that map tokens to tokens, the feed-forward weights of a block, the meaning of the
tokens, and one forward pass that stops at the last block asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn


@dataclass(frozen=True)
class TokenLayout:
    """What the N tokens of a feature are: prefix tokens by role, then `grid` patches row by row.

    Args:
        prefix: roles in order, e.g. `("cls",)`, `("cls", "distillation")`, `("cls", "register", "register")` or `()`.
        grid: patches (rows, columns).
    """

    prefix: tuple[str, ...]
    grid: tuple[int, int]

    @property
    def num_prefix_tokens(self) -> int:
        return len(self.prefix)

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class FeedForward:
    """Weights of a block's feed-forward part, in METHOD's row-vector convention (y = act(norm(x) W_in) W_out λ).

    Args:
        w_in: (d, h). The linear (not the gating) branch where the feed-forward is gated.
        w_out: (h, d).
        norm_scale: (d,) scale γ of the norm in front of it, `None` where there is no such scale.
        norm_centers: whether that norm subtracts the mean over channels (LayerNorm does, RMSNorm does not).
        layer_scale: (d,) LayerScale λ behind it, `None` where there is none.
    """

    w_in: Tensor
    w_out: Tensor
    norm_scale: Tensor | None = None
    norm_centers: bool = True
    layer_scale: Tensor | None = None


@dataclass(frozen=True)
class FeedForwardModules:
    """The modules that a block's feed-forward part runs through, for hooks.

    Args:
        norm: in front of it; its input is the residual stream behind the attention.
        linear_in: holds W_in, and the gating branch too where both are packed into one.
        linear_out: holds W_out.
        packed_half: which half (0 or 1) of `linear_in`'s outputs is the linear branch, `None` where nothing is packed.
    """

    norm: nn.Module
    linear_in: nn.Module
    linear_out: nn.Module
    packed_half: int | None = None

    def linear_branch(self, values: Tensor, dim: int = -1) -> Tensor:
        """The part of `linear_in`'s outputs (or, with dim=0, of its weight) that is not a gate."""
        return values if self.packed_half is None else values.chunk(2, dim=dim)[self.packed_half]


@dataclass
class Features:
    """Outputs of chosen blocks of one forward pass.

    Args:
        hidden: block index -> (B, N, d), the residual stream behind that block, before any final norm.
        layout: what the N tokens are.
        block_inputs: what the blocks of this pass took besides tokens (rotary embeddings, attention bias); hand it to
            [`VisionBackbone.run_block`] to run a block of the same pass alone.
    """

    hidden: dict[int, Tensor]
    layout: TokenLayout
    block_inputs: dict[str, Any] = field(default_factory=dict)


class VisionBackbone(ABC):
    """A ViT seen through the contract. A view: it owns no parameters and never changes the model.

    A family subclasses it, names its `model_types` (of the config) and `blocks_path`, says how tokens are embedded and
    where a block keeps its feed-forward weights, and registers itself with [`register_backbone`].

    Args:
        model: the module that holds embeddings and blocks (not a head around it: see [`vision_backbone`]).
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    blocks_path: ClassVar[str] = "layers"

    def __init__(self, model: nn.Module):
        self.model = model

    @classmethod
    def find_root(cls, model: nn.Module) -> tuple[str, nn.Module] | None:
        """Name and module of the part of `model` that has this family's embeddings and blocks."""
        for name, module in model.named_modules():
            if hasattr(module, "embeddings") and _has_path(module, cls.blocks_path):
                return name, module
        return None

    # -- sizes ------------------------------------------------------------------------------------------------------
    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks in order. A block that carries a PEFT adapter is the wrapping layer."""
        return self.model.get_submodule(self.blocks_path)

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    @property
    def hidden_size(self) -> int:
        """Width d of the residual stream."""
        return self.model.config.hidden_size

    @property
    def patch_size(self) -> tuple[int, int]:
        """Pixels of a patch (rows, columns)."""
        size = self.model.config.patch_size
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def image_size(self) -> tuple[int, int]:
        """Pixels (rows, columns) that the position embeddings were made for."""
        size = self.model.config.image_size
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    @abstractmethod
    def prefix(self) -> tuple[str, ...]:
        """Roles of the prefix tokens, see [`TokenLayout`]."""

    @property
    def num_prefix_tokens(self) -> int:
        return len(self.prefix)

    def layout(self, pixel_values: Tensor) -> TokenLayout:
        """Token layout of an input (B, 3, H, W). Raises ValueError where H or W is less than one patch."""
        (height, width), (rows, columns) = pixel_values.shape[-2:], self.patch_size
        if height < rows or width < columns:
            raise ValueError(
                f"Images of {height}x{width} pixels are smaller than one {rows}x{columns} patch of this model: "
                "give its image processor a larger size."
            )
        return TokenLayout(self.prefix, (height // rows, width // columns))

    # -- running ----------------------------------------------------------------------------------------------------
    @abstractmethod
    def embed(self, pixel_values: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """(B, 3, H, W) normalised pixels -> tokens (B, N, d) in front of block 0, and the blocks' other inputs."""

    def run_block(
        self, layer: int, hidden: Tensor, block_inputs: dict[str, Any] | None = None, *, adapters: bool = True
    ) -> Tensor:
        """Runs block `layer` alone: (B, N, d) -> (B, N, d). `block_inputs` and `adapters` as in [`features`]."""
        block = self.blocks[layer]
        return self._call_block(block if adapters else plain_block(block), hidden, block_inputs)

    def features(self, pixel_values: Tensor, layers: Iterable[int], *, adapters: bool = True) -> Features:
        """Outputs of `layers` in one pass that stops at the last of them.

        Args:
            pixel_values: (B, 3, H, W), normalised as this model's image processor says.
            layers: block indices, 0-based.
            adapters: with `False` the blocks run without PEFT adapters that sit on whole blocks: the plain teacher.

        Raises:
            ValueError: a layer out of range.
        """
        wanted = check_layers(layers, self.num_blocks)
        layout = self.layout(pixel_values)
        hidden, block_inputs = self.embed(pixel_values)
        kept: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks):
            hidden = self._call_block(block if adapters else plain_block(block), hidden, block_inputs)
            if index in wanted:
                kept[index] = hidden
            if index == wanted[-1]:
                break
        return Features(kept, layout, block_inputs)

    def _call_block(self, block: nn.Module, hidden: Tensor, block_inputs: dict[str, Any] | None) -> Tensor:
        output = block(hidden, **(block_inputs or {}))
        return output[0] if isinstance(output, tuple) else output

    # -- weights ----------------------------------------------------------------------------------------------------
    @abstractmethod
    def feed_forward_modules(self, layer: int) -> FeedForwardModules:
        """Modules of the feed-forward part of block `layer`."""

    def layer_scale(self, layer: int) -> Tensor | None:
        """(d,) LayerScale λ behind the feed-forward part of block `layer`, `None` where there is none."""
        return None

    def feed_forward(self, layer: int) -> FeedForward:
        """Feed-forward weights of block `layer`, as views of the model's parameters."""
        modules = self.feed_forward_modules(layer)
        return FeedForward(
            w_in=modules.linear_branch(modules.linear_in.weight.detach(), dim=0).T,
            w_out=modules.linear_out.weight.detach().T,
            norm_scale=getattr(modules.norm, "weight", None),
            norm_centers=isinstance(modules.norm, nn.LayerNorm),
            layer_scale=self.layer_scale(layer),
        )


def plain_block(block: nn.Module) -> nn.Module:
    """The block itself, also where a PEFT layer wraps it."""
    return block.get_base_layer() if hasattr(block, "get_base_layer") else block


def check_layers(layers: Iterable[int], num_blocks: int, what: str = "layer") -> list[int]:
    """Sorted layers, or a ValueError that names the one that is out of range, repeated or missing."""
    layers = list(layers)
    if not layers:
        raise ValueError(f"No {what} was given: name at least one block between 0 and {num_blocks - 1}.")
    for layer in layers:
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < num_blocks:
            raise ValueError(
                f"{what} {layer!r} is out of range: the model has {num_blocks} blocks, 0 to {num_blocks - 1}."
            )
    if len(set(layers)) != len(layers):
        raise ValueError(f"{what}s {layers} name a block twice.")
    return sorted(layers)


def _has_path(module: nn.Module, path: str) -> bool:
    try:
        return isinstance(module.get_submodule(path), (nn.ModuleList, nn.Sequential))
    except AttributeError:
        return False


_FAMILIES: dict[str, type[VisionBackbone]] = {}


def register_backbone(family: type[VisionBackbone]) -> type[VisionBackbone]:
    """Class decorator: makes a family known for every `config.model_type` it names.

    Registering a model type again replaces the earlier family, so a user's own class wins over ours.
    """
    if not family.model_types:
        raise ValueError(f"{family.__name__}.model_types is empty: name the config.model_type it is for.")
    for model_type in family.model_types:
        _FAMILIES[model_type] = family
    return family


def supported_model_types() -> list[str]:
    """Every `config.model_type` that [`vision_backbone`] knows."""
    return sorted(_FAMILIES)


def vision_backbone(model: nn.Module) -> VisionBackbone:
    """The contract's view of a model: a plain ViT, one with a head around it, or a `PeftModel` of either.

    Raises:
        ValueError: the model's family is not known; the message lists those that are and how to register one.
    """
    return _resolve(model)[1]


def blocks_prefix(model: nn.Module) -> str:
    """Dotted path, within `model`, under which its blocks are numbered: `"layers"`, `"vit.layers"`, …"""
    name, backbone = _resolve(model)
    return f"{name}.{backbone.blocks_path}" if name else backbone.blocks_path


def _resolve(model: nn.Module) -> tuple[str, VisionBackbone]:
    if hasattr(model, "get_base_model"):  # a PeftModel
        model = model.get_base_model()
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    family = _FAMILIES.get(model_type)
    root = family.find_root(model) if family is not None else None
    if family is None or root is None:
        raise ValueError(
            f"{type(model).__name__} (config.model_type {model_type!r}) is not a ViT that singer_hf knows. Supported "
            f"model types: {', '.join(supported_model_types())} (for CLIP and SigLIP, the vision model alone). To add "
            "one, subclass singer_hf.VisionBackbone and decorate it with @singer_hf.register_backbone."
        )
    name, module = root
    return name, family(module)
