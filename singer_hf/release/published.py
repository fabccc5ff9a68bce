"""What a repository of the Hub holds already, and whether a release may become its next commit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from .amend import is_generated_card, read_card
from .destination import Destination, PublishError, errors_explained
from .patience import patiently

# What an earlier commit of ours may have left that loaders would find beside, or in place of, new weights.
_STALE = (
    *("model*.safetensors", "model.safetensors.index.json", "pytorch_model*", "training_args.bin"),
    *("onnx/model.onnx", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
    "distillation.safetensors",
)


@dataclass(frozen=True)
class Published:
    """A repository as it was read.

    Args:
        exists: the repository does.
        commit: that was read, `None` where there is none.
        has_branch: the asked-for branch exists; else `commit` is main's, from which it will be made.
        files: path -> SHA-256 of a large file, git's hash of another; without `.gitattributes`.
    """

    exists: bool = True
    commit: str | None = None
    has_branch: bool = True
    files: Mapping[str, str] = field(default_factory=dict)

    def holds(self, files: Mapping[str, Path]) -> bool:
        """Whether a commit of these files would change nothing."""
        same = all(self.files.get(name) in _hashes(path) for name, path in files.items() if name in self.files)
        return same and files.keys() <= self.files.keys() and not self.stale(files)

    def stale(self, files: Mapping[str, Path]) -> list[str]:
        """Weights that must not stay beside these files."""
        return [name for name in self.files if name not in files and any(fnmatch(name, p) for p in _STALE)]

    @property
    def has_model(self) -> bool:
        """Whether it holds weights or a configuration, of whatever library."""
        return any(name.endswith((".safetensors", ".bin", ".onnx", ".pt")) for name in self.files) or any(
            name in self.files for name in ("config.json", "adapter_config.json")
        )


def look_up(destination: Destination, api: HfApi) -> Published:
    """What is there.

    Raises:
        PublishError: the Hub refuses, or the repository has another visibility than was asked for.
    """
    repo_id, tokens = destination.owned(api), (api.token,)
    with errors_explained(destination, api):
        has_branch = True
        try:
            info = patiently(lambda: api.model_info(repo_id, revision=destination.revision), tokens)
        except RevisionNotFoundError:
            has_branch = False
            info = patiently(lambda: api.model_info(repo_id), tokens)
        except RepositoryNotFoundError:
            return Published(exists=False, has_branch=False)
        entries = patiently(lambda: list(api.list_repo_tree(repo_id, recursive=True, revision=info.sha)), tokens)
    if destination.private is not None and info.private is not destination.private:
        now, asked = ("private", "public") if info.private else ("public", "private")
        raise PublishError(
            f"{repo_id} is {now}, but {asked} was asked for: change it in the repository's settings on the Hub, or "
            "leave that option out."
        )
    files = {
        entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id
        for entry in entries
        if isinstance(entry, RepoFile) and entry.path != ".gitattributes"
    }
    return Published(True, info.sha, has_branch, files)


def existing_card(destination: Destination, api: HfApi, published: Published) -> ModelCard | None:
    """The card of the commit that was read, `None` where it has none."""
    if "README.md" not in published.files:
        return None
    repo_id = destination.owned(api)
    with errors_explained(destination, api), TemporaryDirectory() as cache:
        path = patiently(
            lambda: api.hf_hub_download(repo_id, "README.md", revision=published.commit, cache_dir=cache),
            (api.token,),
        )
        return read_card(path)


def check_free(repo_id: str, published: Published, files: Mapping[str, Path], exist_ok: bool) -> None:
    """Raises PublishError where a commit of `files` would change what it should not.

    A repository without files, as an upload that was cut off leaves it, is free, and so is one that holds these files
    already.
    """
    if not published.files or published.holds(files):
        return
    if not exist_ok:
        raise PublishError(
            f"{repo_id} already holds {len(published.files)} files, and other ones than these: choose another name, "
            "or allow a new commit on it (exist_ok)."
        )
    ours, theirs = ("adapter_config.json" in names for names in (files, published.files))
    if ours is not theirs and ({"config.json", "adapter_config.json"} & set(published.files)):
        kinds = ("a model", "an adapter")
        raise PublishError(
            f"{repo_id} holds {kinds[theirs]}, and this is {kinds[ours]}: each has a repository of its own."
        )


def check_ours(repo_id: str, published: Published, card: ModelCard | None) -> None:
    """Raises PublishError where there is a model whose card this package did not write."""
    if published.has_model and not (card is not None and is_generated_card(card)):
        raise PublishError(
            f"{repo_id} holds a model that was not published by singer_hf (its card has no metadata of it), and a "
            "training does not write over it: choose another hub_model_id, or publish by hand with "
            "examples/push_to_hub.py --exist_ok."
        )


def _hashes(path: Path) -> tuple[str, str]:
    """What the Hub may call a file: SHA-256 of its content, and git's hash."""
    large, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            large.update(chunk)
            git.update(chunk)
    return large.hexdigest(), git.hexdigest()
