"""Configuration of the nullspace adapter."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Optional, Union

from peft import LoraConfig

from ..nullspace import INITIALIZATIONS
from .peft_type import NULLSPACE_LORA

# Fields of LoraConfig that mean here what they mean there. Every other field must keep its default: dropout, rslora,
# DoRA, biases and the initialisations of weight matrices have no meaning for an adapter on a block's output.
_MEANINGFUL_FIELDS = {
    "r",
    "lora_alpha",
    "layers_to_transform",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "init_lora_weights",
    # PEFT's own bookkeeping
    "task_type",
    "inference_mode",
    "base_model_name_or_path",
    "revision",
    "auto_mapping",
    "peft_type",
    "peft_version",
    "runtime_config",
}


@dataclass
class NullspaceLoraConfig(LoraConfig):
    """A LoRA on the output of whole ViT blocks: `F̂_l = F_l + (α/r) F_l Φ_down Φ_up` on patch tokens (METHOD.md, 1).

    `lora_A.weight = Φ_downᵀ` (r, d) and `lora_B.weight = Φ_upᵀ` (d, r). Prefix tokens (CLS, registers) pass unchanged.
    Blocks are found in the model through [`singer_hf.vision_backbone`], so `target_modules` need not be given.

    Example:

    ```python
    teacher = get_peft_model(AutoModel.from_pretrained("google/vit-large-patch16-224"),
                             NullspaceLoraConfig(r=64, layers_to_transform=[17, 23]))
    ```

    Raises:
        ValueError: a rank below 1, a layer that is not a non-negative int, an unknown initialisation, or any field of
            `LoraConfig` that has no meaning here set to something else than its default. What depends on the model
            (a layer out of range, a rank above its width) is checked when the adapter is put into one.
    """

    r: int = field(default=64, metadata={"help": "Rank r of the refinement (64 in the paper); at most the width."})
    lora_alpha: Optional[int] = field(
        default=None,
        metadata={"help": "The refinement is scaled by lora_alpha / r. Default: r, which is the paper's formula."},
    )
    layers_to_transform: Optional[Union[list[int], int]] = field(
        default=None,
        metadata={
            "help": "Blocks whose output is refined, 0-based. Default: the block at three quarters of the depth and "
            "the last one, which is the paper's {17, 23} for ViT-L."
        },
    )
    init_lora_weights: str = field(
        default="nullspace",
        metadata={
            "help": "'nullspace': the r smallest left singular vectors of the next block's feed-forward surrogate "
            "(paper); 'random': random unit vectors (the paper's baseline); 'reference': the released code's rule.",
            "lora_variants": [],  # read by LoRA layers of PEFT >= 0.21
        },
    )
    fold_layer_norm: bool = field(
        default=False,
        metadata={
            "help": "Fold the LayerNorm's centring and scale and the LayerScale into the surrogate, so that it is "
            "the linear map that the residual stream really meets. The paper does not."
        },
    )
    null_threshold: float = field(
        default=0.05,
        metadata={
            "help": "init_lora_weights='reference' only: singular values below it count as null. 0.05 in the released "
            "code."
        },
    )
    init_seed: int = field(default=0, metadata={"help": "Seed of the random vectors of an initialisation."})
    hidden_size: Optional[int] = field(
        default=None,
        metadata={"help": "Width of the model the adapter is for. Filled in when it is put into a model."},
    )

    def __post_init__(self):
        _refuse_meaningless_fields(self)
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1:
            raise ValueError(f"r must be a positive integer, got {self.r!r}.")
        if self.init_lora_weights not in INITIALIZATIONS:
            raise ValueError(
                f"init_lora_weights={self.init_lora_weights!r} is not an initialisation of NullspaceLoraConfig: "
                f"expected one of {', '.join(INITIALIZATIONS)}."
            )
        if isinstance(self.layers_to_transform, int):
            self.layers_to_transform = [self.layers_to_transform]
        if self.layers_to_transform is not None:
            self.layers_to_transform = _checked_layers(self.layers_to_transform)
        if self.target_modules is not None and self.hidden_size is None:
            raise ValueError(
                f"target_modules={self.target_modules!r}: name blocks by layers_to_transform, from which "
                "target_modules is filled in."
            )
        if self.lora_alpha is None:
            self.lora_alpha = self.r
        if self.lora_alpha <= 0:
            raise ValueError(f"lora_alpha must be positive, got {self.lora_alpha!r}.")
        if self.null_threshold < 0:
            raise ValueError(f"null_threshold must not be negative, got {self.null_threshold!r}.")
        self.alpha_pattern = {
            **{key: rank * self.lora_alpha / self.r for key, rank in (self.rank_pattern or {}).items()},
            **(self.alpha_pattern or {}),
        }
        super().__post_init__()
        self.peft_type = NULLSPACE_LORA


def _checked_layers(layers: list[int]) -> list[int]:
    layers = list(layers)
    if not layers or any(isinstance(layer, bool) or not isinstance(layer, int) or layer < 0 for layer in layers):
        raise ValueError(f"layers_to_transform must be block indices from 0 on, got {layers}.")
    if len(set(layers)) != len(layers):
        raise ValueError(f"layers_to_transform names a block twice: {layers}.")
    return sorted(layers)


def _refuse_meaningless_fields(config: NullspaceLoraConfig) -> None:
    defaults = LoraConfig()
    for known in fields(LoraConfig):
        if known.name in _MEANINGFUL_FIELDS:
            continue
        value, default = getattr(config, known.name), getattr(defaults, known.name)
        if value != default and value:
            raise ValueError(
                f"{known.name}={value!r} has no meaning for NullspaceLoraConfig, whose adapter sits on the output of "
                f"whole blocks: leave it at its default ({default!r})."
            )
