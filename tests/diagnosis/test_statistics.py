import math

import numpy as np
import pytest
import torch

from singer_hf.diagnosis.statistics import LogHistogram, Moments, SumsByNorm, as_json, coarse_edge


def norms(count=20_000, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(0.3).exp() * 17


def test_batches_in_any_order_give_the_same_as_all_at_once():
    values = norms()
    whole, parts = LogHistogram(), LogHistogram()
    whole.add(values)
    for part in reversed(values.split(777)):
        parts.add(part)
    assert torch.equal(whole.counts, parts.counts)
    assert parts.quantile(0.97) == whole.quantile(0.97) and parts.log_mad == whole.log_mad
    assert parts.mean == pytest.approx(whole.mean, rel=1e-13) and parts.std == pytest.approx(whole.std, rel=1e-12)


@pytest.mark.parametrize("q", [0.01, 0.25, 0.5, 0.75, 0.97, 0.999])
def test_quantiles_are_numpys_to_a_quarter_percent(q):
    values, histogram = norms(), LogHistogram()
    histogram.add(values)
    exact = np.quantile(values.numpy(), q, method="inverted_cdf")
    assert histogram.quantile(q) == pytest.approx(exact, rel=0.0026)


def test_mean_spread_and_largest_are_exact():
    values, histogram = norms(), LogHistogram()
    histogram.add(values)
    assert histogram.mean == pytest.approx(values.mean().item(), rel=1e-13)
    assert histogram.std == pytest.approx(values.std().item(), rel=1e-12)
    assert histogram.largest == values.max().item() and histogram.count == len(values)


def test_the_mad_of_logarithms_is_scipys():
    from scipy.stats import median_abs_deviation

    values, histogram = norms(), LogHistogram()
    histogram.add(values)
    assert histogram.log_mad == pytest.approx(median_abs_deviation(values.log().numpy()), abs=0.006)


def test_moments_of_numbers_far_from_zero_keep_their_digits():
    values, moments = 1e8 + norms(), Moments()
    for part in values.split(100):
        moments.add(part)
    assert moments.std == pytest.approx(values.std().item(), rel=1e-9)


def test_merged_histograms_are_those_of_all_values():
    values, first, second, whole = norms(), LogHistogram(), LogHistogram(), LogHistogram()
    first.add(values[:500])
    second.add(values[500:])
    whole.add(values)
    first.merge(second)
    assert torch.equal(first.counts, whole.counts) and first.std == pytest.approx(whole.std, rel=1e-12)


def test_what_lies_above_an_edge_is_what_a_mask_selects():
    values = norms().view(100, 200)
    weights = torch.rand(values.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    marked = torch.rand(values.shape, generator=torch.Generator().manual_seed(2)) < 0.7
    places = torch.arange(200) % 7
    sums, histogram = SumsByNorm("weight", sizes={"place": 7}), LogHistogram()
    for part, mark, weight in zip(values.split(9), marked.split(9), weights.split(9), strict=True):
        sums.add(part, mark, places={"place": places}, weight=weight)
        histogram.add(part[mark])
    edge = coarse_edge(30.0)
    mask = (values >= edge) & marked
    assert 30.0 <= edge < 30.0 * 1.06
    assert sums.above(edge)["count"] == histogram.count_above(edge) == mask.sum()
    assert sums.above(edge)["weight"] == pytest.approx(weights[mask].sum().item(), rel=1e-12)
    expected = torch.bincount(places.expand(100, -1)[mask], minlength=7)
    assert torch.equal(sums.places_above("place", edge), expected)
    assert sums.total()["count"] == values.numel()
    assert sums.total()["weight"] == pytest.approx(weights.sum().item(), rel=1e-12)
    exact = np.quantile(values[mask].numpy(), 0.5, method="inverted_cdf")
    assert histogram.quantile(0.5, above=edge) == pytest.approx(exact, rel=0.0026)


def test_zero_and_huge_norms_are_counted():
    histogram = LogHistogram()
    histogram.add(torch.tensor([0.0, 1.0, 1e12]))
    assert histogram.count == 3 and int(histogram.counts.sum()) == 3


def test_nothing_has_no_median():
    with pytest.raises(ValueError, match="no quantile"):
        LogHistogram().quantile(0.5)
    with pytest.raises(ValueError, match="at least 1 values, got 0"):
        _ = Moments().mean


def test_numbers_that_json_lacks_become_null():
    assert as_json({"a": math.nan, 1: [torch.tensor([1, 2]), (3.0,)]}) == {"a": None, "1": [[1, 2], [3.0]]}
