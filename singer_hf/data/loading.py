"""Images from the Hub or from local files, all read by `datasets`."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from typing import Any

import datasets

from .errors import DataSourceError

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif")
_KINDS = {".parquet": "parquet", ".tar": "webdataset"} | dict.fromkeys(_IMAGES, "imagefolder")
"""Ending of a file's name -> the module of `datasets` that reads it."""
_MOST_FILES = 1000
"""Of a stream, noted one by one: `datasets` copies the list with each of its operations."""


def load_images(
    path_or_name: str | os.PathLike,
    *,
    split: str,
    streaming: bool = False,
    revision: str | None = None,
    config_name: str | None = None,
    cache_dir: str | None = None,
    max_samples: int | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """One split of a set of images.

    Args:
        path_or_name: what exists locally or looks like a path, else a Hub dataset:
            - a folder of images, with or without a subfolder a class (and a split);
            - a folder of parquet files, or of webdataset tar files;
            - a folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`;
            - a file or a glob of parquet, tar or image files: all that match are the split that `split` names;
            - a Hub dataset id.
        split: its name, e.g. "train"; where `datasets` can, also an expression as "train[:10%]".
        streaming: read while training, without a copy in the cache; gives an `IterableDataset`.
        revision, config_name: branch, tag or commit, and configuration, of a Hub dataset.
        cache_dir: default: the cache of `datasets`.
        max_samples: take so many at most, evenly spaced (files are often sorted by class); of a stream the first.

    Raises:
        DataSourceError: nothing there, no such split (the message names those there are), or no images.
    """
    source = os.path.expanduser(os.fspath(path_or_name))
    if max_samples is not None and max_samples <= 0:
        raise ValueError(f"max_samples is {max_samples}; expected a positive number, or None for all.")
    if not (os.path.exists(source) or _looks_local(source)):
        dataset = _load_hub(source, split, streaming, revision, config_name, cache_dir)
    elif revision is not None or config_name is not None:
        raise DataSourceError(f"{source} is local; revision and config_name are for Hub datasets only.")
    elif os.path.isdir(source) and _saved_to_disk(source):
        dataset = _load_saved(source, split, streaming)
    else:
        dataset = _load_files(source, split, streaming, cache_dir)
    return _checked(dataset, f"{source!r}, split {split!r},", max_samples)


def split_names(
    path_or_name: str | os.PathLike, *, revision: str | None = None, config_name: str | None = None
) -> list[str]:
    """Names of the splits of a set of images, as [`load_images`] knows them; of files the one that they all form.

    Raises:
        DataSourceError: nothing there, or no access.
    """
    source = os.path.expanduser(os.fspath(path_or_name))
    if not (os.path.exists(source) or _looks_local(source)):
        builder = _hub_builder(source, revision, config_name, None)
    elif not os.path.isdir(source):
        return ["train"]
    elif _saved_to_disk(source):
        saved = datasets.load_from_disk(source)
        return list(saved) if isinstance(saved, datasets.DatasetDict) else [str(saved.split or "train")]
    else:
        builder = datasets.load_dataset_builder(_kind_of_folder(source), data_dir=source)
    return [str(name) for name in builder.config.data_files or builder.info.splits or ()]


def _looks_local(source: str) -> bool:
    is_path = os.path.isabs(source) or source.startswith((".", "~")) or "\\" in source or source.count("/") > 1
    return is_path or glob.has_magic(source) or Path(source).suffix.lower() in _KINDS


# -- Hub --------------------------------------------------------------------------------------------------------------
def _load_hub(name: str, split: str, streaming: bool, revision: Any, config_name: Any, cache_dir: Any) -> Any:
    return _read(_hub_builder(name, revision, config_name, cache_dir), split, streaming, name)


def _hub_builder(name: str, revision: Any, config_name: Any, cache_dir: Any) -> datasets.DatasetBuilder:
    try:
        return datasets.load_dataset_builder(name, config_name, revision=revision, cache_dir=cache_dir)
    except (OSError, ValueError, RuntimeError) as error:
        if "gated" in str(error):  # datasets raises its DatasetNotFoundError for these too
            raise DataSourceError(
                f"{name!r} is gated: ask for access at https://huggingface.co/datasets/{name}, then log in with "
                f"`hf auth login` or set HF_TOKEN. ({error})"
            ) from error
        raise DataSourceError(
            f"{name!r} is no local path, and as a Hub dataset it could not be opened: {type(error).__name__}: {error}"
        ) from error


# -- local files ------------------------------------------------------------------------------------------------------
def _load_files(source: str, split: str, streaming: bool, cache_dir: str | None) -> Any:
    if os.path.isdir(source):
        kind = _kind_of_folder(source)
        builder = datasets.load_dataset_builder(kind, data_dir=source, cache_dir=cache_dir)
        return _read(builder, split, streaming, source)
    files = sorted(path for path in glob.glob(source, recursive=True) if os.path.isfile(path))
    if not files:
        hint = "No file matches the pattern" if glob.has_magic(source) else "No such file or folder:"
        raise DataSourceError(f"{hint} {source!r} (working directory {os.getcwd()}).")
    kinds = {_KINDS.get(Path(path).suffix.lower()) for path in files}
    if len(kinds) != 1 or None in kinds:
        suffixes = sorted({Path(path).suffix for path in files})
        raise DataSourceError(
            f"{source!r} matches files with the endings {suffixes}; expected parquet files only, tar files only, or "
            "images only."
        )
    names = _split_names(split)
    if len(names) != 1:
        raise DataSourceError(f"The files of {source!r} form one split; got split = {split!r}, which names {names}.")
    builder = datasets.load_dataset_builder(kinds.pop(), data_files={names[0]: files}, cache_dir=cache_dir)
    return _read(builder, split, streaming, source)


def _kind_of_folder(folder: str) -> str:
    """The kind of the first data file, by name. An image folder's own metadata.parquet does not count."""
    for _, subfolders, files in os.walk(folder):
        subfolders.sort()
        for file in sorted(files):
            kind = _KINDS.get(Path(file).suffix.lower())
            if kind is not None and not file.startswith((".", "metadata.")):
                return kind
    raise DataSourceError(f"The folder {folder!r} holds no images, parquet files or tar files.")


# -- folders of save_to_disk ------------------------------------------------------------------------------------------
def _saved_to_disk(folder: str) -> bool:
    return any(os.path.isfile(os.path.join(folder, name)) for name in ("state.json", "dataset_dict.json"))


def _load_saved(folder: str, split: str, streaming: bool) -> Any:
    saved = datasets.load_from_disk(folder)
    if isinstance(saved, datasets.DatasetDict):
        _check_split(split, list(saved), folder, expressions=False)
        dataset = saved[split]
    else:
        if saved.split is not None:
            _check_split(split, _split_names(str(saved.split)), folder, expressions=False)
        dataset = saved
    if not streaming:
        return dataset
    shards = max(1, len(dataset.cache_files))  # each is a share that a worker can take
    return dataset.to_iterable_dataset(num_shards=min(shards, max(1, len(dataset))))


# -- common -----------------------------------------------------------------------------------------------------------
def _read(builder: datasets.DatasetBuilder, split: str, streaming: bool, source: str) -> Any:
    known = list(builder.config.data_files or builder.info.splits or ())
    if known:
        _check_split(split, [str(name) for name in known], source, expressions=not streaming)
    if streaming:
        stream = builder.as_streaming_dataset(split=split)
        if builder.config.data_files:
            # As datasets does with what it downloads, so that the run's record can tell which files these were.
            stream.info.download_checksums = _sizes(list(builder.config.data_files[split]))
        return stream
    builder.download_and_prepare()
    sizes = builder.info.splits or {}
    if all(name in sizes and sizes[name].num_examples == 0 for name in _split_names(split)):
        raise DataSourceError(f"{source!r}, split {split!r}, is empty; expected at least one image.")
    return builder.as_dataset(split=split)


def _sizes(files: list[str]) -> dict[str, dict[str, int | None]]:
    """File -> its bytes, `None` where only a request would tell; of many files their common folder -> all bytes."""
    sizes = [os.path.getsize(file) if os.path.isfile(file) else None for file in files]
    if len(files) <= _MOST_FILES:
        return {file: {"num_bytes": size} for file, size in zip(files, sizes, strict=True)}
    folder = os.path.commonprefix(files).rpartition("/")[0] + "/"
    return {folder: {"num_bytes": None if None in sizes else sum(sizes)}}


def _check_split(split: str, known: list[str], source: str, *, expressions: bool) -> None:
    unknown = [name for name in (_split_names(split) if expressions else [split]) if name not in known]
    if unknown:
        raise DataSourceError(
            f"{source!r} has no split {unknown[0]!r}; it has {', '.join(map(repr, known))}."
            + ("" if expressions else " Expressions such as 'train[:10%]' do not work here; use max_samples.")
        )


def _split_names(split: str) -> list[str]:
    """ "train[:10%]+test" -> ["train", "test"]."""
    return [re.split(r"[\[(]", part)[0].strip() for part in split.split("+")]


def _checked(dataset: Any, what: str, max_samples: int | None) -> Any:
    if isinstance(dataset, datasets.IterableDataset):
        if next(iter(_undecoded(dataset).take(1)), None) is None:
            raise DataSourceError(f"{what} is empty; expected at least one image.")
        return dataset if max_samples is None else dataset.take(max_samples)
    if len(dataset) == 0:
        raise DataSourceError(f"{what} is empty; expected at least one image.")
    return evenly_spaced(dataset, max_samples)


def evenly_spaced(dataset: datasets.Dataset, count: int | None) -> datasets.Dataset:
    """At most `count` of the samples, evenly spaced, since files are often sorted by class; `None`: all."""
    if count is None or count >= len(dataset):
        return dataset
    return dataset.select([index * len(dataset) // count for index in range(count)])


def in_memory(stream: datasets.IterableDataset) -> datasets.Dataset:
    """All of a short stream, e.g. of `load_images(…, streaming=True, max_samples=1000)`, its images still encoded."""
    rows = list(_undecoded(stream))
    return datasets.Dataset.from_list(rows, features=stream.features, info=stream.info.copy(), split=stream.split)


def _undecoded(stream: datasets.IterableDataset) -> datasets.IterableDataset:
    """Whether a stream is empty is no question of whether its first image can be decoded."""
    for name, feature in (stream.features or {}).items():
        if isinstance(feature, datasets.Image):
            stream = stream.cast_column(name, datasets.Image(decode=False))
    return stream
