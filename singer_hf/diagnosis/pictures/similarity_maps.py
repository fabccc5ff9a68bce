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
        images: (images, H, W, 3) in 0 to 1.
        features: title of a column -> (patches (images, n, d), grid (rows, columns)). Grids may differ.
        marked: for each image the place of the marked patch, (y, x) as shares of height and width, in [0, 1).
    """
    images = np.asarray(images)
    columns = 1 + len(features)
    cell, aspect = min(2.6, 9.4 / columns), images.shape[1] / images.shape[2]
    width = columns * cell + 0.6
    figure = figure_class()(figsize=(width, len(images) * cell * aspect + 0.5), dpi=100, layout="constrained")
    axes = figure.subplots(len(images), columns, squeeze=False)
    for row, (image, (y, x)) in enumerate(zip(images, marked, strict=True)):
        axes[row, 0].imshow(image)
        _mark(axes[row, 0], (y * image.shape[0] - 0.5, x * image.shape[1] - 0.5))
        for column, (patches, (rows, cols)) in enumerate(features.values(), start=1):
            place = (int(y * rows), int(x * cols))
            cosine = gram_matrix(patches[row : row + 1])[0, place[0] * cols + place[1]]
            drawn = axes[row, column].imshow(
                cosine.reshape(rows, cols).cpu().numpy(), cmap="cividis", vmin=-0.2, vmax=1.0
            )
            _mark(axes[row, column], place)
    for cell_axes in axes.flat:
        cell_axes.set_xticks([])
        cell_axes.set_yticks([])
    for title, cell_axes in zip(("input", *features), axes[0], strict=True):
        cell_axes.set_title(title, fontsize=10)
    figure.colorbar(drawn, ax=axes[:, 1:], label="cosine to the marked patch", fraction=0.03, pad=0.01)
    return figure


def marked_places(norms: Tensor, grid: tuple[int, int], threshold: float) -> list[tuple[float, float]]:
    """For each image of `norms` (images, n), the patch nearest to the centre that is no outlier, as (y, x) shares."""
    rows, columns = grid
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
    distance = ((y - 0.5).square() + (x - 0.5).square()).flatten()
    places = []
    for image in norms.cpu():
        best = int(torch.where(image < threshold, distance, distance + 2).argmin())
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
