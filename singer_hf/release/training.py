"""What [`DistillationTrainer`] pushes: the student as it is released, with the adapter below it, in one commit."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from huggingface_hub import CommitInfo

from ..checkpoint import ADAPTER_FOLDER, OBJECTIVE_FILE
from .amend import read_card
from .export import export_adapter
from .folder import student_folder
from .license import License, inherited_license
from .publish import Destination, PublishError, errors_explained, publish
from .record import Run

logger = logging.getLogger(__name__)


def training_release(source: str | Path, repo_id: str, existing: str | Path | None = None, **facts: Any) -> Path:
    """A temporary folder with what a run or a checkpoint releases.

    Beside the student: `adapter/` and `distillation.safetensors`, where `source` holds them.

    Args:
        source: folder of the run or checkpoint.
        repo_id: owner/name.
        existing: card to amend, where there is that file.
        facts: of [`CardFacts`]; `license` as an id.
    """
    source, folder = Path(source), Path(mkdtemp(prefix="singer_hf_release_"))
    try:
        run = Run.load(source)
        card = read_card(existing) if existing is not None and Path(existing).exists() else None
        teacher = run.hub_model("teacher")
        given = facts.pop("license", None)
        license = inherited_license(run.sources()) if given is None else License(given, "as its author states")
        student_folder(folder, source, existing=card, repo_id=repo_id, run=run, license=license, **facts)
        if (source / ADAPTER_FOLDER).exists():
            export_adapter(source, folder / ADAPTER_FOLDER, teacher[0] if teacher else None)
        if (source / OBJECTIVE_FILE).exists():
            shutil.copyfile(source / OBJECTIVE_FILE, folder / OBJECTIVE_FILE)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def publish_and_remove(folder: Path, destination: Destination, message: str) -> CommitInfo:
    """Publishes a temporary folder."""
    try:
        return publish(folder, destination, message=message)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish_checkpoint(checkpoint: str | Path, destination: Destination, name: str, message: str) -> None:
    """Uploads a checkpoint to resume from, below `name`. Optimizer and random states in it are pickles."""
    api = destination.api()
    with errors_explained(destination, api):
        api.upload_folder(
            repo_id=destination.owned(api),
            folder_path=checkpoint,
            path_in_repo=name,
            commit_message=message,
            revision=destination.revision,
        )


def told(push: Callable[[], Any]) -> Any:
    """A push in the background: its failure is told and does not end the training."""
    try:
        return push()
    except PublishError as error:
        logger.error("Not pushed: %s", error)
        return None
