import math

import pytest
import torch

from singer_hf.diagnosis.outliers import OutlierRule, PatchNorms, find_outliers, median_excess

GENERATOR = torch.Generator()


@pytest.fixture(autouse=True)
def seeded_generator():
    GENERATOR.manual_seed(0)


def normal(count, mean, deviation):
    return mean + deviation * torch.randn(count, generator=GENERATOR, dtype=torch.float64)


def uniform(count, low, high):
    return low + (high - low) * torch.rand(count, generator=GENERATOR, dtype=torch.float64)


def patch_norms(values):
    """Of one image with all these norms."""
    norms = PatchNorms(min_ratio=2.0)
    norms.add(values[None])
    return norms


def verdict(*log_norms, rule=None):
    return find_outliers(patch_norms(torch.cat(log_norms).exp()), rule or OutlierRule())


def of_images(norms):
    """The verdict on (images, patches)."""
    statistics = PatchNorms(min_ratio=2.0)
    for batch in norms.split(7):
        statistics.add(batch)
    return find_outliers(statistics, OutlierRule())


def test_images_whose_norms_are_all_high_have_no_artifacts():
    """Night scenes, blank pages: a second mode of the pooled norms, but nothing that stands out of its image."""
    norms = normal(20_000, 3.0, 0.08).exp().view(100, 200)
    norms[:5] *= 3
    found = of_images(norms)
    assert verdict(norms.log().flatten()).are_artifacts  # which a rule on pooled norms would say
    assert found.verdict == "none" and found.count == 0


def test_artifacts_are_found_beside_images_whose_norms_are_all_high():
    norms = normal(20_000, 3.0, 0.08).exp().view(100, 200)
    norms[:5] *= 3
    norms[5:60, 10:14] *= 6
    found = of_images(norms)
    assert found.are_artifacts and found.count == 55 * 4
    assert found.ratio == pytest.approx(6, rel=0.05)


def test_artifacts_of_an_image_whose_norms_are_all_high_count():
    norms = normal(20_000, 3.0, 0.08).exp().view(100, 200)
    norms[:5] *= 3
    norms[:60, 10:14] *= 6
    assert of_images(norms).count == 60 * 4


def test_a_second_mode_is_found_with_its_share_and_ratio():
    found = verdict(normal(19_600, math.log(20), 0.1), normal(400, math.log(100), 0.1))
    assert found.are_artifacts and found.count == 400
    assert found.share == pytest.approx(0.02) and found.ratio == pytest.approx(5, rel=0.02)
    assert found.valley < 0.01


def test_a_mode_close_to_the_threshold_is_found_by_its_valley():
    found = verdict(normal(19_600, 3.0, 0.12), normal(400, 3.0 + math.log(2.6), 0.04))
    assert found.are_artifacts and found.excess < 2.5 and found.valley < 0.5


def test_a_plateau_without_a_valley_is_found_by_its_reach():
    """The shape of planted artifacts: of every strength from none to ten times the median."""
    found = verdict(normal(19_000, 3.0, 0.1), uniform(1_000, 3.0, 3.0 + math.log(10)))
    assert found.are_artifacts and found.valley > 0.5 and found.excess > 2.5


@pytest.mark.parametrize("deviation", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("count", [2_000, 200_000])
def test_log_normal_norms_have_none(deviation, count):
    assert verdict(normal(count, 3.0, deviation)).verdict == "none"


def test_nearly_equal_norms_have_no_outliers_at_five_percent_more():
    assert verdict(normal(19_600, 3.0, 0.002), normal(400, 3.05, 0.002)).count == 0


@pytest.mark.parametrize("seed", range(5))
def test_heavy_tails_of_one_population_are_not_artifacts(seed):
    GENERATOR.manual_seed(seed)
    laplace = torch.distributions.Laplace(torch.tensor(3.0, dtype=torch.float64), 0.25)
    torch.manual_seed(seed)
    assert verdict(laplace.sample((50_000,))).verdict == "heavy tail"
    student = torch.distributions.StudentT(torch.tensor(3.0, dtype=torch.float64))
    assert verdict(3 + 0.1 * student.sample((50_000,))).verdict in ("heavy tail", "none")


def test_the_median_excess_of_a_laplace_tail_is_its_scale():
    torch.manual_seed(0)
    laplace = torch.distributions.Laplace(torch.tensor(3.0, dtype=torch.float64), 0.25)
    histogram = patch_norms(laplace.sample((200_000,)).exp())
    found = find_outliers(histogram, OutlierRule())
    assert median_excess(histogram, found.threshold) == pytest.approx(math.log(2) / (1.4826 * math.log(2)), abs=0.08)


def test_a_share_below_the_least_is_no_artifact():
    body, few = normal(100_000, 3.0, 0.1), normal(50, 5.0, 0.1)
    assert verdict(body, few).verdict == "none"
    assert verdict(body, few, rule=OutlierRule(min_share=1e-4)).are_artifacts


def test_the_scale_of_norms_does_not_matter():
    parts = normal(9_800, 0.0, 0.1), normal(200, 1.6, 0.1)
    small, large = verdict(*(p - 4 for p in parts)), verdict(*(p + 6 for p in parts))
    assert (small.count, small.verdict) == (large.count, large.verdict)
    assert large.threshold / small.threshold == pytest.approx(math.exp(10), rel=0.06)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0.0}, "k must be positive"),
        ({"min_ratio": 1.0}, "must be above 1"),
        ({"min_share": 0.0}, "min_share must lie strictly between 0 and 1"),
        ({"max_valley": 1.5}, "max_valley"),
        ({"min_excess": -1.0}, "min_excess"),
        ({"min_patches": 0}, "min_patches must be at least 1"),
    ],
)
def test_rules_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        OutlierRule(**options)


def test_too_few_images_are_told_how_many_are_needed():
    with pytest.raises(ValueError, match="3 images of 16 patches are 48 patches.*give at least 63 images"):
        OutlierRule().require(3, 16)
