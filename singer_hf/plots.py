"""Pictures of patch norms before (F) and after refinement (F̂): the paper's Figure 6, and where in an image they are.

matplotlib is an optional extra, imported when a picture is drawn. Figures are made without pyplot, so no display, no
global state: `figure.savefig("norms.png")`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .losses import norm_quantile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# Okabe and Ito's colours, told apart with every kind of colour blindness.
NORMAL_COLOR, OUTLIER_COLOR, MEDIAN_COLOR = "#0072B2", "#D55E00", "#000000"


@dataclass(frozen=True)
class NormPanel:
    """Patch norms of one distilled layer.

    Args:
        title: such as "block 5".
        before: (images, patches), ‖F‖₂.
        after: (images, patches), ‖F̂‖₂.
        grid: patches (rows, columns).
    """

    title: str
    before: Any
    after: Any
    grid: tuple[int, int]

    def __post_init__(self):
        before, after = _norms(self.before), _norms(self.after)
        if before.shape != after.shape or before.shape[1] != self.grid[0] * self.grid[1]:
            raise ValueError(
                f"{self.title}: norms before {tuple(before.shape)} and after {tuple(after.shape)} must both be "
                f"(images, patches), with the {self.grid[0]}x{self.grid[1]} patches of the grid."
            )


def patch_norms_figure(
    panels: Sequence[NormPanel],
    images: Any = None,
    *,
    quantile: float = 0.97,
    outliers: Sequence[Any] | None = None,
    title: str | None = None,
) -> Figure:
    """One row a layer: scatter of all patch norms before and after on the left, norm maps of some images on the right.

    Args:
        panels: the layers, in order.
        images: (images, H, W, 3) in 0 to 1 (or uint8), those of the first rows of `before` and `after`; two or three
            are enough. Without images there are no maps.
        quantile: α; patches above their image's α-quantile of ‖F‖ are coloured as outliers.
        outliers: in place of the quantile, one (images, patches) mask a panel.
        title: over the whole figure.

    Returns:
        A figure about 1,000 pixels wide when saved as it is.
    """
    if not panels:
        raise ValueError("No panel was given: one NormPanel for each distilled layer.")
    if outliers is not None and len(outliers) != len(panels):
        raise ValueError(f"{len(outliers)} outlier masks for {len(panels)} panels: one each is needed.")
    num_images = 0 if images is None else len(images)
    height = max(3.0, 1.05 * num_images + 0.6) * len(panels) + (0.4 if title else 0.0)
    figure = figure_class()(figsize=(10.0, height), dpi=100, layout="constrained")
    if title:
        figure.suptitle(title, fontsize=13)
    rows = figure.subfigures(len(panels), 1, squeeze=False)[:, 0]
    for index, (panel, row) in enumerate(zip(panels, rows, strict=True)):
        left, right = row.subfigures(1, 2, width_ratios=(1.35, 1)) if num_images else (row, None)
        mask = outliers[index] if outliers is not None else None
        axes = left.subplots()
        norm_scatter(axes, panel.before, panel.after, quantile, outliers=mask)
        axes.set_title(f"{panel.title}: patch norms of {len(panel.before)} images", fontsize=11)
        if right is not None:
            norm_map_grid(right, images, panel.before[:num_images], panel.after[:num_images], panel.grid)
    return figure


def norm_scatter(axes: Axes, before: Any, after: Any, quantile: float = 0.97, *, outliers: Any = None) -> None:
    """Every patch norm as a point: F on the left half, F̂ on the right, images side by side, outliers of F coloured.

    A point's height is its norm; its place on the x axis is its image's, in the order given. A patch keeps its colour
    on both sides, so where the outliers of F went can be seen.

    Args:
        axes: to draw on.
        before: (images, patches), ‖F‖₂.
        after: (images, patches), ‖F̂‖₂.
        quantile: α.
        outliers: (images, patches) mask in place of the quantile.
    """
    before, after = _norms(before), _norms(after)
    if outliers is None:
        mask, meaning = (before > norm_quantile(before, quantile)).numpy(), f"above its image's {quantile:g}-quantile"
    else:
        mask, meaning = torch.as_tensor(outliers).bool().cpu().numpy(), "outlier"
    images, patches = before.shape
    place = (np.arange(images * patches).reshape(images, patches) + 0.5) / (images * patches)
    for side, norms in enumerate((before.numpy(), after.numpy())):
        x = side * 1.08 + place
        axes.scatter(
            x[~mask], norms[~mask], s=5, alpha=0.35, linewidths=0, color=NORMAL_COLOR, label=None if side else "patch"
        )
        axes.scatter(
            x[mask], norms[mask], s=11, alpha=0.8, linewidths=0, color=OUTLIER_COLOR, label=None if side else meaning
        )
        median = float(np.median(norms))
        start = side * 1.08
        axes.plot([start, start + 1], [median, median], color=MEDIAN_COLOR, linewidth=1.2, linestyle="--")
        axes.annotate(
            f"median {median:.4g}, largest {norms.max():.4g}",
            (start + 0.5, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -5),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=9,
        )
    axes.set_xticks([0.5, 1.58], ["before: F", "after refinement: F̂"], fontsize=10)
    axes.set_xlim(-0.03, 2.11)
    axes.axvline(1.04, color="0.8", linewidth=0.8)
    axes.set_ylim(0, 1.18 * max(before.max().item(), after.max().item()))
    axes.set_xlabel("patch index, image after image")
    axes.set_ylabel("patch norm ‖·‖₂")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper right", bbox_to_anchor=(1.0, 0.92), frameon=False, fontsize=9, markerscale=2)


def norm_map_grid(
    figure: Figure | SubFigure, images: Any, before: Any, after: Any, grid: tuple[int, int]
) -> np.ndarray:
    """One row an image: the image, its map of ‖F‖₂, its map of ‖F̂‖₂, all maps on one colour scale.

    Args:
        figure: to draw on, or a part of one.
        images: (images, H, W, 3) in 0 to 1, or uint8.
        before: (images, patches).
        after: (images, patches).
        grid: patches (rows, columns).

    Returns:
        The axes, (images, 3).
    """
    before, after = _norms(before), _norms(after)
    if not len(images) == len(before) == len(after):
        raise ValueError(f"{len(images)} images, but norms of {len(before)} before and {len(after)} after.")
    axes = figure.subplots(len(images), 3, squeeze=False)
    highest = max(before.max().item(), after.max().item())
    for row, image, *norms in zip(axes, images, before, after, strict=True):
        row[0].imshow(np.asarray(image))
        for cell, values in zip(row[1:], norms, strict=True):
            drawn = cell.imshow(values.unflatten(0, grid).numpy(), cmap="cividis", vmin=0.0, vmax=highest)
    for cell in axes.flat:
        cell.set_xticks([])
        cell.set_yticks([])
    for cell, name in zip(axes[0], ("image", "‖F‖₂", "‖F̂‖₂"), strict=True):
        cell.set_title(name, fontsize=10)
    figure.colorbar(drawn, ax=axes[:, 1:], label="patch norm", fraction=0.06, pad=0.03)
    return axes


def _norms(values: Any) -> Tensor:
    """(images, patches) on the CPU in float32, whatever array it came as."""
    norms = torch.as_tensor(values).detach().float().cpu()
    if norms.ndim != 2:
        raise ValueError(f"Patch norms are (images, patches), got an array of shape {tuple(norms.shape)}.")
    return norms


def figure_class() -> type[Figure]:
    """matplotlib's Figure. Raises ImportError where it is not installed, with what to install."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Pictures need matplotlib, which is not installed: pip install singer_hf[demo]") from error
    return Figure
