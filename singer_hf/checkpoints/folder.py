"""A checkpoint folder: the plain student, with what else a distillation run trains beside it.

    config.json, model.safetensors, preprocessor_config.json   the student: `AutoModel.from_pretrained(folder)`
    adapter/                                                   the teacher's adapter: `PeftModel.from_pretrained`
    distillation.safetensors                                   projectors and other modules of the objective
    manifest.json                                              size and SHA-256 of every file

The teacher's own weights are never written. Trainer adds optimizer, scheduler and random states,
`counters.json` what the run has counted.
"""

from __future__ import annotations

import logging
from pathlib import Path

from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from ..distiller import Distiller
from .manifest import CheckpointError, verify_if_listed, write_manifest

logger = logging.getLogger(__name__)

ADAPTER_FOLDER = "adapter"
OBJECTIVE_FILE = "distillation.safetensors"
_WRITTEN = ("config.json", "model*.safetensors*", OBJECTIVE_FILE, f"{ADAPTER_FOLDER}/*")


def save_distillation(
    distiller: Distiller,
    folder: str | Path,
    state_dict: dict[str, Tensor] | None = None,
    *,
    manifest: bool = True,
) -> None:
    """Writes student, adapter and objective.

    Args:
        distiller: what to save.
        folder: created where missing.
        state_dict: the distiller's full state, where it was gathered from shards; its own where `None`.
        manifest: False where more files follow, behind which it is to be written, since it says that all are there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = distiller.state_dict() if state_dict is None else state_dict
    distiller.student.save_pretrained(folder, state_dict=_part(state, "student."))
    objective = {name: tensor.contiguous() for name, tensor in _part(state, "objective.").items()}
    save_file(objective, folder / OBJECTIVE_FILE, metadata={"format": "pt", "objective": distiller.objective.name})
    if distiller.objective.uses_adapter:
        _save_adapter(distiller.teacher, folder / ADAPTER_FOLDER, _part(state, "teacher."))
        write_manifest(folder / ADAPTER_FOLDER)  # its own: an adapter is shared without the rest
    if manifest:
        write_manifest(folder, [file for pattern in _WRITTEN for file in folder.glob(pattern)])


def load_distillation(distiller: Distiller, folder: str | Path) -> None:
    """Loads a folder of [`save_distillation`] into a distiller of the same make, every tensor of it.

    Raises:
        CheckpointError: a file is missing or damaged, or tensors are missing or of another shape.
    """
    folder = Path(folder)
    path = _existing(folder / OBJECTIVE_FILE)
    if not verify_if_listed(folder):
        logger.warning("%s has no manifest.json, so whether its files are damaged cannot be told.", folder)
    _load_student(distiller.student, folder)
    try:
        distiller.objective.load_state_dict(load_file(path), strict=True)
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{path} does not fit objective {distiller.objective.name!r}: {error}") from error
    if distiller.objective.uses_adapter:
        _load_adapter(distiller.teacher, _existing(folder / ADAPTER_FOLDER))


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _existing(path: Path) -> Path:
    if not path.parent.exists():
        raise CheckpointError(f"There is no checkpoint folder {path.parent}.")
    if not path.exists():
        raise CheckpointError(f"{path.parent} is not a distillation checkpoint: {path.name} is missing.")
    return path


def _save_adapter(teacher: PeftModel, folder: Path, state: dict[str, Tensor]) -> None:
    name = teacher.active_adapter
    teacher.save_pretrained(folder, selected_adapters=[name], state_dict=state, save_embedding_layers=False)
    if name != "default":  # which PEFT writes into a folder of that name
        for path in (folder / name).iterdir():
            path.replace(folder / path.name)
        (folder / name).rmdir()


def _load_student(student: PreTrainedModel, folder: Path) -> None:
    # Through from_pretrained and not load_state_dict: transformers saves some models under older names of their
    # weights, which only from_pretrained maps back (transformers 5.23; Trainer's own resume then skips them silently).
    _existing(folder / "config.json")
    no_pooler = {"add_pooling_layer": False} if getattr(student, "pooler", student) is None else {}
    try:
        loaded, info = type(student).from_pretrained(
            folder, dtype=student.dtype, output_loading_info=True, use_safetensors=True, **no_pooler
        )
    except (RuntimeError, OSError, ValueError, SafetensorError) as error:  # sizes, a missing or a damaged file
        raise CheckpointError(f"The student in {folder} cannot be loaded: {error}") from error
    wanted = student.state_dict()
    missing = sorted(set(info["missing_keys"]) & set(wanted))
    if missing:
        raise CheckpointError(f"{folder} lacks weights of the student: {', '.join(missing[:5])} ({len(missing)}).")
    state = loaded.state_dict()
    try:
        student.load_state_dict({name: state[name] for name in wanted}, strict=True)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"The student in {folder} is of another make than this run's: {error}") from error


def _load_adapter(teacher: PeftModel, folder: Path) -> None:
    try:
        weights = load_peft_weights(str(_existing(folder / SAFETENSORS_WEIGHTS_NAME).parent), device="cpu")
        result = set_peft_model_state_dict(teacher, weights, adapter_name=teacher.active_adapter)
    except (RuntimeError, OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"The adapter in {folder} does not fit this run's teacher: {error}") from error
    missing = [name for name in result.missing_keys if "lora_" in name and f".{teacher.active_adapter}." in name]
    if missing or result.unexpected_keys:
        raise CheckpointError(
            f"The adapter in {folder} sits on other layers than this run's: missing {missing}, "
            f"unexpected {result.unexpected_keys}."
        )
