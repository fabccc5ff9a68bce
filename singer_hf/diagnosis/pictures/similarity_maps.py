"""Cosine similarity of one marked patch to all others, model beside model (the paper's Figures 2 and 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...losses import gram_matrix
from ...plots import OUTLIER_COLOR, figure_class

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def similarity_maps_figure(
    images: Any,
    features: Mapping[str, tuple[Tensor, tuple[int, int]]],
    marked: Sequence[tuple[float, float]],
) -> Figure:
    """One row an image: the image with its marked patch, then the map of each model.

    Args:
        images: (images, H, W, 3), uint8 or in 0 to 1.
        features: title of a column -> (patches (images, n, d), grid (rows, columns)). Grids may differ.
        marked: for each image the place of the marked patch, (y, x) as shares of height and width, in [0, 1).
    """
    images = np.asarray(images)
    columns = 1 + len(features)
    cell, aspect = min(2.6, 9.4 / columns), images.shape[1] / images.shape[2]
    width = columns * cell + 0.6
    figure = figure_class()(figsize=(width, len(images) * cell * aspect + 0.5), dpi=100, layout="constrained")
    axes = figure.subplots(len(images), columns, squeeze=False)
    maps = [
        [_cosines(patches[row], grid, place) for patches, grid in features.values()]
        for row, place in enumerate(marked)
    ]
    lowest = min(cosine.min() for of in maps for cosine in of)  # one scale, that shows small differences too
    for row, (image, (y, x)) in enumerate(zip(images, marked, strict=True)):
        axes[row, 0].imshow(image)
        _mark(axes[row, 0], (y * image.shape[0] - 0.5, x * image.shape[1] - 0.5))
        for column, cosine in enumerate(maps[row], start=1):
            drawn = axes[row, column].imshow(cosine, cmap="cividis", vmin=lowest, vmax=1.0)
            _mark(axes[row, column], (int(y * cosine.shape[0]), int(x * cosine.shape[1])))
    for cell_axes in axes.flat:
        cell_axes.set_xticks([])
        cell_axes.set_yticks([])
    for title, cell_axes in zip(("input", *features), axes[0], strict=True):
        cell_axes.set_title(title, fontsize=10)
    figure.colorbar(drawn, ax=axes[:, 1:], label="cosine to the marked patch", fraction=0.03, pad=0.01)
    return figure


def _cosines(patches: Tensor, grid: tuple[int, int], place: tuple[float, float]) -> np.ndarray:
    """(n, d) -> (rows, columns), to the patch at `place`."""
    marked = int(place[0] * grid[0]) * grid[1] + int(place[1] * grid[1])
    return gram_matrix(patches[None])[0, marked].reshape(grid).cpu().numpy()


def marked_places(outliers: Tensor, grid: tuple[int, int]) -> list[tuple[float, float]]:
    """For each image of `outliers` (images, n) bool, the patch nearest the centre that is none, as (y, x) shares."""
    rows, columns = grid
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
    distance = ((y - 0.5).square() + (x - 0.5).square()).flatten()
    places = []
    for image in outliers.cpu():
        best = int(torch.where(image, distance + 2, distance).argmin())
        places.append((y.flatten()[best].item(), x.flatten()[best].item()))
    return places


def _mark(axes: Any, place: tuple[float, float]) -> None:
    axes.plot(
        place[1], place[0], marker="o", markersize=8, markerfacecolor="none", markeredgecolor="white",
        markeredgewidth=3.2,
    )  # fmt: skip
    axes.plot(
        place[1], place[0], marker="o", markersize=8, markerfacecolor="none", markeredgecolor=OUTLIER_COLOR,
        markeredgewidth=1.8,
    )  # fmt: skip
