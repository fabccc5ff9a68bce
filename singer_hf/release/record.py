"""What a run recorded of itself (`run.json`), as a card may show it: without tokens, and without anybody's folders."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..records.run_record import RUN_FILE, read_record
from ..records.secrets import without_tokens


class RecordError(ValueError):
    """A folder without the record of its run."""


# Of where, how often and to whom a run wrote, which says nothing of the student.
_NOT_RECIPE = re.compile(
    r"(output_dir|run_name|project|disable_tqdm|report_to|push_to_hub|config|debug|ddp_timeout|local_rank)$"
    r"|logging_|log_|save_|hub_|trackio_|dataloader_num_workers|dataloader_pin|dataloader_pers|dataloader_prefetch"
    r"|eval_strategy|eval_steps|per_device_eval|eval_accum|eval_delay|eval_on_start|label_column|knn_|max_eval_samples"
    r"|eval_dataset|eval_split|prediction_loss_only|skip_memory|do_(train|eval|predict)|resume_|restore_"
)


@dataclass(frozen=True)
class Run:
    """A run's record.

    Args:
        content: of its `run.json`.
    """

    content: Mapping[str, Any]

    @classmethod
    def load(cls, folder: str | Path) -> Run:
        """Raises RecordError where there is no `run.json`, or no run that has trained."""
        path = Path(folder, RUN_FILE)
        if not path.exists():
            raise RecordError(
                f"{folder} holds no {RUN_FILE}: a card is written from the record of a run, which the trainer keeps "
                "in its output folder and in every checkpoint."
            )
        try:
            return cls(read_record(path))
        except ValueError as error:
            raise RecordError(str(error)) from error

    @property
    def objective(self) -> str:
        """Name of the objective."""
        return self.content["objective"]

    def hub_model(self, role: str) -> tuple[str, str | None] | None:
        """(Hub id, commit) of the `teacher`, or of the model that the `student` began as; `None` for a local one.

        Only a model that came from the Hub has a commit, so a folder that looks like an id is not taken for one.
        """
        model = self.content.get(role) or {}
        name, revision = model.get("name"), model.get("revision")
        return (name, revision) if revision is not None and is_hub_id(name) else None

    def sources(self, teacher_id: str | None = None) -> dict[str, tuple[str, str | None]]:
        """The models that the student was made of, by role, as (Hub id or folder that is here, commit).

        Args:
            teacher_id: Hub id of a teacher that the run had from a folder.
        """
        found = {"teacher": self.hub_model("teacher"), "student's beginning": self.hub_model("student")}
        recorded = self.content["teacher"]["name"]
        if teacher_id is not None:
            found["teacher"] = (teacher_id, None)
        elif found["teacher"] is None and recorded and Path(recorded).is_dir():
            found["teacher"] = (recorded, None)
        return {role: model for role, model in found.items() if model is not None}

    @property
    def hub_dataset(self) -> str | None:
        """Hub id of the training images, where they came from there."""
        data, named = self.content.get("train_data") or {}, self.content["options"].get("dataset")
        return named if is_hub_id(named) and data.get("revision") else None

    def recipe(self) -> list[tuple[str, str]]:
        """Options that differ from their defaults, as (name, value)."""
        return list(_shown(self.content["options"]))

    def full_recipe(self) -> list[tuple[str, str]]:
        """Every training argument that is set, and the adapter's configuration, but for what `recipe` shows."""
        adapter = (self.content.get("teacher") or {}).get("adapter") or {}
        described = {f"adapter.{name}": value for name, value in adapter.items() if value not in (None, {}, [], False)}
        arguments = {name: value for name, value in self.content.get("arguments", {}).items() if value is not None}
        shown = dict(self.recipe())
        return [entry for entry in (*_shown(arguments), *_shown(described)) if entry[0] not in shown]

    @property
    def sessions(self) -> list[Mapping[str, Any]]:
        """Stretches of training, in order."""
        return [session for session in self.content["sessions"] if session.get("last_step", 0) > 0]

    @property
    def steps(self) -> int | None:
        """Optimizer steps done."""
        return self.sessions[-1]["last_step"] if self.sessions else None

    @property
    def images(self) -> int | None:
        """Images learnt from, repetitions included."""
        return sum(session["images"] for session in self.sessions) if self.sessions else None

    @property
    def seconds(self) -> float | None:
        """Wall time of all sessions."""
        return sum(session["seconds"] for session in self.sessions) if self.sessions else None

    def hardware(self) -> list[str]:
        """One line a kind of machine that was trained on."""
        return list(dict.fromkeys(_machine(session["hardware"]) for session in self.sessions))

    @property
    def versions(self) -> dict[str, str]:
        """Of the last session."""
        found = self.sessions[-1]["versions"] if self.sessions else {}
        return {name: str(value) for name, value in found.items() if value}


def is_hub_id(name: Any) -> bool:
    """Whether a name can be a repository's on the Hub, and is no file or folder here."""
    if not isinstance(name, str) or not name or name.endswith((".parquet", ".csv", ".json", ".jsonl", ".tar")):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()


def same_model(first: Any, second: Any) -> bool:
    """Whether two recorded names are of one model: equal, or paths to one folder."""
    if first is None or second is None:
        return False
    return first == second or Path(first).resolve() == Path(second).resolve()


def shown_name(name: Any, from_hub: bool | None = None) -> str:
    """A model's or dataset's name for strangers: the Hub id, or of a local path its last part.

    Args:
        name: as it was recorded.
        from_hub: whether it is an id; where that is not known, it is one if it can be.
    """
    if name is None:
        return "not named"
    if from_hub or (from_hub is None and is_hub_id(name)):
        return str(name)
    return re.split(r"[/\\]", str(name).rstrip("/\\"))[-1] or "/"


def _shown(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in without_tokens(options).items():
        if _NOT_RECIPE.match(name.removeprefix("adapter.")):
            continue
        value = _without_folders(value)
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _without_folders(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_without_folders(key): _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_folders(inner) for inner in value]
    return shown_name(value) if isinstance(value, str) and ("/" in value or "\\" in value) else value


def _machine(hardware: Mapping[str, Any]) -> str:
    processes = hardware.get("processes", 1)
    count = "one process" if processes == 1 else f"{processes} processes"
    machines = hardware.get("machines", 1)
    on = f" on {machines} machines" if machines > 1 else ""
    threads = f" of {hardware['threads']} threads" if hardware.get("device") == "cpu" and "threads" in hardware else ""
    return f"{hardware.get('name')} ({hardware.get('device')}), {count}{threads}{on}"
