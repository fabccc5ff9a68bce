"""A refinement `F̂ = F + F Φ_down Φ_up` as two matrices, wherever it comes from, and the energy of its factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from ..adapter import NullspaceLoraConfig
from ..backbones import VisionBackbone, vision_backbone
from ..losses import full_precision
from ..nullspace import initial_basis


@dataclass(frozen=True)
class Refinement:
    """Of one layer's patch tokens.

    Args:
        down: Φ_down (d, r).
        up: Φ_up (r, d), the scale α/r included.
        fold_layer_norm: which surrogate it was made from, see [`linear_surrogate`]; its energy is that in this one's
            directions.
        init: how an adapter was initialised; `None` where it is none.
    """

    down: Tensor
    up: Tensor
    fold_layer_norm: bool = False
    init: str | None = None

    def __call__(self, patches: Tensor) -> Tensor:
        """F (…, d) -> F̂ (…, d), of patch tokens alone, in at least float32."""
        patches = full_precision(patches)
        return patches + patches @ self.down.to(patches) @ self.up.to(patches)

    def of_tokens(self, hidden: Tensor, num_prefix_tokens: int) -> Tensor:
        """F (B, N, d) -> F̂ (B, N, d) in F's precision; prefix tokens stay as they are."""
        refined = self(hidden[:, num_prefix_tokens:]).to(hidden.dtype)
        return torch.cat([hidden[:, :num_prefix_tokens], refined], dim=1)


def adapter_refinements(model: PeftModel) -> dict[int, Refinement]:
    """Layer -> refinement, of the active adapters in a teacher.

    Raises:
        ValueError: no nullspace adapter is in the model, or several made from different surrogates in one layer.
    """
    found = {}
    for layer, block in enumerate(vision_backbone(model).blocks):
        names = [name for name in getattr(block, "active_adapters", ()) if name in getattr(block, "lora_A", {})]
        if not hasattr(block, "refine") or not names:
            continue
        down = torch.cat([block.lora_A[name].weight.detach().T for name in names], dim=1)
        up = torch.cat([block.scaling[name] * block.lora_B[name].weight.detach().T for name in names], dim=0)
        configs = [model.peft_config[name] for name in names]
        if len({config.fold_layer_norm for config in configs}) > 1:
            raise ValueError(
                f"Adapters {names} of block {layer} were made from different surrogates (fold_layer_norm): activate "
                "one at a time."
            )
        init = ", ".join(dict.fromkeys(config.init_lora_weights for config in configs))
        found[layer] = Refinement(down.float(), up.float(), configs[0].fold_layer_norm, init)
    if not found:
        raise ValueError(
            f"{type(model).__name__} carries no active nullspace adapter: give one that NullspaceLoraConfig made."
        )
    return found


def check_refinements(name: str, refinements: Mapping[int, Refinement], backbone: VisionBackbone) -> None:
    """Raises ValueError, naming the refinement, where it does not fit the teacher or is not finite."""
    width, num_blocks = backbone.hidden_size, backbone.num_blocks
    for layer, refinement in refinements.items():
        if not 0 <= layer < num_blocks:
            raise ValueError(
                f"Refinement {name!r} is for block {layer}, but the teacher has {num_blocks} blocks: give an adapter "
                "of this teacher."
            )
        shapes = tuple(refinement.down.shape), tuple(refinement.up.shape)
        if (shapes[0][0], shapes[1][1]) != (width, width) or shapes[0][1] != shapes[1][0]:
            raise ValueError(
                f"Refinement {name!r}, block {layer}, has factors {shapes[0]} and {shapes[1]}; the teacher's width is "
                f"{width}: give an adapter of this teacher."
            )
        if not (torch.isfinite(refinement.down).all() and torch.isfinite(refinement.up).all()):
            raise ValueError(
                f"Refinement {name!r}, block {layer}, holds NaN or infinite values: its training diverged; take an "
                "earlier checkpoint."
            )


def initial_refinements(
    backbone: VisionBackbone, layers: list[int], rank: int, *, fold_layer_norm: bool = False
) -> dict[int, Refinement]:
    """What an adapter starts as: `Φ_down = N`, `Φ_up = Nᵀ`. `fold_layer_norm`: see [`linear_surrogate`]."""
    bases = {layer: initial_basis(backbone, layer, rank, fold_layer_norm=fold_layer_norm).float() for layer in layers}
    return {layer: Refinement(basis, basis.T, fold_layer_norm) for layer, basis in bases.items()}


def refined_model(model: nn.Module, refinements: Mapping[int, Refinement]) -> PeftModel:
    """The model with these refinements as a nullspace adapter, to be saved and shared as any.

    Args:
        model: a plain teacher, which is changed in place as `get_peft_model` does.
        refinements: of one rank.
    """
    rank = next(iter(refinements.values())).down.shape[1]
    peft = get_peft_model(
        model, NullspaceLoraConfig(r=rank, layers_to_transform=sorted(refinements), init_lora_weights="random")
    )
    blocks = vision_backbone(peft).blocks
    for layer, refinement in refinements.items():
        blocks[layer].set_factors("default", refinement.down, refinement.up)
    return peft


def energy_shares(factor: Tensor, left: Tensor, quarter: float = 0.25) -> dict[str, float]:
    """E_prob and E_safe of Φ_down (d, r) or Φ_upᵀ (d, r): the paper's Table 5a.

    The shares of ‖Φ‖²_F in the span of the first and of the last quarter of W̃'s left singular vectors. A random matrix
    has a quarter in each; a null basis has everything in the last.

    Args:
        factor: (d, r).
        left: U (d, d), columns by descending singular value.
    """
    energy = (left.T.double() @ factor.detach().cpu().double()).square().sum(dim=1)
    count = max(1, round(quarter * len(energy)))
    total = energy.sum()
    return {"prob": (energy[:count].sum() / total).item(), "safe": (energy[-count:].sum() / total).item()}
