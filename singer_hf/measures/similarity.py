"""Linear CKA, the similarity of two models' representations of the same samples (Kornblith et al. 2019, arXiv
1905.00414; the paper's Tables 2 and 8).

Everything is computed in float64: the denominators are differences of large sums where features have a large mean, as
those of Vision Transformers have.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Features whose spread is below a millionth of their size are constant: float32 carries hardly more digits than that,
# so what is left after centring would be rounding noise.
_CONSTANT = 1e-12  # ratio of squares


def linear_cka(x: Tensor, y: Tensor, *, unbiased: bool = False) -> float:
    """CKA(X, Y) = HSIC(X, Y) / √(HSIC(X, X) HSIC(Y, Y)) with linear kernels on centred features.

    1 for features that are equal up to an orthogonal map, a shift and a common scale, and also where n is not greater
    than the widths by much, unless `unbiased`: then the expectation is 0 for independent features of any n.

    Args:
        x: (n, d) features of one model.
        y: (n, d') features of the other, of the same samples.
        unbiased: with HSIC₁, the unbiased estimator (Song et al. 2012; for CKA: Nguyen et al. 2021, arXiv 2010.15327),
            in place of HSIC(X, Y) = ‖XᵀY‖²_F. May be slightly below 0.

    Raises:
        ValueError: x and y are no matrices of the same samples; fewer than 2 samples (4 if `unbiased`); values that
            are not finite; features that are the same for all samples.
    """
    _check_pair(x, y)
    _check_count(len(x), least=4 if unbiased else 2)
    x, y = x.double(), y.double()
    centred_x, centred_y = x - x.mean(dim=0), y - y.mean(dim=0)
    for name, raw, centred in (("x", x, centred_x), ("y", y, centred_y)):
        _check_varies(name, raw.square().sum(), centred.square().sum())
    xy, xx, yy = _squared_products(centred_x, centred_y)
    if unbiased:
        x_norms, y_norms = centred_x.square().sum(dim=1), centred_y.square().sum(dim=1)
        xy = _unbiased_hsic(xy, x_norms, y_norms)
        xx, yy = _unbiased_hsic(xx, x_norms, x_norms), _unbiased_hsic(yy, y_norms, y_norms)
        if min(xx, yy) <= 0:
            raise ValueError(
                f"Unbiased CKA is not defined for these {len(x)} samples: the estimated HSIC(X, X) = {xx.item():.3g} "
                f"or HSIC(Y, Y) = {yy.item():.3g} is not positive. Use more samples, or unbiased=False."
            )
    return _ratio(xy, xx, yy)


class LinearCKAStatistics:
    """Linear CKA of features that arrive in batches, in memory O((d + d')²) however many samples there are.

    All it keeps is `sums` = ZᵀZ of the rows z = (1, x, y), which holds n, the sums of x and y, and XᵀX, XᵀY and YᵀY.
    Statistics of several processes are therefore those of all samples after one sum reduction of one tensor,
    `statistics.sums = accelerator.reduce(statistics.sums, reduction="sum")`.

    Args:
        width: d.
        other_width: d'.
        device: where `sums` lies and the products are computed; features are moved there. It must know float64.

    Attributes:
        sums: (1 + d + d', 1 + d + d') float64.
    """

    def __init__(self, width: int, other_width: int, device: torch.device | str | None = None) -> None:
        if min(width, other_width) < 1:
            raise ValueError(f"Widths of features must be positive, got {width} and {other_width}.")
        self.width, self.other_width = width, other_width
        size = 1 + width + other_width
        self.sums = torch.zeros(size, size, dtype=torch.float64, device=device)

    @property
    def count(self) -> int:
        """Number of samples so far."""
        return round(self.sums[0, 0].item())

    def add(self, x: Tensor, y: Tensor) -> None:
        """Adds features x (n, d) and y (n, d') of the same n samples; n may be 0.

        Raises:
            ValueError: other shapes, or values that are not finite.
        """
        _check_pair(x, y)
        if (x.shape[1], y.shape[1]) != (self.width, self.other_width):
            raise ValueError(
                f"Expected features of widths {self.width} and {self.other_width}, got {x.shape[1]} and {y.shape[1]}."
            )
        x, y = x.detach().to(self.sums), y.detach().to(self.sums)
        rows = torch.cat([x.new_ones(len(x), 1), x, y], dim=1)
        self.sums += rows.T @ rows

    def merge(self, other: LinearCKAStatistics) -> None:
        """Adds the samples of other statistics.

        Raises:
            ValueError: they are of features of other widths.
        """
        if (other.width, other.other_width) != (self.width, self.other_width):
            raise ValueError(
                f"Cannot merge statistics of features of widths {other.width} and {other.other_width} into those of "
                f"widths {self.width} and {self.other_width}."
            )
        self.sums += other.sums.to(self.sums)

    def compute(self) -> float:
        """`linear_cka` of all samples added so far.

        Raises:
            ValueError: fewer than 2 samples; features that are the same for all samples.
        """
        _check_count(self.count, least=2)
        total = self.sums[0, 1:]
        raw = self.sums[1:, 1:]
        centred = raw - torch.outer(total, total) / self.sums[0, 0]
        x, y = slice(self.width), slice(self.width, None)
        for name, part in (("x", x), ("y", y)):
            _check_varies(name, raw[part, part].trace(), centred[part, part].trace())
        xy, xx, yy = (centred[block].square().sum() for block in ((x, y), (x, x), (y, y)))
        return _ratio(xy, xx, yy)


def _squared_products(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """‖XᵀY‖²_F, ‖XᵀX‖²_F, ‖YᵀY‖²_F, in the cheaper of two ways, since ‖XᵀY‖²_F = ⟨XXᵀ, YYᵀ⟩."""
    count, width, other_width = len(x), x.shape[1], y.shape[1]
    if width**2 + width * other_width + other_width**2 <= count * (width + other_width):
        return (x.T @ y).square().sum(), (x.T @ x).square().sum(), (y.T @ y).square().sum()
    x_gram, y_gram = x @ x.T, y @ y.T
    return (x_gram * y_gram).sum(), x_gram.square().sum(), y_gram.square().sum()


def _unbiased_hsic(squared_product: Tensor, x_norms: Tensor, y_norms: Tensor) -> Tensor:
    """n (n − 3) HSIC₁ of centred features, from ‖XᵀY‖²_F and the squared norms ‖x_i‖², ‖y_i‖², each (n,).

    HSIC₁ = [tr(K̃L̃) + 1ᵀK̃1 1ᵀL̃1 / ((n − 1)(n − 2)) − 2 / (n − 2) 1ᵀK̃L̃1] / (n (n − 3)), with K̃, L̃ the kernel matrices
    without their diagonals. It does not change when features are shifted; centred ones have K̃1 = −diag K.
    """
    n = len(x_norms)
    diagonal = (x_norms * y_norms).sum()
    return squared_product - n / (n - 2) * diagonal + x_norms.sum() * y_norms.sum() / ((n - 1) * (n - 2))


def _ratio(xy: Tensor, xx: Tensor, yy: Tensor) -> float:
    return (xy / (xx.sqrt() * yy.sqrt())).item()


def _check_pair(x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(
            f"CKA compares features (n, d) and (n, d') of the same n samples, got shapes {tuple(x.shape)} and "
            f"{tuple(y.shape)}: pool or flatten tokens first."
        )
    for name, features in (("x", x), ("y", y)):
        if not torch.isfinite(features).all():
            raise ValueError(f"CKA needs finite features, got NaN or infinite values in {name}.")


def _check_count(count: int, least: int) -> None:
    if count < least:
        raise ValueError(f"CKA of this form needs at least {least} samples, got {count}.")


def _check_varies(name: str, raw: Tensor, centred: Tensor) -> None:
    """`raw`, `centred`: sums of squares of the features before and after centring."""
    if centred <= _CONSTANT * raw:
        raise ValueError(f"CKA is not defined for constant features: those in {name} are the same for every sample.")
