import datasets
import evaluate
import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """datasets and evaluate write nothing outside pytest's folder."""
    before = datasets.config.HF_DATASETS_CACHE, evaluate.config.HF_METRICS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    evaluate.config.HF_METRICS_CACHE = tmp_path_factory.mktemp("metrics")
    datasets.disable_progress_bars()
    yield
    datasets.config.HF_DATASETS_CACHE, evaluate.config.HF_METRICS_CACHE = before


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Heads of this size are slower on several threads, most of all where others want them, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
