"""Publishes a folder as a model repository of the Hub: everything is checked first, then comes one commit.

Large files go up before the commit and are found again by their hash: after an upload that was cut off, another sends
only what is missing (whole files; with `hf_xet`, chunks of files). Until the commit nothing is to be seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import BadRequestError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

from ..records.secrets import SecretFound, check_no_tokens
from .destination import Destination, NotSent, PublishError, errors_explained, make_repository
from .patience import patiently, reason
from .published import Published, check_free, look_up

# What unpickles, or runs, on a stranger's machine.
_REFUSED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.joblib", "*.npy", "*.npz", "*.py", "*.h5")


def files_to_publish(folder: str | Path, tokens: tuple[str | None, ...] = ()) -> dict[str, Path]:
    """Path in the repository -> file.

    Raises:
        PublishError: an empty folder, a file that holds pickles or code, a file that holds a token.
    """
    files = files_without_tokens(folder, tokens)
    refused = [name for name in files if any(fnmatch(name.lower(), pattern) for pattern in _REFUSED)]
    if refused:
        raise PublishError(
            f"{', '.join(refused)}: neither pickles nor code are published, only safetensors, JSON, ONNX, text and "
            "pictures."
        )
    return files


def files_without_tokens(folder: str | Path, tokens: tuple[str | None, ...] = ()) -> dict[str, Path]:
    """Path below the folder -> file.

    Raises:
        PublishError: an empty folder, a file that holds a token.
    """
    folder = Path(folder)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    if not files:
        raise PublishError(f"{folder} holds no files.")
    try:
        check_no_tokens(files.values(), tokens)
    except SecretFound as error:
        raise PublishError(str(error)) from error
    return files


def publish(
    folder: str | Path,
    destination: Destination,
    *,
    message: str = "Upload model with singer_hf",
    published: Published | None = None,
) -> CommitInfo:
    """Publishes every file of a folder in one commit.

    Weights of an earlier commit that this one does not replace are taken away by it; any other file stays.

    Args:
        folder: as `singer_hf.release` exports it.
        destination: repository, branch, visibility.
        message: of the commit.
        published: what is there, as the folder's card was made for; it is refused where that has changed since.

    Returns:
        The commit. Where nothing differs from what is published, the one that is there.

    Raises:
        PublishError: nothing was published.
    """
    api = destination.api()
    files = files_to_publish(folder, (api.token,))
    published = look_up(destination, api) if published is None else published
    check_free(destination.owned(api), published, files, destination.exist_ok)
    check_card(files, destination, api)
    if not published.exists:
        make_repository(destination, api)
    return commit(files, published.stale(files), destination, api, message, published)


def commit(
    files: Mapping[str, Path],
    stale: Sequence[str],
    destination: Destination,
    api: HfApi,
    message: str,
    published: Published,
) -> CommitInfo:
    """One commit on what was read, patiently; the repository exists."""
    repo_id, revision, tokens = destination.owned(api), destination.revision, (api.token,)

    def attempt() -> CommitInfo:
        # New operations at each attempt: they ask again what is published, so that a commit whose answer was lost on
        # the way is found to be there and not made twice.
        additions = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
        try:
            # huggingface_hub tries again by itself within this call, but not within the others.
            api.preupload_lfs_files(repo_id, additions, revision=revision)
        except Exception as error:
            raise NotSent from error
        return api.create_commit(
            repo_id,
            [*additions, *(CommitOperationDelete(name, is_folder=False) for name in stale)],
            commit_message=message,
            revision=revision,
            parent_commit=published.commit,
        )

    with errors_explained(destination, api):
        if revision != "main" and not published.has_branch:
            patiently(
                lambda: api.create_branch(repo_id, branch=revision, revision=published.commit, exist_ok=True), tokens
            )
        return patiently(attempt, tokens)


def check_card(files: Mapping[str, Path], destination: Destination, api: HfApi) -> None:
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
            raise PublishError(f"The Hub refuses the card's metadata: {reason(error, (api.token,))}.") from error
