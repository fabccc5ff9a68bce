"""The adapter layer: a block with a low-rank refinement of its patch tokens."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.utils.output_capturing import install_output_capuring_hook


class NullspaceLoraLayer(nn.Module, LoraLayer):
    """Wraps a block: `F̂ = F + (α/r) F Φ_down Φ_up` on the patch tokens of its output, (B, N, d) -> (B, N, d).

    Args:
        base_layer: the block.
        adapter_name: name of the first adapter.
        r: its rank.
        lora_alpha: its α.
        width: d.
        num_prefix_tokens: tokens in front of the patches, left as they are.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        *,
        r: int,
        lora_alpha: float,
        width: int,
        num_prefix_tokens: int,
        config: Any = None,
        **kwargs: Any,
    ) -> None:
        nn.Module.__init__(self)
        self._width = width
        LoraLayer.__init__(self, base_layer, **kwargs)
        self.num_prefix_tokens = num_prefix_tokens
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, lora_alpha, config=config)
        # transformers collects hidden states by hooks on blocks. This layer runs its block without the block's hooks
        # and carries the hook itself, so that `hidden_states` show the refined tokens. A public name for this hook
        # in transformers (still private in 5.23, and misspelt) would remove the import.
        install_output_capuring_hook(self, "hidden_states", 0)

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        return self._width, self._width

    def update_layer(self, adapter_name: str, r: int, lora_alpha: float, config: Any = None, **kwargs: Any) -> None:
        """Adds adapter `adapter_name` with both factors zero; the model's `initialize_adapter` fills them."""
        self.r[adapter_name] = r
        self.lora_alpha[adapter_name] = lora_alpha
        self.scaling[adapter_name] = lora_alpha / r
        self.lora_dropout[adapter_name] = nn.Identity()
        self.use_rslora[adapter_name] = self.use_dora[adapter_name] = self.lora_bias[adapter_name] = False
        self.lora_A[adapter_name] = nn.Linear(self.in_features, r, bias=False)
        self.lora_B[adapter_name] = nn.Linear(r, self.out_features, bias=False)
        nn.init.zeros_(self.lora_A[adapter_name].weight)
        nn.init.zeros_(self.lora_B[adapter_name].weight)
        weight = next(self.get_base_layer().parameters())
        if not self.lora_A[adapter_name].weight.is_meta:
            # At least float32, also beside a half-precision block: an orthonormal basis rounded to bf16 is none.
            dtype = torch.promote_types(weight.dtype, torch.float32) if weight.is_floating_point() else torch.float32
            for factor in (self.lora_A[adapter_name], self.lora_B[adapter_name]):
                factor.to(device=weight.device, dtype=dtype)
        self.set_adapter(self.active_adapters, inference_mode=getattr(config, "inference_mode", False))

    def set_factors(self, adapter_name: str, down: Tensor, up: Tensor) -> None:
        """Copies `Φ_down` (d, r) and `Φ_up` (r, d) into an adapter."""
        with torch.no_grad():
            self.lora_A[adapter_name].weight.copy_(down.T)
            self.lora_B[adapter_name].weight.copy_(up.T)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """(α/r) (Φ_down Φ_up)ᵀ, (d, d): what the adapter adds to a token as a column vector."""
        return self.scaling[adapter] * self.lora_B[adapter].weight @ self.lora_A[adapter].weight

    def refine(self, hidden: Tensor) -> Tensor:
        """F (B, N, d) -> F̂ (B, N, d) by the active adapters; with several, their refinements add."""
        prefix, patches = hidden[:, : self.num_prefix_tokens], hidden[:, self.num_prefix_tokens :]
        refined = patches
        for name in self.active_adapters:
            if name in self.lora_A:
                down, up = self.lora_A[name], self.lora_B[name]
                refined = refined + self.scaling[name] * up(down(patches.to(down.weight.dtype))).to(patches.dtype)
        return torch.cat([prefix, refined], dim=1)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if kwargs.pop("adapter_names", None) is not None:
            raise ValueError("NullspaceLoraConfig does not support a different adapter for every sample of a batch.")
        # Not self.base_layer(...): see the note on hooks in __init__.
        output = self.base_layer.forward(hidden, *args, **kwargs)
        if self.disable_adapters:
            return output
        if isinstance(output, tuple):
            return (self.refine(output[0]), *output[1:])
        return self.refine(output)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise ValueError(_NO_MERGE)

    def unmerge(self) -> None:
        raise ValueError(_NO_MERGE)


_NO_MERGE = (
    "A nullspace adapter cannot be merged: it refines the patch tokens of a block's output and leaves prefix tokens "
    "alone, which no weight of the block can do. Keep it as an adapter, or call unload() to get the plain model back."
)
