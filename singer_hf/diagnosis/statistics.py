"""Statistics of a stream in bounded memory, exact or with a stated error, whatever the batches are.

Nothing here depends on the order of the values or on how they are cut into batches (but for the rounding of float64
sums), so what a stream gives is what all values at once give.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

LOWEST, HIGHEST = 1e-6, 1e8
"""Range of the logarithmic axis; values beyond it count in its outermost bins."""

BIN_WIDTH = 0.005
"""Width of a fine bin in ln(value): a quantile is off by at most half of it, 0.25 %."""

FINE_PER_COARSE = 10
"""Fine bins in a coarse one (5 % wide), by which what outliers carry is summed."""

NUM_COARSE = math.ceil(math.log(HIGHEST / LOWEST) / (BIN_WIDTH * FINE_PER_COARSE))
NUM_FINE = NUM_COARSE * FINE_PER_COARSE


def fine_bins(values: Tensor) -> Tensor:
    """Index of each value's fine bin, int64 of the same shape, on the CPU."""
    position = (values.detach().cpu().double().clamp(min=LOWEST) / LOWEST).log() / BIN_WIDTH
    return position.long().clamp(0, NUM_FINE - 1)


def coarse_edge(value: float) -> float:
    """The least coarse edge that is not below `value`: a threshold for which [`SumsByNorm`] is exact."""
    index = math.ceil(round(math.log(max(value, LOWEST) / LOWEST) / (BIN_WIDTH * FINE_PER_COARSE), 9))
    return LOWEST * math.exp(index * BIN_WIDTH * FINE_PER_COARSE)


def _coarse_index(edge: float) -> int:
    index = math.log(edge / LOWEST) / (BIN_WIDTH * FINE_PER_COARSE)
    if abs(index - round(index)) > 1e-6:
        raise ValueError(f"{edge} is no edge of the axis: take coarse_edge({edge}).")
    return round(index)


class Moments:
    """Count, mean and standard deviation of a stream of finite numbers."""

    def __init__(self) -> None:
        self.count, self._mean, self._squares = 0, 0.0, 0.0

    def add(self, values: Tensor) -> None:
        """Adds numbers of any shape (Chan et al.'s update of a mean and a sum of squared deviations)."""
        values = values.detach().flatten().cpu().double()
        if values.numel() == 0:
            return
        if not torch.isfinite(values).all():
            raise ValueError(
                "A statistic got NaN or infinite values: load the model in float32 or bfloat16, or look at its "
                "weights and at the images."
            )
        other = Moments()
        other.count, other._mean = values.numel(), values.mean().item()
        other._squares = (values - other._mean).square().sum().item()
        self._merge_moments(other)

    def _merge_moments(self, other: Moments) -> None:
        total, gap = self.count + other.count, other._mean - self._mean
        if total == 0:
            return
        self._squares += other._squares + gap**2 * self.count * other.count / total
        self._mean += gap * other.count / total
        self.count = total

    @property
    def mean(self) -> float:
        self._require(1)
        return self._mean

    @property
    def std(self) -> float:
        """Sample standard deviation (divided by n − 1); NaN of fewer than two values."""
        return math.sqrt(self._squares / (self.count - 1)) if self.count > 1 else math.nan

    def summary(self) -> dict[str, float | int]:
        """Count, mean and standard deviation by name."""
        return {"count": self.count, "mean": self.mean, "std": self.std}

    def _require(self, least: int) -> None:
        if self.count < least:
            raise ValueError(f"This statistic needs at least {least} values, got {self.count}.")


class LogHistogram(Moments):
    """Distribution of non-negative numbers on a fixed logarithmic axis: quantiles to 0.25 %, mean and spread exactly.

    Attributes:
        counts: (NUM_FINE,) int64.
        largest: greatest value, exact.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts = torch.zeros(NUM_FINE, dtype=torch.int64)
        self.largest = 0.0

    def add(self, values: Tensor) -> None:
        super().add(values)
        if values.numel():
            self.counts += torch.bincount(fine_bins(values).flatten(), minlength=NUM_FINE)
            self.largest = max(self.largest, values.max().item())

    def merge(self, other: LogHistogram) -> None:
        """Adds all values of another histogram."""
        self._merge_moments(other)
        self.counts += other.counts
        self.largest = max(self.largest, other.largest)

    def quantile(self, q: float, above: float = 0.0) -> float:
        """The q-quantile, to 0.25 %, of the values from the coarse edge `above` on (0: of all)."""
        counts = self.counts.clone()
        if above:
            counts[: _coarse_index(above) * FINE_PER_COARSE] = 0
        total = int(counts.sum())
        if total == 0:
            raise ValueError(f"No value lies above {above:g}, so there is no quantile of such values.")
        cumulated = counts.cumsum(0)
        index = int(torch.searchsorted(cumulated, max(1, math.ceil(q * total))))
        return min(LOWEST * math.exp((index + 0.5) * BIN_WIDTH), self.largest)

    @property
    def median(self) -> float:
        return self.quantile(0.5)

    @property
    def log_mad(self) -> float:
        """Median absolute deviation of ln(value) from its median, to half a bin."""
        self._require(1)
        centres = (torch.arange(NUM_FINE, dtype=torch.float64) + 0.5) * BIN_WIDTH
        deviation = (centres - math.log(self.median / LOWEST)).abs()
        order = deviation.argsort()
        cumulated = self.counts[order].cumsum(0)
        return deviation[order][int(torch.searchsorted(cumulated, math.ceil(self.count / 2)))].item()

    def share_above(self, edge: float) -> float:
        """Share of the values from a coarse edge on."""
        return self.count_above(edge) / self.count

    def count_above(self, edge: float) -> int:
        """Number of values from a coarse edge on."""
        return int(self.counts[_coarse_index(edge) * FINE_PER_COARSE :].sum())

    def summary(self) -> dict[str, float | int]:
        quantiles = {f"p{round(100 * q):02d}": self.quantile(q) for q in (0.05, 0.25, 0.75, 0.95, 0.99)}
        return super().summary() | {"median": self.median, "largest": self.largest} | quantiles


class SumsByNorm:
    """Sums of quantities of patches: over all, and over marked ones by the coarse bin of their norm.

    The threshold of outliers is known only behind the last image. With these, what outliers carry of each quantity is
    known then too, without a second pass and without keeping a patch.

    Args:
        names: of the quantities; "count" is always there.
        sizes: name -> length of a quantity that is a vector of each patch, e.g. a one-hot place in the image.
    """

    def __init__(self, *names: str, sizes: dict[str, int] | None = None) -> None:
        self._sums = {name: torch.zeros(NUM_COARSE, dtype=torch.float64) for name in ("count", *names)}
        self._totals = dict.fromkeys(self._sums, 0.0)
        self._places = {name: torch.zeros(NUM_COARSE * size) for name, size in (sizes or {}).items()}
        self._places = {name: sums.long() for name, sums in self._places.items()}

    def add(self, norms: Tensor, marked: Tensor, places: dict[str, Tensor] | None = None, **values: Tensor) -> None:
        """Adds patches.

        Args:
            norms: (B, n).
            marked: (B, n) bool, those that may count as outliers.
            places: name -> (B, n) or (n,) int64, in 0 … size − 1; what is summed is how often each occurs.
            values: name -> (B, n) or (n,).
        """
        marked = marked.cpu()
        flat = fine_bins(norms[marked.to(norms.device)]) // FINE_PER_COARSE
        self._sums["count"] += torch.bincount(flat, minlength=NUM_COARSE)
        self._totals["count"] += norms.numel()
        for name, value in values.items():
            value = value.detach().cpu().double().expand(marked.shape)
            self._sums[name] += torch.bincount(flat, weights=value[marked], minlength=NUM_COARSE)
            self._totals[name] += value.sum().item()
        for name, place in (places or {}).items():
            size = len(self._places[name]) // NUM_COARSE
            combined = flat * size + place.cpu().expand(marked.shape)[marked]
            self._places[name] += torch.bincount(combined, minlength=NUM_COARSE * size)

    def above(self, edge: float) -> dict[str, float]:
        """Sums over the marked patches whose norm reaches the coarse edge."""
        return {name: sums[_coarse_index(edge) :].sum().item() for name, sums in self._sums.items()}

    def total(self) -> dict[str, float]:
        """Sums over all patches."""
        return dict(self._totals)

    def places_above(self, name: str, edge: float) -> Tensor:
        """(size,) how often each place occurs among the marked patches whose norm reaches the coarse edge."""
        return self._places[name].view(NUM_COARSE, -1)[_coarse_index(edge) :].sum(dim=0)


def as_json(value: Any) -> Any:
    """Tensors as lists, and numbers that JSON lacks (NaN) as None, in nested dicts and lists."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
