"""Which patches of a layer are outliers, and whether they are artifacts: the stated rule.

The norms of all patches of a layer, over all images, are seen on a logarithmic scale (norms are positive, and
artifacts are "several times" the others). Let m be the median of ln‖F‖ and s = 1.4826 MAD its robust standard
deviation.

    outlier     ‖F‖ ≥ τ = max(exp(m + k s), ρ exp(m)),  k = 5, ρ = 2, and ‖F‖ ≥ ρ times the median of its own image
    artifacts   outliers are at least 0.1 % of the patches (and ten of them), and a population of their own:
                either they form a mode: between the main mode and the highest density of ln‖F‖ above τ lies a valley
                of less than half that density; or they reach far beyond the body: the median of ln(‖F‖/τ) over
                the outliers is at least 2.5 s

A layer with as many outliers that are neither has a *heavy tail*: strong tokens, but no second population. τ is
rounded up to an edge of a 5 % grid, for which all sums of the pass are exact.

Why so: k = 5 robust deviations let 3·10⁻⁷ of a log-normal through. ρ = 2 keeps layers of nearly equal norms, where any
deviation is many MADs, from having "outliers" of 1.05 times the median (small ViTs: the largest norm of an image is
1.2 to 1.8 times its median). The condition on the own image: an artifact is one of a few patches beside the others of
its image. A few images whose norms are *all* high (dark, blank, of another kind) are a second mode of the pooled
norms, but no artifacts. A mode of its own is what Darcet et al. (2024, arXiv 2309.16588) found in the norms of
large ViTs; artifacts of every strength, as the planted ones are, fill a plateau without a valley, but a body's own
tail does not reach that far: half of it lies within 0.7 s of τ where ln‖F‖ is Laplace, within 1.3 s where it is
Student's with three degrees of freedom, within 2.1 s with two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from .statistics import BIN_WIDTH, LOWEST, NUM_FINE, LogHistogram, coarse_edge

NORMAL_CONSISTENCY = 1.4826
"""MAD × this is the standard deviation of a normal distribution."""


@dataclass(frozen=True)
class OutlierRule:
    """The numbers of the rule above.

    Args:
        k: robust standard deviations of ln‖F‖ above the median.
        min_ratio: ρ, least multiple of the median.
        min_share: least share of patches for a layer to have artifacts.
        min_outliers: least number of them.
        max_valley: greatest density in the valley, relative to the outliers' mode.
        min_excess: least median of ln(‖F‖/τ) of outliers, in multiples of s, where there is no such valley.
        min_patches: fewest patches on which the rule may decide.

    Raises:
        ValueError: a number out of its range.
    """

    k: float = 5.0
    min_ratio: float = 2.0
    min_share: float = 0.001
    min_outliers: int = 10
    max_valley: float = 0.5
    min_excess: float = 2.5
    min_patches: int = 1000

    def __post_init__(self):
        if self.k <= 0:
            raise ValueError(f"k must be positive, got {self.k}.")
        if self.min_ratio <= 1:
            raise ValueError(f"min_ratio is a multiple of the median and must be above 1, got {self.min_ratio}.")
        if not 0 < self.min_share < 1:
            raise ValueError(f"min_share must lie strictly between 0 and 1, got {self.min_share}.")
        if not 0 < self.max_valley < 1:
            raise ValueError(f"max_valley must lie strictly between 0 and 1, got {self.max_valley}.")
        if self.min_excess <= 0:
            raise ValueError(f"min_excess must be positive, got {self.min_excess}.")
        for name in ("min_outliers", "min_patches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")

    def require(self, images: int, patches_per_image: int) -> None:
        """Raises ValueError where the patches are too few to decide on, and says how many images are needed."""
        if images * patches_per_image < self.min_patches:
            needed = math.ceil(self.min_patches / patches_per_image)
            raise ValueError(
                f"{images} images of {patches_per_image} patches are {images * patches_per_image} patches; the "
                f"outlier rule needs {self.min_patches}: give at least {needed} images."
            )


def stands_out(norms: Tensor, min_ratio: float) -> Tensor:
    """(B, n) bool: patches whose norm reaches ρ times the median of their own image. `norms` (B, n)."""
    return norms >= min_ratio * norms.median(dim=1, keepdim=True).values


class PatchNorms(LogHistogram):
    """Norms of all patches of a layer, and beside them those that stand out of their own image.

    Args:
        min_ratio: ρ.

    Attributes:
        prominent: the norms of [`stands_out`].
    """

    def __init__(self, min_ratio: float) -> None:
        super().__init__()
        self.min_ratio, self.prominent = min_ratio, LogHistogram()

    def add(self, values: Tensor) -> None:
        """Adds the norms of images, (B, n)."""
        super().add(values)
        self.prominent.add(values[stands_out(values, self.min_ratio)])


@dataclass(frozen=True)
class Outliers:
    """What the rule says of one layer.

    Args:
        threshold: τ.
        count, share: outliers, and their share of the patches.
        median_norm: median norm of the outliers; NaN where there are none.
        ratio: that over the median norm of all patches.
        valley: density in the valley over that of the outliers' mode; 1 where there is no valley, NaN where there are
            too few outliers to tell.
        excess: median of ln(‖F‖/τ) of the outliers in multiples of s; NaN as before.
        verdict: "artifacts", "heavy tail" or "none".
    """

    threshold: float
    count: int
    share: float
    median_norm: float
    ratio: float
    valley: float
    excess: float
    verdict: str

    @property
    def are_artifacts(self) -> bool:
        return self.verdict == "artifacts"


def find_outliers(norms: PatchNorms, rule: OutlierRule) -> Outliers:
    """Applies the rule to the patch norms of a layer."""
    threshold = outlier_threshold(norms, rule)
    count = norms.prominent.count_above(threshold)
    share = count / norms.count
    median = norms.prominent.quantile(0.5, above=threshold) if count else math.nan
    many = share >= rule.min_share and count >= rule.min_outliers
    valley = valley_depth(norms, threshold) if many else math.nan
    excess = median_excess(norms, threshold) if many else math.nan
    if not many:
        verdict = "none"
    else:
        verdict = "artifacts" if valley <= rule.max_valley or excess >= rule.min_excess else "heavy tail"
    return Outliers(threshold, count, share, median, median / norms.median, valley, excess, verdict)


def outlier_threshold(norms: LogHistogram, rule: OutlierRule) -> float:
    """τ, rounded up to a coarse edge."""
    spread = math.exp(min(rule.k * NORMAL_CONSISTENCY * norms.log_mad, 50.0))
    return coarse_edge(norms.median * max(spread, rule.min_ratio))


def median_excess(norms: PatchNorms, threshold: float) -> float:
    """Median of ln(‖F‖/τ) over the outliers, in multiples of s (at least half a bin, the resolution of a MAD)."""
    excess = math.log(norms.prominent.quantile(0.5, above=threshold) / threshold)
    return excess / (NORMAL_CONSISTENCY * max(norms.log_mad, BIN_WIDTH / 2))


def valley_depth(norms: PatchNorms, threshold: float) -> float:
    """Least density of ln‖F‖ between the main mode and the outliers' mode, over the density of the latter.

    A kernel estimate; the bandwidth is Silverman's for the outliers alone, which are few: a bandwidth for all patches
    would show each of them as a mode.
    """
    bandwidth, first = _silverman_bandwidth(norms.prominent, threshold), _first_bin(threshold)
    counts = torch.cat(
        [norms.counts[:first], norms.prominent.counts[first:]]
    )  # what is high in a high image: left out
    density = gaussian_filter1d(counts.double().numpy(), bandwidth / BIN_WIDTH, mode="constant")
    main = int(density[:first].argmax())
    peak = first + int(density[first:].argmax())
    return float(density[main : peak + 1].min() / density[peak])


def _silverman_bandwidth(norms: LogHistogram, threshold: float) -> float:
    """0.9 min(σ, IQR / 1.34) n^(-1/5) of the logarithms of the norms above the threshold; at least two bins."""
    counts, positions = _above(norms, threshold)
    total = counts.sum()
    mean = (counts * positions).sum() / total
    deviation = ((counts * (positions - mean).square()).sum() / total).sqrt().item()
    quarters = [norms.quantile(q, above=threshold) for q in (0.25, 0.75)]
    spread = min(deviation, math.log(quarters[1] / quarters[0]) / 1.34)
    return max(0.9 * (spread or deviation) * total.item() ** -0.2, 2 * BIN_WIDTH)


def _first_bin(threshold: float) -> int:
    """Index of the fine bin that begins at the threshold, an edge."""
    return round(math.log(threshold / LOWEST) / BIN_WIDTH)


def _above(norms: LogHistogram, threshold: float) -> tuple[Tensor, Tensor]:
    """Counts (bins,) of the norms from the threshold on, and each bin's centre as ln(norm / LOWEST)."""
    counts = norms.counts.double().clone()
    counts[: _first_bin(threshold)] = 0
    return counts, (torch.arange(NUM_FINE, dtype=torch.float64) + 0.5) * BIN_WIDTH
