"""The commit that a record names, in a repository made here."""

import shutil
import subprocess
from pathlib import Path

import pytest

from singer_hf.records import provenance

FILES = ("singer_hf/records/provenance.py", "singer_hf/losses.py", "benchmarks/step.py", "benchmarks/results/a.json")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("as committed\n")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / FILES[0]))
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for arguments in (("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "first")):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    return tmp_path


def test_a_clean_checkout_is_its_commit(repository):
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, check=True)
    assert provenance.commit() == head.stdout.strip()


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_told_unless_it_is_a_result(repository, name):
    (repository / name).write_text("changed\n")
    assert provenance.commit().endswith("+changes") == ("results" not in name)


def test_an_installed_package_has_no_commit(repository, monkeypatch):
    elsewhere = repository / "site-packages" / "singer_hf" / "records" / "provenance.py"
    elsewhere.parent.mkdir(parents=True)
    shutil.copy(Path(provenance.__file__), elsewhere)
    monkeypatch.setattr(provenance, "__file__", str(elsewhere))
    assert provenance.commit() is None
