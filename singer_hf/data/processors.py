"""The input size of an image processor, and copies of one with another size or normalisation."""

from __future__ import annotations

import copy
import math
from typing import Any

import PIL.Image
from transformers import AutoImageProcessor, BitImageProcessor, PretrainedConfig
from transformers.utils import cached_file

from .normalization import PixelNormalization
from .transforms import Size, height_width


def find_processor(name_or_path: str, config: PretrainedConfig, **hub_kwargs: Any) -> Any:
    """The image processor in a model's Hub repository or folder, `None` where it holds none.

    Args:
        name_or_path: Hub id or folder.
        config: the model's.
        hub_kwargs: `revision`, `token`, `cache_dir`.
    """
    if config.model_type != "timm_wrapper":  # whose config.json is its processor's file too
        files = ("preprocessor_config.json", "processor_config.json")
        looked_for = (
            cached_file(name_or_path, file, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
            for file in files
        )
        if all(path is None for path in looked_for):
            return None
    return AutoImageProcessor.from_pretrained(name_or_path, **hub_kwargs)


def input_size(processor: Any) -> tuple[int, int]:
    """(height, width) that the model gets: `crop_size` if the processor crops, else `size`.

    Raises:
        ValueError: the processor states no such size.
    """
    timm_config = getattr(processor, "data_config", None)
    if timm_config is not None:
        return tuple(timm_config["input_size"][-2:])
    name = "crop_size" if getattr(processor, "do_center_crop", None) else "size"
    stated = dict(getattr(processor, name, None) or {})
    if stated.get("height") and stated.get("width"):
        return stated["height"], stated["width"]
    if stated.get("shortest_edge"):
        return stated["shortest_edge"], stated["shortest_edge"]
    raise ValueError(
        f"{type(processor).__name__} states the input size as {name} = {stated or None}; expected 'height' and "
        "'width', or 'shortest_edge'. Pass a processor with a fixed size."
    )


def processor_for(processor: Any, size: Size | None = None, normalization: PixelNormalization | None = None) -> Any:
    """Deep copy of an image processor that says what a model was trained with.

    Args:
        processor: any transformers image processor. It is not changed.
        size: side or (height, width) that the model gets. A processor that resizes and crops keeps the ratio of the
            two; a resize by shortest edge is made to cover the longer side of a size that is not square.
        normalization: rescaling, mean and std to put in.

    A `TimmWrapperImageProcessor` cannot be saved by itself: see [`processor_to_save`].
    """
    processor = copy.deepcopy(processor)
    if getattr(processor, "data_config", None) is not None:
        return _adjust_timm(processor, size, normalization)
    if size is not None:
        _set_size(processor, *height_width(size))
    if normalization is not None:
        processor.do_rescale, processor.rescale_factor = normalization.rescale != 1.0, normalization.rescale
        processor.do_normalize = True
        processor.image_mean, processor.image_std = list(normalization.image_mean), list(normalization.image_std)
    return processor


def processor_to_save(processor: Any, config: PretrainedConfig) -> Any:
    """The processor in the form in which it is saved with a model of `config`.

    A `TimmWrapperImageProcessor` has no file of its own: for a timm model its settings are written into `config`,
    from where `AutoImageProcessor` reads them; beside any other model its equal of transformers takes its place. Other
    processors are returned as they are.
    """
    settings = getattr(processor, "data_config", None)
    if settings is None:
        return processor
    if config.model_type == "timm_wrapper":
        config.pretrained_cfg = {**(getattr(config, "pretrained_cfg", None) or {}), **settings}
        return processor
    height, width = settings["input_size"][-2:]
    shortest_edge = math.floor(min(height, width) / settings["crop_pct"])  # as timm.data.transforms_imagenet_eval
    return BitImageProcessor(
        size={"shortest_edge": shortest_edge},
        crop_size={"height": height, "width": width},
        resample=PIL.Image.Resampling[settings["interpolation"].upper()],
        image_mean=list(settings["mean"]),
        image_std=list(settings["std"]),
    )


def _set_size(processor: Any, height: int, width: int) -> None:
    old_height, old_width = input_size(processor)
    resized = dict(processor.size or {})
    if getattr(processor, "do_center_crop", None):
        processor.crop_size = type(processor.crop_size)(height=height, width=width)
        if "shortest_edge" in resized:
            ratio = resized["shortest_edge"] / min(old_height, old_width)
            new = {"shortest_edge": round(ratio * max(height, width))}
        else:
            new = {
                "height": round(resized["height"] / old_height * height),
                "width": round(resized["width"] / old_width * width),
            }
    elif "shortest_edge" in resized and height == width:
        new = {"shortest_edge": height}
    else:
        new = {"height": height, "width": width}
    processor.size = type(processor.size)(**new)  # a dict, or transformers' SizeDict


def _adjust_timm(processor: Any, size: Size | None, normalization: PixelNormalization | None) -> Any:
    import timm  # optional dependency, there since the processor is

    if size is not None:
        processor.data_config["input_size"] = (3, *height_width(size))
    if normalization is not None:
        if abs(normalization.rescale * 255 - 1) > 1e-6:
            raise ValueError(f"timm's transforms rescale by 1/255; got a rescale of {normalization.rescale:g}.")
        processor.data_config["mean"] = normalization.image_mean
        processor.data_config["std"] = normalization.image_std
    processor.val_transforms = timm.data.create_transform(**processor.data_config, is_training=False)
    processor.train_transforms = timm.data.create_transform(**processor.data_config, is_training=True)
    return processor
