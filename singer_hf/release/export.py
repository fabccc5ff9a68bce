"""From a run's folder, or a checkpoint's, to folders that hold what a stranger needs and nothing else.

A student needs transformers alone: configuration, safetensors, image processor. Optimizer, random states, projectors
and arguments of the folder it comes from stay behind. An adapter is a PEFT repository of its own.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import Tensor
from transformers import AutoModelForImageClassification, PreTrainedModel

from ..adapter.peft_type import RELEASED_NAME
from ..backbones import load_vision_model, vision_backbone
from ..backbones.loading import without_pooler
from ..checkpoints.folder import ADAPTER_FOLDER
from ..checkpoints.manifest import verify_if_listed
from ..data import find_processor, input_size, processor_to_save
from ..evaluation.frozen import weights_fingerprint


class ExportError(ValueError):
    """A folder that holds no student, classifier or adapter that could be released."""


@dataclass(frozen=True)
class ExportedModel:
    """What a card says of a model that was exported.

    Args:
        model_class: such as "ViTModel".
        model_type: of its configuration, such as "vit".
        parameters: how many.
        blocks, width, patch_size, input_size, prefix: of the ViT; patch and input in pixels (height, width), `prefix`
            the roles of its prefix tokens.
        load_options: keyword arguments with which `AutoModel` builds no part that nobody trained.
        feature: where the distilled feature is: `hidden_states[-1]`; `None` where plain transformers lacks it.
        feature_shape: of that tensor for one image.
        final_norm: "none" where `last_hidden_state` is that feature; "plain" where it is its LayerNorm of scale 1 and
            shift 0, as it was initialised; "own" where a norm with weights of its own lies between.
        pooled_norm: `pooler_output` is the CLS token behind a norm that distillation does not train (CLIP).
        labels: of a classifier.
        fingerprint: of the student's weights, as evaluation results name it.
    """

    model_class: str
    model_type: str
    parameters: int
    blocks: int
    width: int
    patch_size: tuple[int, int]
    input_size: tuple[int, int]
    prefix: tuple[str, ...]
    load_options: dict[str, Any]
    feature: str | None
    feature_shape: tuple[int, ...]
    final_norm: str
    fingerprint: str
    pooled_norm: bool = False
    labels: tuple[str, ...] = field(default=())

    @property
    def is_classifier(self) -> bool:
        """Whether it has a trained head."""
        return bool(self.labels)


def export_student(run: str | Path, folder: str | Path) -> ExportedModel:
    """Writes a run's student: `AutoModel.from_pretrained(folder)`.

    Args:
        run: folder of a run, of a checkpoint, or of any model that [`load_vision_model`] opens.
        folder: an empty or new one.

    Raises:
        ExportError: weights or image processor are missing, or the folder is not empty.
    """
    folder = _new_folder(folder)
    student, processor = _load_student(run)
    described = _described(student, processor)
    if getattr(student.config, "id2label", None):
        student.config.num_labels = 2  # transformers' default, without names: a teacher's labels name nothing here
    processor_to_save(processor, student.config).save_pretrained(folder)
    student.save_pretrained(folder)
    return described


def export_classifier(classifier: str | Path, run: str | Path, folder: str | Path) -> ExportedModel:
    """Writes a student with its trained head: `AutoModelForImageClassification.from_pretrained(folder)`.

    Args:
        classifier: folder that `examples/evaluate.py --export_classifier` wrote.
        run: the student's, whose weights the classifier must have.
        folder: an empty or new one.

    Raises:
        ExportError: as [`export_student`]; a head that was not trained; another model's classifier.
    """
    folder = _new_folder(folder)
    student, _ = _load_student(run)
    model, info = AutoModelForImageClassification.from_pretrained(classifier, output_loading_info=True)
    if info["missing_keys"]:
        raise ExportError(
            f"{classifier} has no trained classifier: {', '.join(sorted(info['missing_keys'])[:5])} missing."
        )
    _check_same_backbone(student, model, run, classifier)
    processor = find_processor(str(classifier), model.config)
    if processor is None:
        raise ExportError(f"{classifier} holds no image processor.")
    described = _described(student, processor)
    labels = getattr(model.config, "label_names", None) or [
        model.config.id2label[i] for i in range(model.config.num_labels)
    ]
    processor_to_save(processor, model.config).save_pretrained(folder)
    model.save_pretrained(folder)
    return ExportedModel(
        **vars(described)
        | {
            "model_class": type(model).__name__,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "load_options": {},
            "labels": tuple(map(str, labels)),
        }
    )


def export_adapter(run: str | Path, folder: str | Path, teacher: str | None) -> dict[str, Any]:
    """Writes a run's adapter: `PeftModel.from_pretrained(teacher, folder)`, with singer_hf imported.

    Args:
        run: folder of a run or of a checkpoint.
        folder: an empty or new one.
        teacher: Hub id of the model it refines; `None` where that is not on the Hub.

    Returns:
        The adapter's configuration as it is written.

    Raises:
        ExportError: the run has no adapter.
        DamagedCheckpointError: a file is not what a manifest says.
    """
    folder, source = _new_folder(folder), Path(run, ADAPTER_FOLDER)
    for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME):
        if not (source / name).exists():
            raise ExportError(f"{run} has no adapter: {ADAPTER_FOLDER}/{name} is missing.")
    verify_if_listed(run)
    verify_if_listed(source)
    config = json.loads((source / CONFIG_NAME).read_text(encoding="utf-8"))
    # PEFT without singer_hf stops at this name with a KeyError that says nothing else.
    config |= {"base_model_name_or_path": teacher, "peft_type": RELEASED_NAME}
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.copyfile(source / SAFETENSORS_WEIGHTS_NAME, folder / SAFETENSORS_WEIGHTS_NAME)
    return config


def _new_folder(folder: str | Path) -> Path:
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ExportError(f"{folder} is not empty: an export goes into a folder of its own.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _load_student(run: str | Path) -> tuple[PreTrainedModel, Any]:
    model, info = load_vision_model(str(run), dtype="float32", output_loading_info=True)
    if info["missing_keys"]:
        raise ExportError(f"{run} lacks weights of its model: {', '.join(sorted(info['missing_keys'])[:5])}.")
    processor = find_processor(str(run), model.config)
    if processor is None:
        raise ExportError(f"{run} holds no image processor, without which nobody can use the model: save one there.")
    return model.eval(), processor


@torch.no_grad()
def _described(student: PreTrainedModel, processor: Any) -> ExportedModel:
    backbone = vision_backbone(student)
    height, width = input_size(processor)
    pixels = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    last = backbone.num_blocks - 1
    distilled = backbone.features(pixels, [last]).hidden[last]
    outputs = student(pixels, output_hidden_states=True)
    hidden = outputs.hidden_states[-1]
    # timm's wrapper gives patch tokens alone, as a map (B, d, rows, columns)
    expected = distilled
    if hidden.ndim == 4:
        expected = distilled[:, backbone.num_prefix_tokens :].transpose(1, 2).reshape(hidden.shape)
    given = hidden.shape == expected.shape and torch.allclose(hidden, expected, rtol=1e-4, atol=1e-4)
    return ExportedModel(
        model_class=type(student).__name__,
        model_type=student.config.model_type,
        parameters=sum(parameter.numel() for parameter in student.parameters()),
        blocks=backbone.num_blocks,
        width=backbone.hidden_size,
        patch_size=tuple(backbone.patch_size),
        input_size=(height, width),
        prefix=tuple(backbone.prefix),
        load_options=without_pooler(student.config),
        feature="hidden_states[-1]" if given else None,
        feature_shape=tuple(hidden.shape),
        final_norm=_final_norm(outputs.last_hidden_state, distilled, student),
        fingerprint=weights_fingerprint(student),
        pooled_norm=student.config.model_type == "clip_vision_model",
    )


def _final_norm(output: Tensor, distilled: Tensor, student: PreTrainedModel) -> str:
    if output.shape == distilled.shape:
        if torch.allclose(output, distilled, rtol=1e-4, atol=1e-4):
            return "none"
        epsilon = getattr(student.config, "layer_norm_eps", 1e-6)
        if torch.allclose(output, F.layer_norm(distilled, distilled.shape[-1:], eps=epsilon), rtol=1e-3, atol=1e-3):
            return "plain"
    return "own"


def _check_same_backbone(student: PreTrainedModel, model: PreTrainedModel, run: Any, classifier: Any) -> None:
    """Every weight of the student is in the classifier, whose names have a prefix more."""
    theirs = model.state_dict()
    for name, tensor in student.state_dict().items():
        found = [theirs[other] for other in theirs if other == name or other.endswith("." + name)]
        if not any(torch.equal(tensor, candidate.float()) for candidate in found):
            raise ExportError(
                f"{classifier} is no classifier of the student in {run}: they differ in {name}. Make it anew: "
                f"examples/evaluate.py --model {run} --export_classifier …"
            )
