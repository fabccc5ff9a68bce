import logging
import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

from families import tiny_vit


def pytest_configure(config):
    torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def log_level():
    """Scripts set it for the process that they take themselves to have."""
    logger = logging.getLogger("singer_hf")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.fixture
def teacher():
    return tiny_vit(hidden_size=32, num_hidden_layers=4).eval()


@pytest.fixture
def student():
    return tiny_vit(hidden_size=16, num_hidden_layers=3)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images and the recorded reference step, which are not part of the repository."""
    folder = Path(os.environ.get("SINGER_HF_TEST_DATA", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip("no folder of real test data: set SINGER_HF_TEST_DATA")
    return folder
