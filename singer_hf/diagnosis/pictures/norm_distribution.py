"""Distribution of the patch norms of some layers, outliers coloured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...plots import MEDIAN_COLOR, NORMAL_COLOR, OUTLIER_COLOR, figure_class
from ..statistics import BIN_WIDTH, FINE_PER_COARSE, LOWEST, NUM_COARSE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..teacher import TeacherDiagnosis


def norm_distribution_figure(diagnosis: TeacherDiagnosis, layers: Sequence[int]) -> Figure:
    """One histogram a layer, on logarithmic axes: the norm relative to the median, and the number of patches.

    Both logarithmic, since artifacts are a few percent of the patches at several times the norm.
    """
    figure = figure_class()(figsize=(10.0, 3.0), dpi=100, layout="constrained")
    edges = LOWEST * np.exp(np.arange(NUM_COARSE + 1) * BIN_WIDTH * FINE_PER_COARSE)
    all_axes = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    for axes, layer in zip(all_axes, layers, strict=True):
        norms, outliers = diagnosis.layers[layer].norms, diagnosis.layers[layer].outliers
        counts, prominent = (
            histogram.counts.view(NUM_COARSE, FINE_PER_COARSE).sum(dim=1).numpy()
            for histogram in (norms, norms.prominent)
        )
        seen = np.flatnonzero(counts)
        span = slice(seen[0], seen[-1] + 1)
        relative = edges / norms.median
        centres = np.sqrt(relative[1:] * relative[:-1])[span]
        beyond = edges[:-1][span] >= outliers.threshold * (1 - 1e-6)
        marked, width = prominent[span] * beyond, np.diff(relative)[span]
        axes.bar(centres, marked, width=width, color=OUTLIER_COLOR, linewidth=0)
        axes.bar(centres, counts[span] - marked, width=width, bottom=marked, color=NORMAL_COLOR, linewidth=0)
        axes.axvline(outliers.threshold / norms.median, color=MEDIAN_COLOR, linewidth=1, linestyle="--")
        axes.set_xscale("log")
        axes.set_yscale("log")
        low, high = min(0.5, centres[0]), max(3.0, centres[-1] * 1.2)
        axes.set_xlim(low, high)
        ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50, 100) if low <= tick <= high]
        axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("patch norm over median")
        axes.set_title(
            f"block {layer}: {outliers.verdict if outliers.verdict != 'none' else 'no outliers'}"
            + (f", {outliers.share:.1%} of patches" if outliers.verdict != "none" else ""),
            fontsize=10,
        )
        axes.annotate(
            "τ", (outliers.threshold / norms.median, 1), xycoords=("data", "axes fraction"), xytext=(4, -12),
            textcoords="offset points",
        )  # fmt: skip
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].set_ylabel("patches in a bin of 5 %")
    return figure
