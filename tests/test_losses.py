import pytest
import torch

from singer_hf.artifacts import outlier_norm_share, peak_to_median
from singer_hf.losses import gram_distance, gram_loss, gram_matrix, kd_loss, norm_quantile, outlier_loss, patch_norms


def naive_outlier_loss(norms, quantile, power, least=0.0):
    """METHOD's formula with loops: the mean over all patches, of all images, above their image's quantile.

    `least`: patches whose norm is not above it count, but add nothing.
    """
    values, counted = [], 0
    for row in norms.tolist():
        ordered = sorted(row)
        position = quantile * (len(row) - 1)
        low = int(position)
        high = min(low + 1, len(row) - 1)
        threshold = ordered[low] + (position - low) * (ordered[high] - ordered[low])
        values += [(norm - threshold) ** power for norm in row if norm > max(threshold, least)]
        counted += sum(norm > threshold for norm in row)
    return sum(values) / counted if values else 0.0


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.97])
def test_outlier_loss_is_methods_formula(power, quantile):
    norms = torch.rand(3, 40, dtype=torch.float64) * 10
    assert outlier_loss(norms, quantile, power).item() == pytest.approx(naive_outlier_loss(norms, quantile, power))


@pytest.mark.parametrize("count", [1, 2, 3, 101, 196, 256])
@pytest.mark.parametrize("quantile", [1e-3, 0.25, 0.5, 0.9, 0.97, 0.999])
def test_the_quantile_is_torchs(count, quantile):
    norms = torch.rand(4, count, dtype=torch.float64)
    norms[1, : count // 2] = 0.5  # equal norms, as a constant background gives
    expected = torch.quantile(norms, quantile, dim=1, keepdim=True)
    torch.testing.assert_close(norm_quantile(norms, quantile), expected, rtol=1e-14, atol=0)
    # torch computes the position in the norms' own precision.
    torch.testing.assert_close(norm_quantile(norms.float(), quantile), expected.float(), rtol=1e-6, atol=0)


def test_outlier_loss_without_outliers_is_zero():
    norms = torch.full((2, 10), 3.0, requires_grad=True)
    loss = outlier_loss(norms, 0.97)
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(norms.grad, torch.zeros(2, 10))


@pytest.mark.parametrize("power", [1, 2])
def test_outliers_may_have_to_be_far_above_the_batchs_median(power):
    norms = torch.rand(3, 41, dtype=torch.float64) + 1
    norms[0, :3] = torch.tensor([9.0, 5.0, 3.05])
    norms[1, :9] = 8.0  # more than the quantile leaves above itself
    least = 2.0 * sorted(norms.flatten().tolist())[61]
    found = outlier_loss(norms, 0.9, power, min_ratio=2.0)
    assert found.item() == pytest.approx(naive_outlier_loss(norms, 0.9, power, least))
    assert 0 < found < outlier_loss(norms, 0.9, power)
    alone = outlier_loss(norms[:1], 0.9, power, min_ratio=2.0)
    assert 0 < alone < outlier_loss(norms[:1], 0.9, power)
    plain = norms.clamp(max=2.0).requires_grad_(True)
    assert outlier_loss(plain, 0.9, power) > 0
    none = outlier_loss(plain, 0.9, power, min_ratio=2.0)
    none.backward()
    assert none.item() == 0 and torch.equal(plain.grad, torch.zeros_like(plain))


def test_the_quantile_is_not_differentiated_through():
    norms = torch.tensor([[1.0, 2.0, 3.0, 10.0]], requires_grad=True)
    outlier_loss(norms, 0.5).backward()
    torch.testing.assert_close(norms.grad, torch.tensor([[0.0, 0.0, 0.5, 0.5]]))


def test_outlier_loss_of_a_batch_is_the_mean_of_its_halves():
    norms = torch.rand(4, 50)
    halves = [outlier_loss(part, 0.9) for part in norms.chunk(2)]
    torch.testing.assert_close(outlier_loss(norms, 0.9), sum(halves) / 2)


def test_gram_matrix_holds_cosines():
    patches = torch.randn(2, 5, 7)
    expected = torch.nn.functional.cosine_similarity(patches[:, :, None], patches[:, None], dim=-1)
    torch.testing.assert_close(gram_matrix(patches), expected)


def test_gram_loss_sees_directions_alone():
    patches = torch.randn(2, 5, 7)
    assert gram_loss(patches, 3.0 * patches).item() == pytest.approx(0, abs=1e-12)
    other = torch.randn(2, 5, 3)
    torch.testing.assert_close(gram_loss(patches, other), ((gram_matrix(patches) - gram_matrix(other)) ** 2).mean())


def test_gram_distance_is_the_frobenius_norm_over_patches():
    a, b = torch.randn(3, 6, 4), torch.randn(3, 6, 8)
    expected = [(gram_matrix(a[i : i + 1]) - gram_matrix(b[i : i + 1])).norm().item() / 6 for i in range(3)]
    assert gram_distance(a, b).tolist() == pytest.approx(expected)


def test_losses_of_half_precision_features_are_float32():
    patches = torch.randn(2, 5, 7).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert kd_loss(patches, patches).dtype == torch.float32
        assert patch_norms(patches).dtype == torch.float32
        assert gram_matrix(patches).dtype == torch.float32


def test_double_precision_is_kept():
    assert gram_matrix(torch.randn(1, 3, 3, dtype=torch.float64)).dtype == torch.float64


def test_artifact_statistics_of_a_planted_artifact():
    norms = torch.ones(2, 100)
    norms[:, 7] = 10.0
    assert peak_to_median(norms).item() == pytest.approx(10)
    assert outlier_norm_share(norms, 0.97).item() == pytest.approx(10 / 109)
    assert outlier_norm_share(torch.ones(2, 100), 0.97).item() == 0
    assert norm_quantile(norms, 0.5).shape == (2, 1)
