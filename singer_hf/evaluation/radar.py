"""Models compared on several tasks as a radar plot: the paper's Figure 1b."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from ..plots import figure_class

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with every kind of colour blindness; markers tell them apart in grey.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"


def radar_figure(
    scores: Mapping[str, Mapping[str, float]],
    *,
    lower_is_better: Collection[str] = (),
    title: str | None = None,
) -> Figure:
    """One axis a task, one outline a model; the best on a task lies on the rim, the worst on the inner ring.

    Each axis is scaled by itself, since scores have different units; both ends are written beside it.

    Args:
        scores: model -> axis -> score. Axes that not all models have are left out.
        lower_is_better: axes on which the least score is the best.
        title: over the figure.

    Raises:
        ValueError: fewer than three axes that all models have, no model, or more models than can be told apart.
    """
    if not 1 <= len(scores) <= len(_COLORS):
        raise ValueError(f"A radar plot shows 1 to {len(_COLORS)} models, got {len(scores)}.")
    first = next(iter(scores.values()))
    axes_names = [name for name in first if all(name in row for row in scores.values())]
    if len(axes_names) < 3:
        raise ValueError(
            f"A radar plot needs at least 3 axes that all models have, got {len(axes_names)} "
            f"({', '.join(axes_names) or 'none'}): evaluate all models on the same tasks."
        )
    figure = figure_class()(figsize=(7.0, 6.0), dpi=110, layout="constrained")
    axes = figure.add_subplot(projection="polar")
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    angles = [2 * math.pi * index / len(axes_names) for index in range(len(axes_names))]
    ends = {name: _ends([row[name] for row in scores.values()], name in lower_is_better) for name in axes_names}
    for (model, row), color, marker in zip(scores.items(), _COLORS, _MARKERS, strict=False):
        radii = [_radius(row[name], *ends[name]) for name in axes_names]
        closed = [*angles, angles[0]], [*radii, radii[0]]
        axes.plot(*closed, color=color, marker=marker, markersize=5, linewidth=1.8, label=model)
        axes.fill(*closed, color=color, alpha=0.08)
    labels = [
        f"{name}{' ↓' if name in lower_is_better else ''}\n{ends[name][0]:.4g} – {ends[name][1]:.4g}"
        for name in axes_names
    ]
    axes.set_xticks(angles, labels, fontsize=9)
    axes.tick_params(axis="x", pad=18)
    axes.set_ylim(0, 1.05)
    axes.set_yticks([_INNER, 1.0], [])
    axes.grid(color="0.85")
    axes.spines["polar"].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=12)
    figure.legend(loc="outside lower center", ncols=min(2, len(scores)), frameon=False, fontsize=9)
    return figure


_INNER = 0.35
"""Radius of the worst: away from the centre, where outlines could not be told apart."""


def _ends(values: list[float], lower_is_better: bool) -> tuple[float, float]:
    """Worst and best."""
    return (max(values), min(values)) if lower_is_better else (min(values), max(values))


def _radius(value: float, worst: float, best: float) -> float:
    return 1.0 if worst == best else _INNER + (1 - _INNER) * (value - worst) / (best - worst)
