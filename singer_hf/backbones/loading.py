"""Models by name: teachers and pretrained students from the Hub or a folder, students from scratch by size."""

from __future__ import annotations

import copy
import inspect
import os
from dataclasses import dataclass

from transformers import (
    AutoConfig,
    AutoModel,
    CLIPVisionModel,
    PretrainedConfig,
    PreTrainedModel,
    SiglipVisionModel,
)

from ..checkpoints.manifest import verify_if_listed

# A checkpoint of both towers: AutoModel would build the text tower too.
_VISION_TOWERS = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}

# Attention pooling behind the blocks, which no feature goes through. The configuration leaves it out: a student is
# saved without it, and AutoModel builds none.
_POOLING_HEADS = ("siglip", "siglip_vision_model")


@dataclass(frozen=True)
class StudentSize:
    """Width, blocks and heads of a named ViT."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int


# The field's names (Touvron et al. 2021, Table 1; timm's vit_{tiny,small,base}_patch16_224).
STUDENT_SIZES = {
    "tiny": StudentSize(192, 12, 3),
    "small": StudentSize(384, 12, 6),
    "base": StudentSize(768, 12, 12),
}


def load_vision_model(name_or_path: str, *, image_size: int | None = None, **kwargs) -> PreTrainedModel:
    """A vision model from the Hub or a local folder, without a pooler that no one trained.

    Args:
        name_or_path: Hub id (timm's ids too) or folder.
        image_size: side of the images it will get, where that may not be its own. Position embeddings are
            interpolated for them; a timm model has to be built for that.
        kwargs: passed to `from_pretrained` (`revision`, `token`, `dtype`, `cache_dir`, …).

    Raises:
        OSError: neither a folder nor a model that the Hub has, or gives.
        DamagedCheckpointError: a folder with a manifest, of which a file is damaged.
    """
    verify_if_listed(name_or_path)
    hub_kwargs = {k: kwargs[k] for k in ("revision", "token", "cache_dir", "local_files_only") if k in kwargs}
    try:
        config = AutoConfig.from_pretrained(name_or_path, **hub_kwargs)
    except OSError as error:
        if os.path.isdir(name_or_path):
            raise
        raise OSError(
            f"{name_or_path!r} is no folder here (working directory {os.getcwd()}), and as a model of the Hub it "
            f"could not be opened: {error}"
        ) from error
    if config.model_type in _POOLING_HEADS:
        kwargs.setdefault("vision_use_head", False)
    tower = _VISION_TOWERS.get(config.model_type)
    if tower is not None:
        return tower.from_pretrained(name_or_path, **kwargs)
    if config.model_type == "timm_wrapper" and image_size is not None:
        config.model_args = {**(config.model_args or {}), "dynamic_img_size": True}
        kwargs["config"] = config
    return AutoModel.from_pretrained(name_or_path, **without_pooler(config), **kwargs)


def build_student(
    teacher_config: PretrainedConfig, size: str | StudentSize, *, image_size: int | None = None
) -> PreTrainedModel:
    """A student from scratch: the teacher's family and patch size at another width and depth.

    Args:
        teacher_config: config of the teacher; everything but the sizes is inherited.
        size: a name in `STUDENT_SIZES` or a [`StudentSize`].
        image_size: side of the images its position embeddings are made for; default: the teacher's.

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(size, str):
        if size not in STUDENT_SIZES:
            raise ValueError(f"Unknown student size {size!r}: expected one of {', '.join(STUDENT_SIZES)}.")
        size = STUDENT_SIZES[size]
    config = copy.deepcopy(teacher_config)
    if config.model_type == "timm_wrapper":
        config.model_args = {
            **(config.model_args or {}),
            "embed_dim": size.hidden_size,
            "depth": size.num_hidden_layers,
            "num_heads": size.num_attention_heads,
        }
        if image_size is not None:
            config.model_args["img_size"] = image_size
    else:
        ratio = getattr(config, "intermediate_size", 0) / config.hidden_size
        config.hidden_size = size.hidden_size
        config.num_hidden_layers = size.num_hidden_layers
        config.num_attention_heads = size.num_attention_heads
        if image_size is not None:
            config.image_size = image_size
        if hasattr(config, "intermediate_size"):
            config.intermediate_size = round(ratio * size.hidden_size)
        if hasattr(config, "pooler_output_size"):
            config.pooler_output_size = size.hidden_size
        if config.model_type == "dinov3_vit":
            # Its training-mode jitter of rotary positions draws from the process's random state, which would make
            # a run depend on the number of processes.
            config.pos_embed_shift = config.pos_embed_jitter = config.pos_embed_rescale = None
        if config.model_type in _POOLING_HEADS:
            config.vision_use_head = False
    config.name_or_path = ""
    return AutoModel.from_config(config, **without_pooler(config))


def without_pooler(config: PretrainedConfig) -> dict[str, bool]:
    """Keyword arguments with which `AutoModel` builds no pooler, where it would build one that no one trained."""
    model_class = AutoModel._model_mapping.get(type(config), None)
    if model_class is None or "add_pooling_layer" not in inspect.signature(model_class.__init__).parameters:
        return {}
    return {"add_pooling_layer": False}
