import statistics

import pytest
import torch

from singer_hf.metrics import GramDistance


def naive_distance(x, y):
    """‖G(X) − G(Y)‖_F of one image with loops over pairs of patches."""
    x, y = x.double(), y.double()
    total = 0.0
    for i in range(len(x)):
        for j in range(len(x)):
            cosines = [(f[i] @ f[j] / (f[i].norm() * f[j].norm())).item() for f in (x, y)]
            total += (cosines[0] - cosines[1]) ** 2
    return total**0.5


def test_distances_are_those_of_a_loop():
    x, y = torch.randn(6, 8, 5), torch.randn(6, 8, 3)
    y[3:] = 0.4 * y[3:] + x[3:, :, :3]
    distances = [naive_distance(*pair) for pair in zip(x, y, strict=True)]
    assert GramDistance().compute(predictions=x, references=y) == pytest.approx(
        {
            "gram_distance": statistics.mean(distances) / 8,
            "gram_distance_undivided": statistics.mean(distances),
            "gram_distance_undivided_std": statistics.pstdev(distances),
            "gram_distance_undivided_median": statistics.median_low(distances),
        },
        rel=1e-5,
    )


def test_images_of_different_numbers_of_patches_weigh_the_same():
    pairs = [(torch.randn(n, 5), torch.randn(n, 4)) for n in (3, 9)]
    result = GramDistance().compute(predictions=[x for x, _ in pairs], references=[y for _, y in pairs])
    distances = [naive_distance(*pair) for pair in pairs]
    assert result["gram_distance"] == pytest.approx((distances[0] / 3 + distances[1] / 9) / 2, rel=1e-5)
    assert result["gram_distance_undivided"] == pytest.approx(sum(distances) / 2, rel=1e-5)


def test_rotated_and_scaled_features_are_at_no_distance():
    x = torch.randn(2, 8, 5)
    rotation = torch.linalg.qr(torch.randn(5, 5)).Q
    result = GramDistance().compute(predictions=x, references=3 * x @ rotation)
    assert result["gram_distance_undivided"] == pytest.approx(0, abs=1e-5)


def test_closed_form():
    """Orthogonal patches against equal ones: all cosines but the diagonal differ by 1."""
    result = GramDistance().compute(predictions=torch.eye(4)[None], references=torch.ones(1, 4, 2))
    assert result["gram_distance_undivided"] == pytest.approx(12**0.5)
    assert result["gram_distance"] == pytest.approx(12**0.5 / 4)
    assert result["gram_distance_undivided_std"] == 0


def test_bad_inputs():
    x = torch.randn(2, 8, 5)
    metric = GramDistance()
    with pytest.raises(ValueError, match="same patches, got 8 and 7: leave out prefix tokens"):
        metric.add_batch(predictions=x, references=x[:, 1:])
    with pytest.raises(ValueError, match=r"patch features \(n, d\), got predictions and references of shapes \(5,\)"):
        metric.add_batch(predictions=x[0], references=x[0])
    with pytest.raises(ValueError, match="NaN or infinite"):
        metric.add_batch(predictions=x, references=x / 0)
