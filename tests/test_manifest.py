"""Checkpoints are whole or not there, and damage is named."""

import errno
import json
import pickle
import shutil
import subprocess
from pathlib import Path

import pytest
from runs import assert_same_weights, trainer_of, weights
from transformers import AutoModel

from singer_hf import CheckpointError, load_vision_model
from singer_hf.checkpoints import durable, manifest
from singer_hf.checkpoints.manifest import (
    MANIFEST,
    DamagedCheckpointError,
    IncompleteCheckpointError,
    finish_publication,
    publish,
    verify_manifest,
    write_manifest,
)
from singer_hf.checkpoints.resume import choose_checkpoint

SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "new" / "adapter").mkdir(parents=True)
    (tmp_path / "new" / "weights").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "new" / "adapter" / "config").write_text("{}")
    return tmp_path / "new"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer = trainer_of(folder, **SAVING)
    trainer.train()
    return folder, weights(trainer)


def flip(path, place=0.5):
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 16
    path.write_bytes(content)


def copy(run, target):
    shutil.copytree(run[0], target, dirs_exist_ok=True)
    return target


def test_a_manifest_names_what_is_missing_cut_or_changed(folder):
    write_manifest(folder)
    verify_manifest(folder)
    weights_file = folder / "weights"
    content = weights_file.read_bytes()
    flip(weights_file)
    with pytest.raises(DamagedCheckpointError, match="weights is damaged: its SHA-256"):
        verify_manifest(folder)
    weights_file.write_bytes(content[:-1])
    with pytest.raises(DamagedCheckpointError, match="weights has 2559 bytes.*says 2560"):
        verify_manifest(folder)
    (folder / "adapter" / "config").unlink()
    weights_file.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match="config is missing"):
        verify_manifest(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"format": 1}',
        '{"format": 2, "files": {}}',
        '{"format": 1, "files": 3}',
        '{"format": 1, "files": {}}',
    ],
)
def test_a_damaged_manifest(folder, text):
    (folder / MANIFEST).write_text(text)
    with pytest.raises(DamagedCheckpointError, match="manifest.json is damaged"):
        verify_manifest(folder)


def test_a_file_or_manifest_that_the_disk_does_not_give(folder, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    write_manifest(folder)
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "_entry", fail)
        with pytest.raises(DamagedCheckpointError, match="config cannot be read: .*Input/output error"):
            verify_manifest(folder)
    monkeypatch.setattr(Path, "is_file", fail)
    with pytest.raises(DamagedCheckpointError, match="manifest.json is damaged: OSError"):
        verify_manifest(folder)


def test_advice_on_a_changed_folder_fits_what_it_is(folder):
    write_manifest(folder)
    flip(folder / "weights")
    with pytest.raises(DamagedCheckpointError, match="on purpose, delete manifest.json there"):
        verify_manifest(folder)
    (folder / "trainer_state.json").write_text("{}")
    write_manifest(folder)
    (folder / "trainer_state.json").unlink()
    with pytest.raises(DamagedCheckpointError, match="resumed as it was written or not at all.*in the copy"):
        verify_manifest(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd"])
def test_a_manifest_cannot_name_files_outside(folder, name):
    (folder / MANIFEST).write_text(json.dumps({"format": 1, "files": {name: {"size": 1, "sha256": ""}}}))
    with pytest.raises(DamagedCheckpointError, match="leaves the folder"):
        verify_manifest(folder)


def test_publication_is_finished_or_never_happened(folder, tmp_path):
    staging = tmp_path / ".saving"
    for name in ("checkpoint-1", "checkpoint-2"):
        (staging / name).mkdir(parents=True)
        (staging / name / "weights").write_bytes(b"1")
    write_manifest(staging / "checkpoint-1")  # dead before the rename; checkpoint-2 dead before the manifest
    finish_publication(staging, tmp_path)
    assert not staging.exists() and not (tmp_path / "checkpoint-2").exists()
    verify_manifest(tmp_path / "checkpoint-1")
    publish(folder, tmp_path / "checkpoint-1")  # in the place of one that is there
    assert (tmp_path / "checkpoint-1" / "adapter").exists() and not folder.exists()


def test_every_file_of_a_checkpoint_is_in_its_manifest(run):
    for checkpoint in run[0].glob("checkpoint-*"):
        verify_manifest(checkpoint)
        listed = json.loads((checkpoint / MANIFEST).read_text())["files"]
        files = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
        assert files - {MANIFEST} == set(listed)
    assert not (run[0] / ".saving").exists()


def test_the_newest_whole_checkpoint_is_resumed(run, tmp_path, caplog):
    copy(run, tmp_path)
    (tmp_path / "checkpoint-6" / MANIFEST).unlink()
    again = trainer_of(tmp_path, **SAVING)
    again.train(resume_from_checkpoint=True)
    assert "checkpoint-6 has no manifest.json" in caplog.text and "checkpoint-4, the newest" in caplog.text
    assert_same_weights(weights(again), run[1])


def test_a_damaged_checkpoint_is_refused_or_passed_over(run, tmp_path):
    copy(run, tmp_path)
    flip(tmp_path / "checkpoint-6" / "optimizer.pt")
    with pytest.raises(DamagedCheckpointError, match=r"optimizer\.pt is damaged.*resume_fallback=True"):
        trainer_of(tmp_path, **SAVING).train(resume_from_checkpoint=True)
    with pytest.raises(DamagedCheckpointError, match=r"optimizer\.pt is damaged"):
        trainer_of(tmp_path, **SAVING).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    again = trainer_of(tmp_path, resume_fallback=True, **SAVING)
    again.train(resume_from_checkpoint=True)
    assert_same_weights(weights(again), run[1])
    verify_manifest(tmp_path / "checkpoint-6")


def test_every_process_learns_why_nothing_is_resumed(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(durable, "broadcast_object_list", lambda found: told.extend(found) or found)
    monkeypatch.setattr(durable, "finish_publication", lambda *args: (_ for _ in ()).throw(OSError(errno.EIO, "disk")))
    with pytest.raises(OSError, match="disk"):
        trainer_of(tmp_path).train(resume_from_checkpoint=True)
    assert isinstance(told[1], OSError)


def test_nothing_to_resume(run, tmp_path):
    with pytest.raises(CheckpointError, match="There is none"):
        choose_checkpoint(True, tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        choose_checkpoint(str(tmp_path / "checkpoint-1"), tmp_path)
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(IncompleteCheckpointError, match="never finished"):
        choose_checkpoint(str(tmp_path / "checkpoint-1"), tmp_path)


def test_a_failed_save_leaves_the_checkpoint_before_it(run, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer = trainer_of(tmp_path, save_total_limit=1, **SAVING)
    save = durable.publish
    monkeypatch.setattr(durable, "publish", lambda *args: fail() if trainer.state.global_step == 4 else save(*args))
    with pytest.raises(CheckpointError, match="disk is full.*checkpoint-2 is whole.*save_total_limit"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    monkeypatch.undo()
    again = trainer_of(tmp_path, **SAVING)
    again.train(resume_from_checkpoint=True)
    assert_same_weights(weights(again), run[1])


def test_a_disk_that_is_full(run, tmp_path):
    """A real one, of 700 kB, where mounting is permitted."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "none", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting is not permitted")
    try:
        with pytest.raises(CheckpointError, match="checkpoint-6 cannot be written: the disk is full.*-4 is whole"):
            trainer_of(tmp_path, **SAVING).train()
        subprocess.run(["mount", "-o", "remount,size=20m", str(tmp_path)], check=True)
        again = trainer_of(tmp_path, **SAVING)
        again.train(resume_from_checkpoint=True)
        assert_same_weights(weights(again), run[1])
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_pickle_in_a_checkpoint_is_not_executed(run, tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    copy(run, tmp_path)
    checkpoint = tmp_path / "checkpoint-6"
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(pickle.dumps(Attack()))
        write_manifest(checkpoint)  # even where whoever planted it made the manifest fit
        with pytest.raises(Exception, match="(?i)weights_only|unpickl"):
            trainer_of(tmp_path, **(SAVING | {"max_steps": 8})).train(resume_from_checkpoint=True)
        (checkpoint / name).write_bytes(content)
    assert not (tmp_path / "executed").exists()


def test_a_finished_students_damage_is_found_at_loading(run, tmp_path):
    trainer = trainer_of(tmp_path, **SAVING)
    trainer.save_model()
    AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
    flip(tmp_path / "model.safetensors", 0.9)
    AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)  # which cannot tell
    with pytest.raises(DamagedCheckpointError, match=r"model\.safetensors"):
        load_vision_model(str(tmp_path))
