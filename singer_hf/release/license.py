"""The licence that a student inherits from the models it was made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import HTTPError


@dataclass(frozen=True)
class License:
    """A licence as a card's metadata names it, or why there is none.

    Args:
        id: such as `apache-2.0` or `other`; `None` where it is not known.
        name: of a licence that is `other`.
        link: to its text.
        reason: where it comes from, or why it is not known.
    """

    id: str | None
    reason: str
    name: str | None = None
    link: str | None = None


def inherited_license(sources: dict[str, tuple[str, str | None]], token: str | bool | None = None) -> License:
    """The licence that the cards of all sources name.

    Args:
        sources: "teacher" or "student it began as" -> (Hub id or folder, revision).
        token: for the Hub.
    """
    found = {role: _license_of(name, revision, token) for role, (name, revision) in sources.items()}
    if not found:
        return License(None, "neither teacher nor student has a name by which its card could be found")
    for role, license in found.items():
        if license.id is None:
            return License(None, f"that of its {role} is not known: {license.reason}")
    if len({(license.id, license.name) for license in found.values()}) > 1:
        named = ", ".join(f"{license.id} ({role})" for role, license in found.items())
        return License(None, f"the models it was made of have different ones: {named}")
    license = next(iter(found.values()))
    return License(license.id, f"inherited from its {' and its '.join(found)}", license.name, license.link)


def _license_of(name: str, revision: str | None, token: str | bool | None) -> License:
    try:
        if Path(name).is_dir():
            path = Path(name, "README.md")
            if not path.exists():
                return License(None, "there is no card in its folder")
            card = ModelCard.load(path)
        else:
            card = _hub_card(name, revision, token)
    except (OSError, HTTPError, ValueError, yaml.YAMLError) as error:
        return License(None, f"its card could not be read ({type(error).__name__})")
    data = card.data
    license = data.get("license")
    if not isinstance(license, str):
        return License(None, "its card names none")
    return License(license, "", data.get("license_name"), data.get("license_link"))


def _hub_card(name: str, revision: str | None, token: str | bool | None) -> ModelCard:
    path = hf_hub_download(name, "README.md", revision=revision, token=token)
    return ModelCard.load(Path(path))
