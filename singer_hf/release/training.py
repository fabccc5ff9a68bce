"""What [`DistillationTrainer`] pushes: the student as it is released, with the adapter below it, in one commit."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from huggingface_hub import CommitInfo, HfApi, ModelCard

from ..checkpoints.folder import ADAPTER_FOLDER, OBJECTIVE_FILE
from ..records.run_record import RUN_FILE
from ..records.secrets import without_tokens
from .amend import amend, is_as_generated, read_card
from .destination import Destination, PublishError
from .export import export_adapter
from .folder import CARD_FILE, student_folder
from .license import License, license_of
from .publish import commit, files_without_tokens, publish
from .published import Published, check_ours, existing_card, look_up
from .record import Run

logger = logging.getLogger(__name__)


def training_release(source: str | Path, repo_id: str, **facts: Any) -> Path:
    """A temporary folder with what a run or a checkpoint releases.

    Beside the student: `adapter/` and `distillation.safetensors`, where `source` holds them.

    Args:
        source: folder of the run or checkpoint.
        repo_id: owner/name.
        facts: of [`CardFacts`]; `license` as an id.
    """
    source, folder = Path(source), Path(mkdtemp(prefix="singer_hf_release_"))
    try:
        run, facts = Run.load(source), card_facts(facts)
        teacher = run.hub_model("teacher")
        given = facts.pop("license", None)
        license = license_of(None if given is None else License(given, "as its author states"), run.sources())
        student_folder(folder, source, repo_id=repo_id, run=run, license=license, **facts)
        if (source / ADAPTER_FOLDER).exists():
            export_adapter(source, folder / ADAPTER_FOLDER, teacher[0] if teacher else None)
        if (source / OBJECTIVE_FILE).exists():
            shutil.copyfile(source / OBJECTIVE_FILE, folder / OBJECTIVE_FILE)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


_FACTS = ("license", "teacher_id", "results", "diagnosis", "emissions", "pictures", "widget", "datasets", "tags")
_FACTS += ("training_data", "evaluation_note", "limits_note", "classifier", "onnx")
# What Trainer's own create_model_card takes beside these, and why ours does not.
_NOT_OURS = {
    "language": "a vision model has none",
    "finetuned_from": "base_model is what the run recorded",
    "tasks": "pipeline_tag follows from the model",
    "dataset": "name the images in a sentence, training_data, or their Hub ids, datasets",
    "dataset_args": "results carry their own",
}


def card_facts(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the trainer's pushes as [`student_folder`] takes them; a text stands for a list of one.

    Raises:
        TypeError: one that says nothing here.
    """
    facts = {name: value for name, value in given.items() if value is not None}
    if "dataset_tags" in facts:  # Trainer's name of it
        facts.setdefault("datasets", facts.pop("dataset_tags"))
    for name in facts:
        if name in _NOT_OURS:
            raise TypeError(f"{name} cannot be said in a card of a distilled student: {_NOT_OURS[name]}.")
        if name not in _FACTS:
            raise TypeError(f"{name} is no fact of a card: expected some of {', '.join(_FACTS)}.")
    lists = {name: [facts[name]] for name in ("tags", "datasets") if isinstance(facts.get(name), str)}
    return facts | lists


class TrainingCard:
    """The card in a training's output folder, which is also the published one.

    Args:
        path: of the file, which need not exist.
    """

    def __init__(self, path: Path):
        self.path = path
        self._last: str | None = None  # as it was published last

    def amend(self, folder: Path, published: ModelCard | None = None) -> None:
        """Amends the card of a release's folder by this one, or by the published one where that has been edited.

        Raises:
            PublishError: both were edited.
        """
        base, generated = self._newer(published), ModelCard.load(folder / CARD_FILE)
        if base is not None:
            card, kept = amend(base, generated)
            for sentence in kept:
                logger.info("Card: %s.", sentence)
            card.save(folder / CARD_FILE)

    def take(self, folder: Path, is_published: bool) -> None:
        """Keeps the card of a release's folder."""
        shutil.copyfile(folder / CARD_FILE, self.path)
        if is_published:
            self._last = ModelCard.load(self.path).content

    def _newer(self, published: ModelCard | None) -> ModelCard | None:
        local = read_card(self.path) if self.path.exists() else None
        if local is None or published is None or local.content == published.content:
            return published if local is None else local
        if published.content == self._last or is_as_generated(published):
            return local
        if local.content == self._last or is_as_generated(local):
            return published
        raise PublishError(
            f"The published card and {self.path} were both edited by hand: put what you want to keep into one of "
            "them, and make the other the same or delete it."
        )


def check_repository(destination: Destination, api: HfApi) -> tuple[Published, ModelCard | None]:
    """What is published and its card. Raises PublishError where it is a model that this package did not publish."""
    published = look_up(destination, api)
    card = existing_card(destination, api, published)
    check_ours(destination.owned(api), published, card)
    return published, card


def publish_and_remove(folder: Path, destination: Destination, message: str, card: TrainingCard) -> CommitInfo:
    """Publishes a temporary folder, its card amended."""
    try:
        published, theirs = check_repository(destination, destination.api())
        card.amend(folder, theirs)
        done = publish(folder, destination, message=message, published=published)
        card.take(folder, is_published=True)
        return done
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish_checkpoint(checkpoint: str | Path, destination: Destination, name: str, message: str) -> CommitInfo:
    """Uploads a checkpoint to resume from, below `name`. Optimizer and random states in it are pickles.

    Raises:
        PublishError: one of its files holds a token; the Hub refuses.
    """
    api = destination.api()
    files = files_without_tokens(checkpoint, (api.token,))
    for record in (RUN_FILE, "training_args.json"):
        if record in files and _has_secrets(files[record]):
            raise PublishError(f"{files[record]} holds what is named a token or password: take it out.")
    published = look_up(destination, api)
    files = {f"{name}/{path}": file for path, file in files.items()}
    stale = [path for path in published.files if path.startswith(f"{name}/") and path not in files]
    return commit(files, stale, destination, api, message, published)


def _has_secrets(path: Path) -> bool:
    content = json.loads(path.read_text(encoding="utf-8"))
    return without_tokens(content) != content


def told(push: Callable[[], Any]) -> Any:
    """A push while training: whatever fails in it is told and does not end the training."""
    try:
        return push()
    except PublishError as error:
        logger.error("Not pushed: %s", error)
    except Exception as error:  # of the release: a full disk, results or records that do not fit, a library's bug
        logger.error("Not pushed: %s: %s", type(error).__name__, error, exc_info=error)
    return None
