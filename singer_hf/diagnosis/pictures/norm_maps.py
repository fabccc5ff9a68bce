"""Where in images the norms are high, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...plots import figure_class

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def norm_maps_figure(
    images: Any, norms: Mapping[str, Any], medians: Mapping[str, float], grid: tuple[int, int]
) -> Figure:
    """One row an image: the image, then a map of its patch norms for each layer, relative to the layer's median.

    Args:
        images: (images, H, W, 3), uint8 or in 0 to 1.
        norms: title of a column -> (images, patches).
        medians: title -> median patch norm of that layer over all images.
        grid: patches (rows, columns).
    """
    from matplotlib.colors import LogNorm

    columns = 1 + len(norms)
    cell = 9.3 / columns
    aspect = np.asarray(images).shape[1] / np.asarray(images).shape[2]
    figure = figure_class()(figsize=(10.0, len(images) * cell * aspect + 0.5), dpi=100, layout="constrained")
    axes = figure.subplots(len(images), columns, squeeze=False)
    relative = {title: torch.as_tensor(values).cpu() / medians[title] for title, values in norms.items()}
    highest = max(3.0, *(values.max().item() for values in relative.values()))
    scale = LogNorm(0.5, highest)
    for row, image in enumerate(np.asarray(images)):
        axes[row, 0].imshow(image)
        for column, values in enumerate(relative.values(), start=1):
            drawn = axes[row, column].imshow(values[row].unflatten(0, grid).numpy(), cmap="cividis", norm=scale)
    for cell_axes in axes.flat:
        cell_axes.set_xticks([])
        cell_axes.set_yticks([])
    for title, cell_axes in zip(("image", *relative), axes[0], strict=True):
        cell_axes.set_title(title, fontsize=10)
    bar = figure.colorbar(drawn, ax=axes[:, 1:], label="patch norm over median (log scale)", fraction=0.03, pad=0.01)
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50, 100) if tick <= highest]
    bar.set_ticks(ticks, labels=[f"{tick:g}×" for tick in ticks])
    bar.minorticks_off()
    return figure
