import datasets
import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """datasets writes no cache outside pytest's folder."""
    before, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, tmp_path_factory.mktemp("cache")
    datasets.disable_progress_bars()
    yield
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="session")
def tiny_imagenet(shared_data):
    for folder in (shared_data / "tiny-imagenet", shared_data / "data" / "tiny-imagenet"):
        if folder.is_dir():
            return folder
    pytest.skip(f"no tiny-imagenet under {shared_data}: set SINGER_HF_TEST_DATA")
