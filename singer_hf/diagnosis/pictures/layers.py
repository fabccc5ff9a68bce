"""All blocks at a glance: norms of patches and of outliers, and what outliers make up."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ...plots import NORMAL_COLOR, OUTLIER_COLOR, figure_class

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..teacher import TeacherDiagnosis


def layers_figure(diagnosis: TeacherDiagnosis) -> Figure:
    """Left: patch norms over depth, with their quantiles and the outliers. Right: outliers' share of patches, of the
    gradient and of the loss."""
    figure = figure_class()(figsize=(10.0, 4.0), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    blocks = np.arange(len(diagnosis.layers))
    norms = [layer.norms for layer in diagnosis.layers]
    median = [n.median for n in norms]
    left.fill_between(
        blocks,
        [n.quantile(0.05) for n in norms],
        [n.quantile(0.95) for n in norms],
        color=NORMAL_COLOR,
        alpha=0.2,
        linewidth=0,
        label="5 to 95 % of the patches",
    )
    left.plot(blocks, median, color=NORMAL_COLOR, linewidth=2, label="median")
    left.plot(blocks, [n.largest for n in norms], color="0.45", linewidth=1, linestyle=":", label="largest")
    left.plot(
        blocks,
        [layer.outliers.threshold for layer in diagnosis.layers],
        color="0.45",
        linewidth=1,
        linestyle="--",
        label="threshold τ",
    )
    marked = [layer for layer in diagnosis.layers if layer.outliers.share >= diagnosis.rule.min_share]
    if marked:
        left.plot(
            [layer.layer for layer in marked],
            [layer.outliers.median_norm for layer in marked],
            "o",
            color=OUTLIER_COLOR,
            markersize=5,
            label="median of the outliers",
        )
    left.set_yscale("log")
    _plain_log_ticks(left, [n.quantile(0.05) for n in norms], [n.largest for n in norms])
    left.set_ylabel("patch norm ‖F‖₂ (log scale)")
    left.set_title("Patch norms behind every block", fontsize=11)

    series = {"of the loss": [], "of the gradient": [], "of the patches": []}
    for layer in diagnosis.layers:
        traits = layer.traits
        series["of the loss"].append(100 * traits.loss_share if traits else 0.0)
        series["of the gradient"].append(100 * traits.gradient_share if traits else 0.0)
        series["of the patches"].append(100 * layer.outliers.share)
    for (name, values), color, marker in zip(
        series.items(), (OUTLIER_COLOR, "#E69F00", NORMAL_COLOR), ("o", "s", "^"), strict=True
    ):
        right.plot(blocks, values, color=color, marker=marker, markersize=4, linewidth=1.5, label=name)
    right.set_ylim(0, max(10.0, 1.15 * max(series["of the loss"])))
    right.set_ylabel("share that falls on outliers (%)")
    right.set_title("What outliers make up of a plain feature loss", fontsize=11)
    for axes in (left, right):
        axes.set_xlabel("block")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlim(-0.3, len(blocks) - 0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92")
    right.legend(frameon=False, fontsize=8.5)
    # Below the axes: the line of the largest norm may pass anywhere within them.
    left.legend(frameon=False, fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
    return figure


def _plain_log_ticks(axes, lowest, highest) -> None:
    """Ticks at 1, 2, 5 times powers of ten, written out, since the range is often less than a decade."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = min(lowest) * 0.9, max(highest) * 1.15
    axes.set_ylim(low, high)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**exponent for exponent in exponents for step in (1, 2, 5)]
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
