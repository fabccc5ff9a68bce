"""The licence that a student inherits from the models it was made of."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HTTPError, LocalEntryNotFoundError

from .destination import PublishError
from .patience import patiently, reason

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class License:
    """A licence as a card's metadata names it, or why there is none.

    Args:
        id: such as `apache-2.0` or `other`; `None` where it is not known.
        name: of a licence that is `other`.
        link: to its text.
        reason: where it comes from, or why it is not known.
        sources: those of the models it was made of, by role.
    """

    id: str | None
    reason: str
    name: str | None = None
    link: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)


def inherited_license(sources: dict[str, tuple[str, str | None]], token: str | bool | None = None) -> License:
    """The licence that the cards of all sources name.

    Args:
        sources: "teacher" or "student it began as" -> (Hub id or folder, revision).
        token: for the Hub.

    Raises:
        PublishError: a card could not be looked at, which is not the same as one that names no licence.
    """
    found = {role: _license_named_by(name, revision, token) for role, (name, revision) in sources.items()}
    if not found:
        return License(None, "neither teacher nor student has a name by which its card could be found")
    named = {role: license.name or license.id for role, license in found.items() if license.id is not None}
    for role, license in found.items():
        if license.id is None:
            return License(None, f"that of its {role} is not known: {license.reason}", sources=named)
    if len({(license.id, license.name) for license in found.values()}) > 1:
        listed = ", ".join(f"{license} ({role})" for role, license in named.items())
        return License(None, f"the models it was made of have different ones: {listed}", sources=named)
    license = next(iter(found.values()))
    return License(license.id, f"inherited from its {' and its '.join(found)}", license.name, license.link, named)


def license_of(stated: License | None, sources: dict[str, tuple[str, str | None]]) -> License:
    """The licence that was stated, see [`stated_license`], else the inherited one, see [`inherited_license`]."""
    return inherited_license(sources) if stated is None else stated_license(stated, sources)


def stated_license(stated: License, sources: dict[str, tuple[str, str | None]]) -> License:
    """A licence that its author states, beside those of the models it was made of; warns where they differ."""
    try:
        inherited = inherited_license(sources)
    except PublishError as error:
        logger.warning("Whether the licence %s fits the teacher's was not looked at: %s", stated.id, error)
        return stated
    for role, license in inherited.sources.items():
        if license != (stated.name or stated.id):
            logger.warning("The licence is to be %s, but that of its %s is %s.", stated.id, role, license)
    return replace(stated, sources=inherited.sources)


def _license_named_by(name: str, revision: str | None, token: str | bool | None) -> License:
    """Raises PublishError where it could not be looked at."""
    path = Path(name, "README.md") if Path(name).is_dir() else _hub_card(name, revision, token)
    if path is None or not path.exists():
        return License(None, "it has no card")
    try:
        data = ModelCard.load(path).data
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise PublishError(
            f"The card of {name} cannot be read, so that its licence is not known ({type(error).__name__}): {_NAME_IT}"
        ) from error
    license = data.get("license")
    if not isinstance(license, str):
        return License(None, "its card names none")
    return License(license, "", data.get("license_name"), data.get("license_link"))


def _hub_card(name: str, revision: str | None, token: str | bool | None) -> Path | None:
    try:
        return Path(patiently(lambda: hf_hub_download(name, "README.md", revision=revision, token=token)))
    except (OSError, HTTPError, ValueError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise PublishError(
            f"The card of {name} could not be had from the Hub, so that its licence is not known ({reason(error)}): "
            f"{_NAME_IT}"
        ) from error


_NAME_IT = "try again, or name the licence yourself (license)."
