import errno
import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from singer_hf.evaluation import CacheError, FeatureCache
from singer_hf.evaluation import cache as cache_module

FIRST, SECOND = range(0, 4), range(4, 8)
TENSORS = {
    "tokens": torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0)),
    "cls": torch.arange(15.0).reshape(5, 3).bfloat16(),
    "target": torch.arange(5 * 4, dtype=torch.int16).reshape(5, 2, 2) - 1,
}


@pytest.fixture
def written(tmp_path):
    """A cache with one good shard."""
    cache = FeatureCache(tmp_path, {"model": "abc", "views": "none"})
    cache.write(0, FIRST, TENSORS)
    return cache


def assert_equal(found, expected):
    assert found is not None and found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_a_shard_comes_back_as_it_was(written):
    assert_equal(written.read(0, FIRST), TENSORS)
    assert_equal(written.read(0, FIRST, verify=False), TENSORS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int16, torch.bool])
def test_every_type_is_kept(dtype, tmp_path):
    tensors = {"x": (torch.arange(12) % 3).reshape(3, 4).to(dtype)}
    cache = FeatureCache(tmp_path, {})
    cache.write(1, SECOND, tensors)
    assert_equal(cache.read(1, SECOND), tensors)


def test_parts_of_larger_tensors_are_written_alone(tmp_path):
    cache, whole = FeatureCache(tmp_path, {}), torch.arange(24.0).reshape(4, 6)
    tensors = {"transposed": whole.T, "part": whole[1:3, ::2]}
    cache.write(0, FIRST, tensors)
    assert_equal(cache.read(0, FIRST), tensors)
    assert cache.path(0, FIRST).stat().st_size < 1500


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux's /proc")
def test_a_shard_is_mapped_not_read_into_memory(tmp_path):
    cache = FeatureCache(tmp_path, {})
    cache.write(0, FIRST, {"x": torch.zeros(1024, 256)})
    tensor = cache.read(0, FIRST, verify=False)["x"]
    assert cache.path(0, FIRST).name in Path("/proc/self/maps").read_text()
    assert tensor.shape == (1024, 256)


def test_what_is_not_there_is_none_without_a_warning(written, caplog):
    assert written.read(0, SECOND) is None and written.read(1, FIRST) is None
    assert not caplog.records


def test_another_key_has_another_folder(tmp_path):
    folders = [FeatureCache(tmp_path, {"model": model}).folder for model in ("a", "b", "a")]
    assert folders[0] == folders[2] != folders[1]


def test_the_order_of_the_keys_entries_does_not_matter(tmp_path):
    assert FeatureCache(tmp_path, {"a": 1, "b": 2}).folder == FeatureCache(tmp_path, {"b": 2, "a": 1}).folder


def test_a_change_of_format_leaves_older_shards(written, monkeypatch):
    monkeypatch.setattr(cache_module, "FORMAT", cache_module.FORMAT + 1)
    assert FeatureCache(written.folder.parent, {"model": "abc", "views": "none"}).read(0, FIRST) is None


# -- damage -----------------------------------------------------------------------------------------------------------
def test_one_wrong_byte_anywhere_is_found(written):
    """Every position of header and data: the shard is refused, or (blanks that pad the header) is the same."""
    path = written.path(0, FIRST)
    good = path.read_bytes()
    data = sum(tensor.nbytes for tensor in TENSORS.values())
    header, accepted = len(good) - data, []
    for position in range(len(good)):
        for flipped in (0x01, 0x80):
            damaged = bytearray(good)
            damaged[position] ^= flipped
            path.write_bytes(damaged)
            found = written.read(0, FIRST)
            if found is not None:
                assert_equal(found, TENSORS)
                accepted.append(position)
    assert all(position < header for position in accepted)
    path.write_bytes(good)
    assert_equal(written.read(0, FIRST), TENSORS)


def test_damaged_data_is_said_to_be(written, caplog):
    path = written.path(0, FIRST)
    damaged = bytearray(path.read_bytes())
    damaged[-3] ^= 0x10
    path.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        assert written.read(0, FIRST) is None
    assert "checksum is wrong" in caplog.text and str(path) in caplog.text and "made again" in caplog.text


@pytest.mark.parametrize("left", [0, 1, 7, 8, 9, 100, 0.5, -100, -1])
def test_a_shard_that_was_cut_is_found(written, left, caplog):
    path = written.path(0, FIRST)
    good = path.read_bytes()
    keep = int(left * len(good)) if isinstance(left, float) else left % len(good)
    path.write_bytes(good[:keep])
    assert written.read(0, FIRST) is None
    assert written.read(0, FIRST, verify=False) is None
    assert "cannot be read" in caplog.text


def test_bytes_that_were_added_are_found(written):
    path = written.path(0, FIRST)
    path.write_bytes(path.read_bytes() + b"\0" * 8)
    assert written.read(0, FIRST) is None


def test_a_shard_of_another_key_is_not_used(written, tmp_path, caplog):
    other = FeatureCache(tmp_path, {"model": "xyz", "views": "none"})
    shutil.copy(written.path(0, FIRST), other.path(0, FIRST))
    assert other.read(0, FIRST) is None
    assert other.read(0, FIRST, verify=False) is None
    assert "something else" in caplog.text


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"key": "", "checksum": ""}])
def test_a_foreign_safetensors_file_is_not_used(written, metadata):
    save_file(TENSORS, written.path(0, FIRST), metadata=metadata)
    assert written.read(0, FIRST) is None


def test_a_file_of_another_kind_is_not_used(written):
    torch.save(TENSORS, written.path(0, FIRST))
    assert written.read(0, FIRST) is None


@pytest.mark.parametrize(
    "changed",
    [
        {name: TENSORS[name] for name in ("tokens", "cls")},
        TENSORS | {"extra": torch.zeros(5)},
        TENSORS | {"tokens": TENSORS["tokens"].reshape(5, 3, 4)},
        TENSORS | {"cls": TENSORS["cls"].view(torch.int16)},
        {name.replace("cls", "class"): tensor for name, tensor in TENSORS.items()},
    ],
    ids=["missing", "added", "shape", "type", "name"],
)
def test_other_tensors_under_a_good_header_are_found(written, changed):
    path = written.path(0, FIRST)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    save_file({name: tensor.clone() for name, tensor in changed.items()}, path, metadata=header)
    assert written.read(0, FIRST) is None


def test_a_damaged_shard_is_replaced(written):
    written.path(0, FIRST).write_bytes(b"")
    written.write(0, FIRST, TENSORS)
    assert_equal(written.read(0, FIRST), TENSORS)


def test_what_a_killed_process_leaves_is_no_shard(written):
    part = written.path(0, SECOND).with_name(written.path(0, SECOND).name + ".4242.part")
    part.write_bytes(written.path(0, FIRST).read_bytes()[:200])
    assert written.read(0, SECOND) is None
    written.write(0, SECOND, TENSORS)
    assert_equal(written.read(0, SECOND), TENSORS)


# -- space and rights -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("in_errno", [True, False])
def test_a_full_disk_is_one_clear_message_and_leaves_no_partial_file(written, monkeypatch, in_errno):
    def full(tensors, path, metadata):
        path.write_bytes(b"half of it")
        number = errno.ENOSPC if in_errno else None
        raise OSError(number, "No space left on device") if in_errno else OSError("I/O error: No space left on device")

    before = sorted(written.folder.iterdir())
    monkeypatch.setattr(cache_module, "save_file", full)
    with pytest.raises(CacheError, match="the disk is full.*Free some space.*cache_dir") as raised:
        written.write(0, SECOND, TENSORS)
    assert str(written.folder) in str(raised.value)
    assert sorted(written.folder.iterdir()) == before
    assert_equal(written.read(0, FIRST), TENSORS)


def test_an_interrupted_write_leaves_no_partial_file_and_the_former_shard(written, monkeypatch):
    def interrupted(tensors, path, metadata):
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(cache_module, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        written.write(0, FIRST, {"x": torch.zeros(3)})
    assert [path.name for path in written.folder.iterdir()] == [written.path(0, FIRST).name]
    assert_equal(written.read(0, FIRST), TENSORS)


def test_space_is_asked_for_beforehand(written, monkeypatch):
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**9))
    written.require_space(10**9)
    with pytest.raises(CacheError, match="2.50 GB in .* 1.00 GB are free.*cache_dir") as raised:
        written.require_space(int(2.5e9))
    assert str(written.folder) in str(raised.value)


def test_a_folder_that_cannot_be_made_is_one_clear_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot be written.*Set cache_dir") as raised:
        FeatureCache(tmp_path / "file" / "cache", {})
    assert str(tmp_path / "file" / "cache") in str(raised.value)


def test_a_folder_that_vanished_is_one_clear_message(written):
    shutil.rmtree(written.folder)
    with pytest.raises(CacheError, match="cannot be written.*cache_dir"):
        written.write(0, FIRST, TENSORS)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_one_clear_message(written):
    written.folder.chmod(0o500)
    try:
        with pytest.raises(CacheError, match="cannot be written.*cache_dir"):
            written.write(0, SECOND, TENSORS)
    finally:
        written.folder.chmod(0o700)
