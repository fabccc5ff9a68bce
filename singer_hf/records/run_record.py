"""`run.json`: what a run is and was, in one file beside its student, from which it can be started again.

    {"script": "distill.py",            the script that `--config run.json` starts it again with; null from Python
     "options": {...},                  options that differ from their defaults, as a --config file holds them
     "arguments": {...},                every training argument
     "objective": "singer",
     "teacher": {"name", "revision", "model_type", "parameters", "dtype", "adapter"},
     "student": {"name", "revision", "model_type", "parameters", "trainable_parameters"},
     "train_data", "eval_data": {"name", "split", "revision", "fingerprint", "images", "files"},
     "sessions": [{"started", "first_step", "last_step", "images", "seconds", "hardware", "versions",
                   "changed_options"}]}

`adapter` is the adapter's configuration, `null` where the objective trains none. `revision` is a commit of the Hub,
`null` for what is local. `images` of a stream is `null`, since it has no length; `images` of a session counts those
that were learnt from, repetitions included. `fingerprint` is `datasets`' own, which tells data apart on one machine;
of a stream that `load_images` opened it is a hash of revision and `files`: file -> bytes (`null` on the Hub, where the
revision settles them), beyond 1,000 files their common folder -> bytes. `files` of what is no stream is `null`. A
resumed run adds a session, as does each further call of `train()`; where it was given other options than the session
before, `changed_options` says which, option -> [before, now], `null` for the default. `seconds` is wall time from its
first step to its last. Losses step by step are in `trainer_state.json`. Tokens are left out, also those inside of
addresses: such an option is given again by hand.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import time
from dataclasses import fields, is_dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from ..checkpoints.sealed import SEAL, unsealed, write_sealed
from .provenance import versions
from .secrets import without_tokens

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
_FIELDS = {"script", "options", "arguments", "objective", "teacher", "student", "train_data", "eval_data"}
_FIELDS |= {"sessions", SEAL}
_OF_WRITING = ("output_dir", "logging_", "save_", "report_to", "run_name", "disable_tqdm", "push_to_hub", "hub_")
_NOT_OPTIONS = {"resume_from_checkpoint", "dry_run"}  # of how a run went on, not of what it is


class RunRecord:
    """The content of `run.json` while a run goes on.

    Args:
        script: name of the script that was started, `None` from Python.
        script_options: the script's own options, a dataclass instance.
    """

    def __init__(self, args: TrainingArguments, script: str | None = None, script_options: Any = None):
        options = given_options(args) | ({} if script_options is None else given_options(script_options))
        self.content: dict[str, Any] = {
            "script": script,
            "options": {name: value for name, value in options.items() if name not in _NOT_OPTIONS},
            "arguments": args.to_dict(),
        }
        self._batches_a_step = args.gradient_accumulation_steps * args.world_size
        self._images_a_step = 0
        self._device, self._processes = args.device, args.world_size
        self._earlier: list[dict[str, Any]] = []
        self._changed: dict[str, list[Any]] = {}
        self._session: dict[str, Any] | None = None
        self._start = 0.0

    def describe(self, objective: str, teacher: nn.Module, student: nn.Module, train: Any, evaluation: Any) -> None:
        """Takes down models and data: the plain datasets as they were given."""
        self.content |= {
            "objective": objective,
            "teacher": _model(teacher) | {"dtype": str(next(teacher.parameters()).dtype).removeprefix("torch.")},
            "student": _model(student)
            | {"trainable_parameters": sum(p.numel() for p in student.parameters() if p.requires_grad)},
            "train_data": _data(train),
            "eval_data": _data(evaluation),
        }
        self.content["teacher"]["adapter"] = _adapter(teacher)

    def resume(self, folder: str | os.PathLike) -> None:
        """Goes on with the sessions that a checkpoint's record holds; without one, with none.

        A warning names options that are others than there, whatever made them differ.
        """
        path = Path(folder, RUN_FILE)
        earlier = read_record(path) if path.exists() else {"sessions": [], "options": self.content["options"]}
        self._earlier = earlier["sessions"]
        self._changed = changed_options(earlier["options"], self.content["options"])
        self._session = None  # of an earlier call of train(), whose weights are replaced
        if self._changed:
            told = "; ".join(f"{name} was {old}, is {new}" for name, (old, new) in self._changed.items())
            logger.warning(
                "%s was trained with other options than this run has now (None: the default): %s. What the optimizer "
                "and the schedule saved, their rates too, stays as it was.",
                folder,
                told,
            )

    def begin(self, step: int, batch_size: int) -> None:
        """Starts a session at a number of steps done, with batches of `batch_size` images a process."""
        if self._session is not None and self._session["images"]:  # train() was called before, and not resumed since
            self._earlier = [*self._earlier, self._session]
        self._images_a_step = batch_size * self._batches_a_step
        self._start = time.perf_counter()
        self._session = {
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "first_step": step,
            "last_step": step,
            "images": 0,
            "seconds": 0.0,
            "hardware": _hardware(self._device, self._processes),
            "versions": versions(),
        }
        if self._changed:
            self._session["changed_options"], self._changed = self._changed, {}

    def reach(self, step: int) -> None:
        """Takes down that `step` steps are done now."""
        if self._session is not None:
            done = step - self._session["first_step"]
            self._session |= {
                "last_step": step,
                "images": done * self._images_a_step,
                "seconds": round(time.perf_counter() - self._start, 3),
            }

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `run.json` into a folder, created where missing."""
        sessions = [*self._earlier, *([] if self._session is None else [self._session])]
        content = json.loads(json.dumps(self.content | {"sessions": sessions}, default=str))
        write_sealed(Path(folder, RUN_FILE), without_tokens(content))


class RecordRun(TrainerCallback):
    """Keeps a [`RunRecord`] up to date and in `output_dir`; checkpoints get theirs from the trainer."""

    def __init__(self, record: RunRecord):
        self.record = record

    def on_train_begin(self, args, state, control, **kwargs):
        self.record.begin(state.global_step, state.train_batch_size)  # which auto_find_batch_size may have lowered
        if state.is_world_process_zero:
            self.record.save(args.output_dir)

    def on_step_end(self, args, state, control, **kwargs):
        self.record.reach(state.global_step)

    def on_train_end(self, args, state, control, **kwargs):
        self.record.reach(state.global_step)
        if state.is_world_process_zero:
            self.record.save(args.output_dir)


def changed_options(before: dict[str, Any], now: dict[str, Any]) -> dict[str, list[Any]]:
    """Options that differ, name -> [before, now], without those that say where and how often a run writes."""
    before, now = (json.loads(json.dumps(without_tokens(options), default=str)) for options in (before, now))
    names = [name for name in {**before, **now} if not name.startswith(_OF_WRITING)]
    return {name: [before.get(name), now.get(name)] for name in names if before.get(name) != now.get(name)}


def read_record(path: str | os.PathLike) -> dict[str, Any]:
    """The content of a `run.json`.

    Raises:
        ValueError: it is not one.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not is_record(content):
        raise ValueError(f"{path} is not the record of a run: expected an object with `options` and `sessions`.")
    if unknown := sorted(content.keys() - _FIELDS):
        raise ValueError(f"{path} has unknown fields: {', '.join(unknown)}")
    try:
        return unsealed(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def is_record(content: Any) -> bool:
    """Whether this is what a `run.json` holds."""
    return (
        isinstance(content, dict)
        and isinstance(content.get("options"), dict)
        and isinstance(content.get("sessions"), list)
        and all(isinstance(session, dict) for session in content["sessions"])
    )


def given_options(options: Any) -> dict[str, Any]:
    """Fields of a dataclass of options that differ from their defaults, without tokens; `output_dir` in any case."""
    assert is_dataclass(options)
    is_training = isinstance(options, TrainingArguments)
    # With its use_cpu: the arguments' own set-up of devices is the process's, and a second one would undo the first.
    same = {"output_dir": options.output_dir, "use_cpu": options.use_cpu} if is_training else {}
    default = type(options)(**same)
    values, defaults = (each.to_dict() if is_training else dict(vars(each)) for each in (options, default))
    if is_training:
        defaults["use_cpu"] = False
    names = [field.name for field in fields(options) if field.init]
    given = {name: values[name] for name in names if name == "output_dir" or values[name] != defaults[name]}
    return {name: value for name, value in given.items() if not name.endswith("_token")}


def _model(model: nn.Module) -> dict[str, Any]:
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    config = plain.config
    return {
        "name": getattr(config, "name_or_path", "") or None,
        "revision": getattr(config, "_commit_hash", None),
        "model_type": config.model_type,
        "parameters": sum(p.numel() for name, p in plain.named_parameters() if "lora_" not in name),
    }


def _adapter(teacher: nn.Module) -> dict[str, Any] | None:
    if not isinstance(teacher, PeftModel):
        return None
    config = teacher.peft_config[teacher.active_adapter].to_dict()
    return {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}


def _data(dataset: Any) -> dict[str, Any] | dict[str, dict] | None:
    if dataset is None:
        return None
    if isinstance(dataset, dict):  # several held-out sets by name
        return {name: _data(part) for name, part in dataset.items()}
    info = getattr(dataset, "info", None)
    checksums = getattr(info, "download_checksums", None) or {}
    commits = {match[1] for name in checksums if (match := re.match(r"hf://datasets/[^@]+@([0-9a-f]{40})/", name))}
    split = getattr(dataset, "split", None)
    revision = commits.pop() if len(commits) == 1 else None
    images = len(dataset) if hasattr(dataset, "__len__") else None
    files, fingerprint = None, getattr(dataset, "_fingerprint", None)
    if images is None and checksums:  # a stream; load_images notes its split's files alone
        folder = os.path.commonprefix(list(checksums)).rstrip("/").rpartition("/")[0] + "/"
        files = {name.removeprefix(folder): entry["num_bytes"] for name, entry in checksums.items()}
        content = json.dumps([revision, sorted(files.items())])
        fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]
    return {
        "name": getattr(info, "dataset_name", None),
        "split": None if split is None else str(split),
        "revision": revision,
        "fingerprint": fingerprint,
        "images": images,
        "files": files,
    }


def _hardware(device: torch.device, processes: int) -> dict[str, Any]:
    is_cuda = device.type == "cuda"
    return {
        "device": device.type,
        "name": torch.cuda.get_device_name(device) if is_cuda else platform.processor() or platform.machine(),
        "processes": processes,
        "machines": max(1, processes // int(os.environ.get("LOCAL_WORLD_SIZE", processes))),
        "threads": torch.get_num_threads(),
    }
