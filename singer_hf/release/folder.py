"""A folder that is ready to be published: an export with pictures, ONNX and card."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import AutoModel, AutoModelForImageClassification

from ..evaluation.result import EvaluationResult, results_in
from .amend import amend
from .card import CardFacts, Picture, model_card
from .export import export_adapter, export_classifier, export_student
from .onnx import export_onnx
from .results import is_classifiers_own

logger = logging.getLogger(__name__)
CARD_FILE = "README.md"


@dataclass(frozen=True)
class ReleaseFolder:
    """What was written.

    Args:
        path: of the folder.
        card: in it.
        kept: sentences on what an existing card keeps although another was generated.
    """

    path: Path
    card: ModelCard
    kept: list[str]


def student_folder(
    folder: str | Path,
    source: str | Path,
    *,
    classifier: str | Path | None = None,
    onnx: bool = False,
    pictures: Sequence[tuple[Path, str]] = (),
    widget: Sequence[Path] = (),
    existing: ModelCard | None = None,
    **facts: Any,
) -> ReleaseFolder:
    """The student, or the classifier made of it, with its card.

    Args:
        folder: an empty or new one.
        source: folder of the run or checkpoint.
        classifier: folder of `examples/evaluate.py --export_classifier`.
        onnx: export to ONNX too.
        pictures: (file, caption) to show in the card.
        widget: example images.
        existing: card to amend.
        facts: of [`CardFacts`]. Of results that a classifier of this student had, those alone count that lie in
            `classifier`: another head on the same weights is another model.
    """
    folder = Path(folder)
    model = export_student(source, folder) if classifier is None else export_classifier(classifier, source, folder)
    exported = None
    if onnx:
        loader = AutoModelForImageClassification if model.is_classifier else AutoModel
        loaded = loader.from_pretrained(folder, **model.load_options)
        exported = export_onnx(loaded, folder, model.input_size, is_classifier=model.is_classifier)
    facts["results"] = _without_other_heads(facts.get("results", ()), classifier, model.fingerprint)
    facts = CardFacts(
        model=model,
        onnx=exported,
        pictures=_copied(pictures, folder / "images"),
        widget=_copied([(path, path.stem) for path in widget], folder / "examples"),
        **facts,
    )
    return _with_card(folder, facts, existing)


def adapter_folder(
    folder: str | Path, source: str | Path, *, existing: ModelCard | None = None, **facts: Any
) -> ReleaseFolder:
    """The adapter with its card; arguments as of [`student_folder`]."""
    described = CardFacts(adapter={}, **facts)
    config = export_adapter(source, folder, described.teacher[0])
    return _with_card(Path(folder), replace(described, adapter=config), existing)


def _with_card(folder: Path, facts: CardFacts, existing: ModelCard | None) -> ReleaseFolder:
    card, kept = model_card(facts), []
    if existing is not None:
        card, kept = amend(existing, card)
    card.save(folder / CARD_FILE)
    return ReleaseFolder(folder, card, kept)


def _without_other_heads(
    results: Sequence[EvaluationResult], classifier: str | Path | None, fingerprint: str
) -> list[EvaluationResult]:
    own = [] if classifier is None else results_in(classifier)
    others = [
        result
        for result in results
        if is_classifiers_own(result) and result.model.get("fingerprint") == fingerprint and result not in own
    ]
    if others:
        tasks = ", ".join(sorted({result.task["name"] for result in others}))
        logger.warning("Scores of another head on the same weights (%s) are left out of the card.", tasks)
    return [result for result in results if result not in others]


def _copied(files: Sequence[tuple[Path, str]], folder: Path) -> list[Picture]:
    """Copies files into a folder of the release, each under its own name."""
    copied = []
    for path, caption in files:
        folder.mkdir(exist_ok=True)
        name = "".join(character if character.isalnum() or character in "._-" else "_" for character in path.name)
        if (folder / name).exists():
            raise ValueError(f"Two pictures are called {name}: rename one of them.")
        shutil.copyfile(path, folder / name)
        copied.append(Picture(f"{folder.name}/{name}", caption))
    return copied
