import pytest
import torch

from singer_hf.measures.similarity import LinearCKAStatistics, linear_cka


def pair(n=40, d=7, other=5, mean=3.0):
    x = torch.randn(n, d, dtype=torch.float64)
    y = 0.5 * x @ torch.randn(d, other, dtype=torch.float64) + torch.randn(n, other, dtype=torch.float64)
    return x + mean, y - mean


def naive_hsic(x, y):
    """tr(KHLH), with the centring matrix written out."""
    n = len(x)
    centring = torch.eye(n, dtype=torch.float64) - 1 / n
    return torch.trace(x @ x.T @ centring @ y @ y.T @ centring).item()


def naive_unbiased_hsic(x, y):
    """The U-statistic by its definition: a mean over all ordered quadruples of distinct samples (n (n − 1) (n − 2)
    (n − 3) of them) of k_ij (l_ij + l_qr − 2 l_iq)."""
    left, right, n = (x @ x.T).tolist(), (y @ y.T).tolist(), len(x)
    total, number = 0.0, 0
    for i in range(n):
        for j in range(n):
            for q in range(n):
                for r in range(n):
                    if len({i, j, q, r}) == 4:
                        total += left[i][j] * (right[i][j] + right[q][r] - 2 * right[i][q])
                        number += 1
    return total / number


def ratio(hsic, x, y):
    return hsic(x, y) / (hsic(x, x) * hsic(y, y)) ** 0.5


@pytest.mark.parametrize("n, d, other", [(40, 7, 5), (6, 30, 50), (12, 1, 90)])
def test_both_forms_agree_with_the_definition(n, d, other):
    x, y = pair(n, d, other)
    assert linear_cka(x, y) == pytest.approx(ratio(naive_hsic, x, y), rel=1e-10)


@pytest.mark.parametrize("n, d, other", [(7, 2, 3), (6, 9, 4)])
def test_unbiased_form_agrees_with_the_definition(n, d, other):
    x, y = pair(n, d, other)
    assert linear_cka(x, y, unbiased=True) == pytest.approx(ratio(naive_unbiased_hsic, x, y), rel=1e-9)


def test_bias_of_wide_independent_features():
    values = torch.tensor([
        [linear_cka(x, y), linear_cka(x, y, unbiased=True)]
        for x, y in ((torch.randn(20, 100), torch.randn(20, 100)) for _ in range(40))
    ])  # fmt: skip
    biased, unbiased = values.mean(dim=0).tolist()
    assert biased > 0.7
    assert abs(unbiased) < 0.05


@pytest.mark.parametrize("unbiased", [False, True])
def test_invariances(unbiased):
    x, y = pair()
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    expected = linear_cka(x, y, unbiased=unbiased)
    assert linear_cka(x, 7 * y @ rotation + 2, unbiased=unbiased) == pytest.approx(expected)
    assert linear_cka(y, x, unbiased=unbiased) == pytest.approx(expected)
    assert linear_cka(y, y @ rotation, unbiased=unbiased) == pytest.approx(1)
    assert 0 < expected < 1


def test_orthogonal_features_share_nothing():
    x = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    y = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    assert linear_cka(x, y) == 0


def test_a_large_mean_does_not_hide_half_precision_features():
    x, y = pair(n=64)
    x, y = (x + 100).half(), (y + 100).half()
    assert linear_cka(x, y) == pytest.approx(ratio(naive_hsic, x.double(), y.double()), rel=1e-8)
    statistics = LinearCKAStatistics(7, 5)
    statistics.add(x, y)
    assert statistics.compute() == pytest.approx(linear_cka(x, y), rel=1e-8)


def test_batches_merged_and_summed_statistics_are_those_of_all_samples():
    x, y = pair(n=50)
    parts = [LinearCKAStatistics(7, 5) for _ in range(3)]
    for start in range(0, 50, 8):
        parts[start // 8 % 3].add(x[start : start + 8], y[start : start + 8])
    parts[0].add(x[:0], y[:0])
    reduced = LinearCKAStatistics(7, 5)
    reduced.sums = torch.stack([part.sums for part in parts]).sum(dim=0)
    merged = LinearCKAStatistics(7, 5)
    for part in parts:
        merged.merge(part)
    for statistics in (reduced, merged):
        assert statistics.count == 50
        assert statistics.compute() == pytest.approx(linear_cka(x, y), rel=1e-10)


def test_statistics_keep_no_graph():
    x, y = (features.requires_grad_() for features in pair())
    statistics = LinearCKAStatistics(7, 5)
    statistics.add(x, y)
    assert not statistics.sums.requires_grad


def test_too_few_samples():
    x, y = pair(n=3)
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        linear_cka(x[:1], y[:1])
    with pytest.raises(ValueError, match="at least 4 samples, got 3"):
        linear_cka(x, y, unbiased=True)
    statistics = LinearCKAStatistics(7, 5)
    with pytest.raises(ValueError, match="at least 2 samples, got 0"):
        statistics.compute()


@pytest.mark.parametrize("value", [0.0, 0.1, 1234.567])
def test_constant_features(value):
    x, _ = pair()
    constant = torch.full((40, 5), value)
    with pytest.raises(ValueError, match="in y are the same for every sample"):
        linear_cka(x, constant)
    statistics = LinearCKAStatistics(5, 7)
    for start in range(0, 40, 7):
        statistics.add(constant[start : start + 7], x[start : start + 7])
    with pytest.raises(ValueError, match="in x are the same for every sample"):
        statistics.compute()


def test_other_shapes_and_values():
    x, y = pair()
    with pytest.raises(ValueError, match=r"\(40, 7\) and \(39, 5\)"):
        linear_cka(x, y[1:])
    with pytest.raises(ValueError, match=r"\(1, 40, 7\) and \(1, 40, 5\): pool or flatten"):
        LinearCKAStatistics(7, 5).add(x[None], y[None])
    with pytest.raises(ValueError, match="widths 5 and 7, got 7 and 5"):
        LinearCKAStatistics(5, 7).add(x, y)
    with pytest.raises(ValueError, match="of widths 7 and 5 into those of widths 5 and 7"):
        LinearCKAStatistics(5, 7).merge(LinearCKAStatistics(7, 5))
    with pytest.raises(ValueError, match="must be positive, got 0 and 3"):
        LinearCKAStatistics(0, 3)
    y[3, 2] = torch.nan
    with pytest.raises(ValueError, match="infinite values in y"):
        linear_cka(x, y)
