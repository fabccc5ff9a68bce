"""A card that exists is amended: what was written or changed by hand stays.

Generated sections lie between markers, and a marker holds the hash of its section as it was generated; a section whose
text has another hash was edited by hand, and is kept. A section whose markers were taken out was removed by hand, and
stays away. Metadata is merged three ways: against what was generated last time, which a comment keeps.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

_SECTION = re.compile(
    r"<!-- singer_hf begin (?P<name>[\w-]+)(?: (?P<hash>[0-9a-f]{12}))? -->\n(?P<text>.*?)"
    r"<!-- singer_hf end (?P=name) -->",
    re.DOTALL,
)
_METADATA = re.compile(r"\n*<!-- singer_hf metadata (?P<json>.*?) -->\n?", re.DOTALL)


def read_card(path: str | Path) -> ModelCard:
    """The card in a file.

    Raises:
        ValueError: it is none, or its metadata cannot be read.
    """
    try:
        return ModelCard.load(Path(path))
    except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        # Of the library, which takes some of the metadata for granted.
        raise ValueError(f"{path} is no card that can be amended: {type(error).__name__}: {error}") from error


def sealed(card: ModelCard) -> ModelCard:
    """A generated card with the hashes and the metadata by which the next amendment tells what is generated."""
    text = _SECTION.sub(lambda found: _section(found["name"], found["text"]), card.text)
    return _with_body(card.data.to_dict(), text.rstrip() + "\n\n" + _comment(card.data.to_dict()))


def is_generated_card(card: ModelCard) -> bool:
    """Whether this package wrote it, or wrote into it."""
    return _last_generated(card.text) is not None


def is_as_generated(card: ModelCard) -> bool:
    """Whether nobody has edited it since."""
    if _last_generated(card.text) != json.loads(json.dumps(card.data.to_dict(), default=str)):
        return False
    rest = _METADATA.sub("", _SECTION.sub("", card.text))
    return not rest.strip() and all(f["hash"] == _hash(f["text"]) for f in _SECTION.finditer(card.text))


def amend(existing: ModelCard, generated: ModelCard) -> tuple[ModelCard, list[str]]:
    """The existing card with the generated one's sections and metadata.

    Args:
        existing: as it was found; it may have been written by hand from beginning to end.
        generated: a [`sealed`] card.

    Returns:
        The new card, and a sentence for each thing of it that was kept although another was generated.

    Raises:
        ValueError: half a marker is left of a section or of the metadata, or all the metadata is gone, which is damage
            sooner than somebody's wish.
    """
    existing = ModelCard(existing.content.replace("\r\n", "\n"))  # of an editor that changed line ends
    _check_whole(existing)
    kept: list[str] = []
    new = {found["name"]: found["text"] for found in _SECTION.finditer(generated.text)}
    before = _last_generated(existing.text)
    data = _merged(before, existing.data.to_dict(), generated.data.to_dict(), kept)
    text = _METADATA.sub("\n", existing.text)
    if before is None and not _SECTION.search(text):
        # Nothing here is generated: everything generated goes behind it.
        text = text.rstrip() + "\n\n" + _METADATA.sub("\n", generated.text).strip()

    def replaced(found: re.Match) -> str:
        name, old = found["name"], found["text"]
        if name not in new:
            return found[0]
        if found["hash"] is not None and found["hash"] != _hash(old):
            kept.append(f"section {name!r} was edited by hand and is kept; without its markers' hash it is replaced")
            return found[0]
        return _section(name, new[name])

    text = _SECTION.sub(replaced, text)
    comment = _METADATA.search(generated.text)
    return _with_body(data, text.rstrip() + "\n\n" + comment[0].strip()), kept


def _check_whole(card: ModelCard) -> None:
    rest = _METADATA.sub("", _SECTION.sub("", card.text))
    if found := re.search(r".*singer_hf (begin|end|metadata)\b.*", rest):
        raise ValueError(
            f"The card is damaged: {found[0][:80]!r} is half of a pair of markers, or cut. Take the line out to keep "
            "what stands there as your own text."
        )
    if _last_generated(card.text) and not card.data.to_dict():
        raise ValueError(
            "The card is damaged: its metadata, which stood between two lines of --- at its head, cannot be found. "
            "Put it back, or take the comment 'singer_hf metadata' out to have it generated anew."
        )


def _section(name: str, text: str) -> str:
    return f"<!-- singer_hf begin {name} {_hash(text)} -->\n{text}<!-- singer_hf end {name} -->"


def _hash(text: str) -> str:
    # Of the words: an editor that changes line ends or blank space at their end has edited nothing.
    lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


def _comment(data: Mapping[str, Any]) -> str:
    # A comment of HTML may hold neither "--" nor ">", as the text of a name could.
    text = json.dumps(data, ensure_ascii=True).replace("-", "\\u002d").replace(">", "\\u003e").replace("<", "\\u003c")
    return f"<!-- singer_hf metadata {text} -->\n"


def _last_generated(text: str) -> dict[str, Any] | None:
    found = _METADATA.search(text)
    if found is None:
        return None
    try:
        data = json.loads(found["json"])
    except json.JSONDecodeError:
        return None
    return data if isinstance(data, dict) else None


def _merged(
    before: Mapping[str, Any] | None, theirs: Mapping[str, Any], ours: Mapping[str, Any], kept: list[str]
) -> dict[str, Any]:
    """Metadata: what a person set or removed wins, everything else follows what is generated."""
    first, before = before is None, before or {}
    result = {}
    for key in dict.fromkeys((*theirs, *ours)):
        if key not in theirs:
            if key not in before:  # else it was removed by hand
                result[key] = ours[key]
        elif key == "model-index":
            result[key] = _merged_index(before.get(key), theirs[key], ours.get(key), kept)
        elif theirs[key] == before.get(key):
            if key in ours:
                result[key] = ours[key]
        elif _texts(theirs[key]) is not None and _texts(ours.get(key)) is not None and key not in _SCALARS:
            result[key] = _merged_texts(_texts(before.get(key)) or [], _texts(theirs[key]), _texts(ours[key]))
        else:
            result[key] = theirs[key]
            if key in ours and ours[key] != theirs[key] and (first or key in before):
                kept.append(
                    f"metadata {key!r} was set by hand to {theirs[key]!r} and is kept; generated: {ours[key]!r}"
                )
    return {key: value for key, value in result.items() if value not in (None, [], {})}


_SCALARS = ("license", "license_name", "license_link", "library_name", "pipeline_tag", "base_model_relation")


def _texts(value: Any) -> list[str] | None:
    values = [value] if isinstance(value, str) else value
    return list(values) if isinstance(values, list) and all(isinstance(v, str) for v in values) else None


def _merged_texts(before: list[str], theirs: list[str], ours: list[str]) -> list[str]:
    kept = [text for text in theirs if text in ours or text not in before]
    return kept + [text for text in ours if text not in theirs and text not in before]


def _merged_index(before: Any, theirs: Any, ours: Any, kept: list[str]) -> Any:
    """Results that were set, changed or removed by hand stay so; the others follow what is generated."""
    old, new = _results(before), _results(ours)
    models = [model for model in theirs if isinstance(model, dict)] or list(ours or [])
    results, there = [], set()
    for result in models[0].get("results", []):
        name = _identity(result)
        there.add(name)
        if name in old and _text(result) == _text(old[name]):
            if name in new:
                results.append(new[name])
            continue
        results.append(result)
        if name in new and _text(new[name]) != _text(result):
            kept.append(
                f"the result of {_described(result)} was set by hand and is kept; generated: {_scores(new[name])}"
            )
    results += [result for name, result in new.items() if name not in there and name not in old]
    return [{**models[0], "results": results}, *models[1:]] if results else models[1:]


def _results(index: Any) -> dict[str, Mapping[str, Any]]:
    return {_identity(result): result for model in index or [] for result in model.get("results", [])}


def _text(result: Mapping[str, Any]) -> str:
    return json.dumps(result, sort_keys=True, default=str)


def _described(result: Mapping[str, Any]) -> str:
    return f"{(result.get('dataset') or {}).get('name')!r} ({_scores(result)})"


def _scores(result: Mapping[str, Any]) -> str:
    return ", ".join(f"{metric.get('type')} {metric.get('value')}" for metric in result.get("metrics") or [])


def _identity(result: Mapping[str, Any]) -> str:
    return json.dumps([result.get("task"), result.get("dataset")], sort_keys=True, default=str)


def _with_body(data: dict[str, Any], text: str) -> ModelCard:
    metadata = ModelCardData(**data).to_yaml(original_order=list(data))
    return ModelCard(f"---\n{metadata}\n---\n{text.strip()}\n")
