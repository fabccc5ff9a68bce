import time

import huggingface_hub
import pytest
import transformers
from hub_server import HubServer
from released import make_classifier, make_run

from singer_hf.release import export_student


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture
def online(monkeypatch, tmp_path, hub):
    """The stand-in; this process may reach it and nothing else, with no token but the one that a test gives."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    huggingface_hub.utils.close_session()
    return hub


@pytest.fixture
def waits(monkeypatch):
    """Seconds that anything waited for, instead of the waiting."""
    seconds = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Folder of a run; not to be written to."""
    transformers.utils.logging.disable_progress_bar()
    return make_run(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="session")
def classifier(run, tmp_path_factory):
    """Folder of a classifier of the run's student; not to be written to."""
    return make_classifier(run, tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="session")
def exported(run, tmp_path_factory):
    """The run's student as it is released."""
    return export_student(run, tmp_path_factory.mktemp("exported"))
