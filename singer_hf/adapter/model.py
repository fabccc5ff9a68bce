"""The PEFT tuner that puts nullspace adapters into a ViT."""

from __future__ import annotations

from typing import Any

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora import LoraModel
from peft.utils import register_peft_method
from torch import nn

from ..backbones import blocks_prefix, check_layers, vision_backbone
from ..layers import default_teacher_layers
from ..nullspace import initial_basis
from .config import NullspaceLoraConfig
from .layer import _NO_MERGE, NullspaceLoraLayer
from .peft_type import NULLSPACE_LORA, RELEASED_NAME


class NullspaceLoraModel(LoraModel):
    """Tuner behind `get_peft_model(model, NullspaceLoraConfig(...))`. With it, the model is the *refined teacher*."""

    prefix = "lora_"
    tuner_layer_cls = NullspaceLoraLayer

    def _prepare_adapter_config(self, peft_config: NullspaceLoraConfig, model_config: dict) -> NullspaceLoraConfig:
        return peft_config  # blocks are resolved from the model, in _prepare_model

    def _prepare_model(self, peft_config: NullspaceLoraConfig, model: nn.Module) -> None:
        """Resolves layers and target modules in the model and checks that the adapter fits it."""
        backbone = vision_backbone(model)
        if peft_config.hidden_size not in (None, backbone.hidden_size):
            raise ValueError(
                f"This adapter is for a model of width {peft_config.hidden_size}, but {type(model).__name__} has "
                f"width {backbone.hidden_size}: load it into the teacher it was trained for "
                f"({peft_config.base_model_name_or_path or 'name not recorded'})."
            )
        ranks = [peft_config.r, *peft_config.rank_pattern.values()]
        if max(ranks) > backbone.hidden_size:
            raise ValueError(f"rank r={max(ranks)} is above the model's width {backbone.hidden_size}.")
        layers = peft_config.layers_to_transform or default_teacher_layers(backbone.num_blocks)
        layers = check_layers(layers, backbone.num_blocks, "layers_to_transform: layer")
        if peft_config.init_lora_weights == "reference" and len(layers) < 2:
            raise ValueError(
                f"init_lora_weights='reference' needs at least two layers, got {layers}: the released code's rule "
                "treats the last distilled layer apart."
            )
        path = blocks_prefix(model)
        targets = {f"{path}.{layer}" for layer in layers}
        if peft_config.target_modules not in (None, targets):
            raise ValueError(
                f"This adapter sits on {sorted(peft_config.target_modules)} of a {_trained_class(peft_config)}, but "
                f"in {type(model).__name__} these blocks are {sorted(targets)}: load it into the class it was made "
                "for."
            )
        peft_config.hidden_size = backbone.hidden_size
        peft_config.layers_to_transform = layers
        peft_config.target_modules = targets

    @staticmethod
    def _check_target_module_exists(peft_config: NullspaceLoraConfig, key: str) -> bool:
        # PEFT's own matching reads layers_to_transform as a filter over modules *inside* numbered layers.
        return key in peft_config.target_modules

    def _create_and_replace(self, lora_config: NullspaceLoraConfig, *args: Any, **kwargs: Any) -> None:
        lora_config._num_prefix_tokens = vision_backbone(self.model).num_prefix_tokens
        super()._create_and_replace(lora_config, *args, **kwargs)

    @staticmethod
    def _create_new_module(
        lora_config: NullspaceLoraConfig, adapter_name: str, target: nn.Module, **kwargs: Any
    ) -> NullspaceLoraLayer:
        return NullspaceLoraLayer(
            target,
            adapter_name,
            r=kwargs["r"],
            lora_alpha=kwargs["lora_alpha"],
            width=lora_config.hidden_size,
            num_prefix_tokens=lora_config._num_prefix_tokens,
            config=lora_config,
        )

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        initialize_adapter(model, self.peft_config[adapter_name], adapter_name)

    def _check_merge_allowed(self) -> None:
        raise ValueError(_NO_MERGE)


def _trained_class(config: NullspaceLoraConfig) -> str:
    return (config.auto_mapping or {}).get("base_model_class") or "model of another class"


def initialize_adapter(model: nn.Module, config: NullspaceLoraConfig, adapter_name: str = "default") -> None:
    """Sets every layer's `Φ_down = N`, `Φ_up = Nᵀ` by the config's initialisation.

    Called when an adapter is put into a model; weights on the meta device (about to be loaded) are left alone.
    """
    backbone = vision_backbone(model)
    layers = config.layers_to_transform
    reference = config.init_lora_weights == "reference"
    for layer in layers:
        adapted = backbone.blocks[layer]
        if adapted.lora_A[adapter_name].weight.is_meta:
            continue
        basis = initial_basis(
            backbone,
            layer,
            adapted.r[adapter_name],
            init=config.init_lora_weights,
            fold_layer_norm=config.fold_layer_norm,
            # The released code takes the own block for the last distilled layer, whichever block that is.
            own_block=reference and layer == layers[-1],
            null_threshold=config.null_threshold,
            seed=config.init_seed,
        )
        adapted.set_factors(adapter_name, basis, basis.T)


if NULLSPACE_LORA not in PEFT_TYPE_TO_TUNER_MAPPING:
    register_peft_method(
        name="nullspace_lora", config_cls=NullspaceLoraConfig, model_cls=NullspaceLoraModel, prefix="lora_"
    )
    PEFT_TYPE_TO_CONFIG_MAPPING[RELEASED_NAME] = NullspaceLoraConfig
