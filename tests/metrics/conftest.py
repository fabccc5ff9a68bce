import evaluate
import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """evaluate writes nothing outside pytest's folder."""
    before, evaluate.config.HF_METRICS_CACHE = evaluate.config.HF_METRICS_CACHE, tmp_path_factory.mktemp("metrics")
    yield evaluate.config.HF_METRICS_CACHE
    evaluate.config.HF_METRICS_CACHE = before
