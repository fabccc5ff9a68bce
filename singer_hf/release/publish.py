"""Publishes a folder as a model repository of the Hub: everything is checked first, then comes one commit.

Large files go up before the commit and are found again by their hash: after an upload that was cut off, another sends
only what is missing (whole files; with `hf_xet`, chunks of files). Until the commit nothing is to be seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    constants,
    get_token,
)
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of httpx up to huggingface_hub 1.x, of httpx2 since: the root of its errors of connection
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff, validate_repo_id

from ..secrets import SecretFound, check_no_tokens, redacted
from .amend import read_card
from .patience import patiently, reason, retry_after

# What unpickles, or runs, on a stranger's machine.
_REFUSED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.joblib", "*.npy", "*.npz", "*.py", "*.h5")
# Weights of an earlier commit that loaders would find beside, or in place of, those of a new one.
_STALE = ("model*.safetensors", "model.safetensors.index.json", "pytorch_model*", "training_args.bin")


class PublishError(Exception):
    """Why nothing was published, in one line, and what to do."""


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
    token: str | None = None

    def __post_init__(self):
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise PublishError(f"{self.repo_id!r} cannot be a repository's name: {error}") from error

    def api(self) -> HfApi:
        """The Hub's client. Raises PublishError where there is no token."""
        token = self.token or get_token()
        if token is None:
            raise PublishError(
                "There is no access token: log in with `hf auth login`, or set HF_TOKEN to a token with write access "
                "(https://huggingface.co/settings/tokens)."
            )
        return HfApi(endpoint=self.endpoint, token=token, library_name="singer_hf")

    def owned(self, api: HfApi) -> str:
        """owner/name."""
        if "/" in self.repo_id:
            return self.repo_id
        with errors_explained(self, api):
            return f"{patiently(api.whoami)['name']}/{self.repo_id}"


def files_to_publish(folder: str | Path, tokens: tuple[str | None, ...] = ()) -> dict[str, Path]:
    """Path in the repository -> file.

    Raises:
        PublishError: an empty folder, a file that holds pickles or code, a file that holds a token.
    """
    folder = Path(folder)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    if not files:
        raise PublishError(f"{folder} holds no files.")
    refused = [name for name in files if any(fnmatch(name.lower(), pattern) for pattern in _REFUSED)]
    if refused:
        raise PublishError(
            f"{', '.join(refused)}: neither pickles nor code are published, only safetensors, JSON, ONNX, text and "
            "pictures."
        )
    try:
        check_no_tokens(files.values(), tokens)
    except SecretFound as error:
        raise PublishError(str(error)) from error
    return files


def existing_files(destination: Destination, api: HfApi) -> list[str] | None:
    """Paths in the repository at this revision, `None` where there is no such repository.

    A revision that does not exist yet has its main branch's files, from which it will be made.
    """
    repo_id = destination.owned(api)
    with errors_explained(destination, api):
        try:
            info = patiently(lambda: api.model_info(repo_id, revision=destination.revision))
        except RevisionNotFoundError:
            info = patiently(lambda: api.model_info(repo_id))
        except RepositoryNotFoundError:
            return None
    if destination.private is not None and info.private is not destination.private:
        now, asked = ("private", "public") if info.private else ("public", "private")
        raise PublishError(
            f"{repo_id} is {now}, but {asked} was asked for: change it in the repository's settings on the Hub, or "
            "leave that option out."
        )
    return sorted(file.rfilename for file in info.siblings or [] if file.rfilename != ".gitattributes")


def existing_card(destination: Destination, api: HfApi, published: list[str] | None) -> ModelCard | None:
    """The card that is published at this revision, `None` where there is none."""
    if "README.md" not in (published or []):
        return None
    repo_id = destination.owned(api)
    with errors_explained(destination, api), TemporaryDirectory() as cache:
        try:
            path = api.hf_hub_download(repo_id, "README.md", revision=destination.revision, cache_dir=cache)
        except RevisionNotFoundError:
            path = api.hf_hub_download(repo_id, "README.md", cache_dir=cache)
        return read_card(path)


def check_free(repo_id: str, published: list[str] | None, files: dict[str, Path], exist_ok: bool) -> None:
    """Raises PublishError where a commit of `files` would change what it should not.

    A repository without files, as an upload that was cut off leaves it, is free.
    """
    if not published:
        return
    if not exist_ok:
        raise PublishError(
            f"{repo_id} already holds {len(published)} files: choose another name, or allow a new commit on it "
            "(exist_ok)."
        )
    ours, theirs = ("adapter_config.json" in names for names in (files, published))
    if ours is not theirs and ({"config.json", "adapter_config.json"} & set(published)):
        kinds = ("a model", "an adapter")
        raise PublishError(
            f"{repo_id} holds {kinds[theirs]}, and this is {kinds[ours]}: each has a repository of its own."
        )


def publish(
    folder: str | Path, destination: Destination, *, message: str = "Upload model with singer_hf"
) -> CommitInfo:
    """Publishes every file of a folder in one commit.

    Weights of an earlier commit that this one does not replace are taken away by it; any other file stays.

    Args:
        folder: as `singer_hf.release` exports it.
        destination: repository, branch, visibility.
        message: of the commit.

    Returns:
        The commit. Where nothing differs from what is published, the one that is there.

    Raises:
        PublishError: nothing was published.
    """
    api = destination.api()
    files = files_to_publish(folder, (api.token,))
    repo_id = destination.owned(api)
    published = existing_files(destination, api)
    check_free(repo_id, published, files, destination.exist_ok)
    stale = [n for n in published or [] if n not in files and any(fnmatch(n, pattern) for pattern in _STALE)]

    def commit() -> CommitInfo:
        # New operations at each attempt: they ask again what is published, so that a commit whose answer was lost on
        # the way is found to be there and not made twice.
        additions = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
        try:
            # huggingface_hub tries again by itself within this call, but not within the others.
            api.preupload_lfs_files(repo_id, additions, revision=destination.revision)
        except Exception as error:
            raise _NotSent from error
        deletions = [CommitOperationDelete(name, is_folder=False) for name in stale]
        return api.create_commit(
            repo_id, [*additions, *deletions], commit_message=message, revision=destination.revision
        )

    check_card(files, destination, api)
    if published is None:
        make_repository(destination, api)
    with errors_explained(destination, api):
        if destination.revision != constants.DEFAULT_REVISION:
            patiently(lambda: api.create_branch(repo_id, branch=destination.revision, exist_ok=True))
        return patiently(commit)


def check_card(files: dict[str, Path], destination: Destination, api: HfApi) -> None:
    """Raises PublishError where the Hub finds the card's metadata invalid."""
    if "README.md" not in files:
        return
    # create_commit asks the same, but only when the weights have been sent.
    body = {"repoType": "model", "content": files["README.md"].read_text(encoding="utf-8")}
    with errors_explained(destination, api):
        response = http_backoff(
            "POST", f"{api.endpoint}/api/validate-yaml", json=body, headers=build_hf_headers(token=api.token)
        )
        try:
            hf_raise_for_status(response)
        except BadRequestError as error:
            raise PublishError(f"The Hub refuses the card's metadata: {reason(error)}.") from error


def make_repository(destination: Destination, api: HfApi) -> None:
    """Makes the repository where it is missing: private, unless it is to be public."""
    repo_id, private = destination.owned(api), destination.private is not False
    with errors_explained(destination, api):
        patiently(lambda: api.create_repo(repo_id, private=private, exist_ok=True))


class _NotSent(Exception):
    """An upload that huggingface_hub has given up; its cause says why."""


@contextmanager
def errors_explained(destination: Destination, api: HfApi) -> Iterator[None]:
    """Errors of the Hub and of the way to it as [`PublishError`]s, without any token in them."""
    try:
        yield
    except (HTTPError, OSError, ValueError, _NotSent) as error:
        raise PublishError(redacted(_explain(error, destination, api.endpoint), (api.token,))) from error


def _explain(error: Exception, destination: Destination, endpoint: str) -> str:
    cause: Any = error
    while cause.__cause__ is not None and not isinstance(cause, HTTPError):
        cause = cause.__cause__
    repo_id, said = destination.repo_id, reason(cause)
    again = " Run the same command again: what is already there is not sent twice."
    if isinstance(cause, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so that the Hub cannot be reached: unset it."
    if not isinstance(cause, HfHubHTTPError):
        if isinstance(cause, (HTTPError, ConnectionError)):  # the latter of hf_xet
            return f"The connection to {endpoint} failed ({said}): is there a network?{again}"
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
