"""Where a folder goes, and what the Hub and the way to it may answer, in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of httpx up to huggingface_hub 1.x, of httpx2 since: the root of its errors of connection
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from ..records.secrets import redacted
from .patience import patiently, reason, retry_after


class PublishError(Exception):
    """Why nothing was published, in one line, and what to do."""


class HubNotReached(PublishError):
    """There is no access token, or no connection: what the Hub would say is not known."""


class NotSent(Exception):
    """An upload that huggingface_hub has given up; its cause says why."""


@dataclass(frozen=True)
class Destination:
    """Where a folder goes.

    Args:
        repo_id: owner/name; a name alone is the token's owner's.
        revision: branch, made where missing.
        private: visibility. `None`: private where the repository is made, as it is where it exists.
        exist_ok: add a commit to a repository that already holds a model.
        endpoint: of the Hub; default: `HF_ENDPOINT`, else huggingface.co.
        token: default: `HF_TOKEN`, else that of `hf auth login`.
    """

    repo_id: str
    revision: str = constants.DEFAULT_REVISION
    private: bool | None = None
    exist_ok: bool = False
    endpoint: str | None = None
    token: str | None = field(default=None, repr=False)

    def __post_init__(self):
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise PublishError(f"{self.repo_id!r} cannot be a repository's name: {error}") from error

    def api(self) -> HfApi:
        """The Hub's client. Raises PublishError where there is no token."""
        token = self.token or get_token()
        if token is None:
            raise HubNotReached(
                "There is no access token: log in with `hf auth login`, or set HF_TOKEN to a token with write access "
                "(https://huggingface.co/settings/tokens)."
            )
        return HfApi(endpoint=self.endpoint, token=token, library_name="singer_hf")

    def owned(self, api: HfApi) -> str:
        """owner/name."""
        if "/" in self.repo_id:
            return self.repo_id
        with errors_explained(self, api):
            return f"{patiently(api.whoami, (api.token,))['name']}/{self.repo_id}"


def make_repository(destination: Destination, api: HfApi) -> None:
    """Makes the repository where it is missing: private, unless it is to be public."""
    repo_id, private = destination.owned(api), destination.private is not False
    with errors_explained(destination, api):
        patiently(lambda: api.create_repo(repo_id, private=private, exist_ok=True), (api.token,))


@contextmanager
def errors_explained(destination: Destination, api: HfApi) -> Iterator[None]:
    """Errors of the Hub and of the way to it as [`PublishError`]s, without any token in them."""
    try:
        yield
    except (HTTPError, OSError, ValueError, NotSent) as error:
        cause: Any = error
        while cause.__cause__ is not None and not isinstance(cause, HTTPError):
            cause = cause.__cause__
        kind = HubNotReached if not_reached(cause) else PublishError
        raise kind(redacted(_explain(cause, destination, api.endpoint), (api.token,))) from error


def not_reached(error: BaseException) -> bool:
    """Whether an error is of the connection, and not an answer of the Hub."""
    if isinstance(error, (OfflineModeIsEnabled, ConnectionError)):  # the latter also of hf_xet
        return True
    return isinstance(error, HTTPError) and not isinstance(error, HfHubHTTPError)


def _explain(cause: Any, destination: Destination, endpoint: str) -> str:
    repo_id, said = destination.repo_id, reason(cause)
    again = " Run the same command again: what is already there is not sent twice."
    if isinstance(cause, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so that the Hub cannot be reached: unset it."
    if not_reached(cause):
        return f"The connection to {endpoint} failed ({said}): is there a network?{again}"
    if not isinstance(cause, HfHubHTTPError):
        return said
    status = cause.response.status_code
    if isinstance(cause, RevisionNotFoundError):
        return f"{repo_id} has no branch {destination.revision!r}."
    if status == 401:
        return (
            f"The Hub does not accept this access token ({said}): log in again with `hf auth login`, or set "
            "HF_TOKEN to a valid one."
        )
    if status == 403:
        return f"This access token may not write to {repo_id} ({said}): it needs write access to its owner's models."
    if status == 409:
        return f"{repo_id} is being changed by someone else, or exists already ({said}).{again}"
    if status == 412:
        return f"{repo_id} has changed meanwhile ({said}).{again}"
    if status == 429:
        asked = retry_after(cause.response.headers.get("Retry-After"))
        return f"The Hub asks for patience ({said})" + (f": wait {asked:.0f} s." if asked else ".") + again
    if status >= 500:
        return f"The Hub has trouble ({status}, {said}).{again}"
    return f"The Hub refuses ({status}, {said})."
