"""Spectra of the blocks' surrogates, and the rank that they allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ...plots import MEDIAN_COLOR, NORMAL_COLOR, OUTLIER_COLOR, figure_class
from ..spectrum import NULL_ENERGY, effective_nullity, null_energy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..teacher import TeacherDiagnosis


def spectra_figure(diagnosis: TeacherDiagnosis, blocks: Sequence[int], rank: int) -> Figure:
    """Left: singular values of W̃, relative to their median; the blocks that matter are coloured.
    Right: energy that the r smallest hold together, over r."""
    figure = figure_class()(figsize=(10.0, 3.6), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    coloured = dict(zip(blocks, (NORMAL_COLOR, OUTLIER_COLOR, "#009E73", "#CC79A7"), strict=False))
    for block, spectrum in enumerate(diagnosis.spectra):
        shown = block in coloured
        style = {"color": coloured[block], "linewidth": 2} if shown else {"color": "0.8", "linewidth": 0.8}
        label = f"block {block}" if shown else ("other blocks" if block == _first_other(diagnosis, coloured) else None)
        order = 2 if shown else 1
        left.plot(
            np.arange(1, len(spectrum.values) + 1), _relative(spectrum.values), label=label, zorder=order, **style
        )
        energy = [null_energy(spectrum.values, r) for r in range(1, len(spectrum.values) + 1)]
        if shown:
            label = f"block {block}: effective nullity {effective_nullity(spectrum.values)}"
        right.plot(
            np.arange(1, len(spectrum.values) + 1), np.maximum(energy, 1e-12), label=label, zorder=order, **style
        )
    left.axhline(1.0, color="0.6", linewidth=0.8, linestyle=":")
    left.set_xlabel("index of the singular value, largest first")
    left.set_ylabel("singular value over median")
    # Other blocks may go beyond: a planted or a massive direction would flatten all that matters.
    left.set_ylim(0, 1.1 * max(_relative(diagnosis.spectra[block].values).max() for block in coloured))
    left.set_title("Spectrum of the surrogate W̃", fontsize=11)
    right.axhline(NULL_ENERGY, color=MEDIAN_COLOR, linewidth=1, linestyle="--")
    right.axvline(rank, color=MEDIAN_COLOR, linewidth=1, linestyle=":")
    right.annotate(
        f"rank {rank}", (rank, 1), xycoords=("data", "axes fraction"), xytext=(4, -12), textcoords="offset points"
    )
    right.annotate(
        f"{NULL_ENERGY:.2%}", (1, NULL_ENERGY), xycoords=("axes fraction", "data"), xytext=(-4, 4), ha="right",
        textcoords="offset points",
    )  # fmt: skip
    right.set_yscale("log")
    right.set_ylim(1e-7, 10)
    right.set_xlabel("r")
    right.set_ylabel("Σ σ² of the r smallest, over d · median(σ)²")
    right.set_title("How null the r smallest are", fontsize=11)
    for axes in (left, right):
        axes.set_xlim(0, len(diagnosis.spectra[0].values) + 1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8.5, loc="lower right" if axes is right else "upper right")
    return figure


def _relative(values: Tensor) -> Tensor:
    """Singular values over their median."""
    return values / (values.median().item() or 1.0)


def _first_other(diagnosis: TeacherDiagnosis, coloured) -> int | None:
    return next((block for block in range(len(diagnosis.spectra)) if block not in coloured), None)
