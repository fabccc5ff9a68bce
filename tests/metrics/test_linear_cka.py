import pytest
import torch

from singer_hf.measures.similarity import linear_cka
from singer_hf.metrics import LinearCKA


def test_batches_give_the_value_of_all_samples():
    x = torch.randn(50, 6) + 3
    y = x @ torch.randn(6, 4) + torch.randn(50, 4)
    metric = LinearCKA()
    for start in range(0, 50, 12):
        metric.add_batch(predictions=x[start : start + 12], references=y[start : start + 12].numpy())
    assert len(metric) == 50
    assert metric.compute() == {"linear_cka": pytest.approx(linear_cka(x, y), rel=1e-9)}
    assert len(metric) == 0


def test_stores_one_row():
    metric = LinearCKA()
    stored = []
    for _ in range(3):
        metric.add_batch(predictions=torch.randn(5, 3), references=torch.randn(5, 2))
        stored.append(len(metric.writer))
    assert stored == [0, 0, 0]
    metric._compute = lambda predictions, references: {"rows": len(predictions), "width": len(predictions[0])}
    assert metric.compute() == {"rows": 1, "width": 36}


def test_widths_must_stay():
    metric = LinearCKA()
    metric.add_batch(predictions=torch.randn(5, 3), references=torch.randn(5, 2))
    with pytest.raises(ValueError, match="widths 3 and 2, got 2 and 3"):
        metric.add_batch(predictions=torch.randn(5, 2), references=torch.randn(5, 3))


def test_bad_inputs():
    metric = LinearCKA()
    with pytest.raises(ValueError, match=r"got shapes \(5, 4, 3\) and \(5, 4, 2\): pool or flatten tokens"):
        metric.add_batch(predictions=torch.randn(5, 4, 3), references=torch.randn(5, 4, 2))
    with pytest.raises(ValueError, match="infinite values in x"):
        metric.add_batch(predictions=torch.randn(5, 3) / 0, references=torch.randn(5, 2))
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        metric.compute(predictions=torch.randn(1, 3), references=torch.randn(1, 2))
    with pytest.raises(ValueError, match="in y are the same for every sample"):
        metric.compute(predictions=torch.randn(5, 3), references=torch.ones(5, 2))
