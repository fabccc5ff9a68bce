import datasets
import evaluate
import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """datasets and evaluate write nothing outside pytest's folder."""
    before = datasets.config.HF_DATASETS_CACHE, evaluate.config.HF_METRICS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    evaluate.config.HF_METRICS_CACHE = tmp_path_factory.mktemp("metrics")
    datasets.disable_progress_bars()
    yield
    datasets.config.HF_DATASETS_CACHE, evaluate.config.HF_METRICS_CACHE = before
