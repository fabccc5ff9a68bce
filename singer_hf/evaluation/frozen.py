"""A frozen backbone as linear evaluation sees it: images in, features of one block out."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from typing import Any

import torch
import xxhash
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoImageProcessor

from ..backbones import check_layers, load_vision_model, vision_backbone
from ..checkpoints.manifest import verify_if_listed
from ..data import PixelNormalization, find_processor, input_size, processor_for

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
POOLINGS = ("auto", "cls", "mean")

_NOT_COMPUTED_WITH = {
    *("_name_or_path", "transformers_version", "architectures", "dtype", "id2label", "label2id"),
    *("base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping"),  # of an adapter's
}
"""Entries of a config that change without the model's features changing."""


class FrozenBackbone:
    """A model in eval mode, without gradients, behind the features of one block.

    Features are those of METHOD.md section 5: the raw output of the block (the last, unless told otherwise), before
    any final norm. Images are resized by the task; the image processor gives input size and normalisation.

    Args:
        model: any model that [`vision_backbone`] knows, a `PeftModel` (a refined teacher) too. It is moved to the
            device, put into eval mode and frozen.
        processor: its image processor.
        name: shown in results.
        revision: commit of the Hub, `None` for a local folder.
        device: where it runs.
        precision: a name in `PRECISIONS`, or "auto": bfloat16 on a GPU that has it, else float32. Features are stored
            as they are computed.
        image_size: side of the square input in place of the processor's.
        layer: block whose output is the feature; default: the last.
        pooling: what stands for a whole image: "cls", "mean" of the patches, or "auto": CLS where there is one.

    Raises:
        ValueError: an unknown family, precision or pooling, a layer out of range, "cls" of a model without CLS.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        *,
        name: str,
        revision: str | None = None,
        device: torch.device | str = "cpu",
        precision: str = "auto",
        image_size: int | None = None,
        layer: int | None = None,
        pooling: str = "auto",
    ):
        self.device = torch.device(device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.backbone = vision_backbone(model)
        self.name, self.revision = name, revision
        size = None if image_size is None else (image_size, image_size)
        self.processor = processor_for(processor, size=size)
        self.normalization = PixelNormalization.from_image_processor(self.processor).to(self.device)
        self.dtype = _dtype(precision, self.device)
        self.layer = self.backbone.num_blocks - 1 if layer is None else layer
        check_layers([self.layer], self.backbone.num_blocks)
        self.pooling = _pooling(pooling, self.backbone.prefix)

    @classmethod
    def load(
        cls,
        name_or_path: str,
        *,
        revision: str | None = None,
        adapter: str | None = None,
        image_processor: str | None = None,
        image_size: int | None = None,
        **options: Any,
    ) -> FrozenBackbone:
        """From the Hub or a folder.

        Args:
            name_or_path: Hub id (timm's too) or folder.
            revision: branch, tag or commit.
            adapter: Hub id or folder of a PEFT adapter: the refined teacher.
            image_processor: Hub id or folder of another model's processor, for a model that comes without.
            image_size, options: as of the class.
        """
        model = load_vision_model(name_or_path, image_size=image_size, revision=revision, dtype="float32")
        config = model.config
        if image_processor is not None:
            processor = AutoImageProcessor.from_pretrained(image_processor)
        else:
            processor = find_processor(name_or_path, config, revision=revision)
        if processor is None:
            raise ValueError(
                f"{name_or_path} comes without an image processor, which says how its pixels are normalised: name one "
                "that fits with image_processor (a Hub id or folder)."
            )
        if adapter is not None:
            verify_if_listed(adapter)
            # low_cpu_mem_usage: without the initial basis, a decomposition a layer, that the loaded one would replace
            model = PeftModel.from_pretrained(model, adapter, low_cpu_mem_usage=True)
        return cls(
            model,
            processor,
            name=name_or_path if adapter is None else f"{name_or_path} + {adapter}",
            revision=getattr(config, "_commit_hash", None),
            image_size=image_size,
            **options,
        )

    @property
    def slug(self) -> str:
        """The name as a folder's name."""
        return re.sub(r"[^\w.+-]+", "--", self.name.strip("/.")) or "model"

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of its input in pixels."""
        return input_size(self.processor)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (rows, columns) of an input."""
        return self.backbone.layout(torch.empty(1, 3, *self.input_size, device="meta")).grid

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def fingerprint(self) -> str:
        """Hash of every weight and of the config: the same for the same model, wherever it comes from."""
        return weights_fingerprint(self.model)

    def description(self) -> dict[str, Any]:
        """What a result says of the model, and what the features of a given model depend on."""
        return {
            "layer": self.layer,
            "pooling": self.pooling,
            "precision": str(self.dtype).removeprefix("torch."),
            "input_size": list(self.input_size),
            "normalization": repr(self.normalization),
        }

    def tokens(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, 3, H, W) -> prefix tokens (B, N − n, d) and patch tokens (B, n, d), of `dtype`.

        Raises:
            FloatingPointError: a feature that is not finite.
        """
        autocast = nullcontext()
        if self.dtype != torch.float32:
            autocast = torch.autocast(self.device.type, dtype=self.dtype)
        with torch.inference_mode(), autocast:
            inputs = self.normalization(pixels.to(self.device, non_blocking=True))
            hidden = self.backbone.features(inputs, [self.layer]).hidden[self.layer].to(self.dtype)
        if not torch.isfinite(hidden).all():
            raise FloatingPointError(
                f"Features of {self.name} (block {self.layer}, {self.dtype}) are not finite: use float32, and look at "
                "the model's weights."
            )
        prefix = self.backbone.num_prefix_tokens
        return hidden[:, :prefix], hidden[:, prefix:]

    def pooled(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> (B, d): CLS, or the mean of the patches."""
        prefix, patches = self.tokens(pixels)
        if self.pooling == "cls":
            return prefix[:, self.backbone.prefix.index("cls")]
        return patches.float().mean(dim=1).to(patches.dtype)


def weights_fingerprint(model: nn.Module) -> str:
    """Hash of a model's class, config and weights."""
    digest = xxhash.xxh3_128(type(model).__name__.encode())
    adapters = getattr(model, "peft_config", {})
    configs = [_computed_with(config.to_dict()) for config in (model.config, *adapters.values())]
    active = model.active_adapters if adapters else []
    described = json.dumps(
        [configs, list(adapters), active],
        sort_keys=True,
        default=lambda value: sorted(value) if isinstance(value, set) else str(value),
    )
    digest.update(described.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _computed_with(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _NOT_COMPUTED_WITH}


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is not known: expected auto, {', '.join(PRECISIONS)}.")
    return PRECISIONS[precision]


def _pooling(pooling: str, prefix: tuple[str, ...]) -> str:
    if pooling not in POOLINGS:
        raise ValueError(f"pooling={pooling!r} is not known: expected one of {', '.join(POOLINGS)}.")
    if pooling == "auto":
        return "cls" if "cls" in prefix else "mean"
    if pooling == "cls" and "cls" not in prefix:
        raise ValueError("pooling='cls', but this model has no CLS token: use mean, or auto.")
    return pooling
