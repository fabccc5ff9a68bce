"""At which places of the image outliers occur."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...plots import figure_class
from ..positions import map_cells, map_shape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..teacher import TeacherDiagnosis


def places_figure(diagnosis: TeacherDiagnosis, layers: Sequence[int]) -> Figure:
    """One map a layer: the share of images whose patch there is an outlier, in percent; all on one scale."""
    grid = diagnosis.layout.grid
    patches = np.bincount(map_cells(grid).numpy(), minlength=np.prod(map_shape(grid))).reshape(map_shape(grid))
    figure = figure_class()(figsize=(10.0, 3.0), dpi=100, layout="constrained")
    axes = figure.subplots(1, len(layers), squeeze=False)[0]
    shares = []
    for layer in layers:
        traits = diagnosis.layers[layer].traits
        places = np.zeros(patches.shape) if traits is None else np.asarray(traits.places)
        shares.append(100 * places / (patches * diagnosis.images))
    highest = max(1.0, *(share.max() for share in shares))
    for cell, layer, share in zip(axes, layers, shares, strict=True):
        drawn = cell.imshow(share, cmap="cividis", vmin=0, vmax=highest)
        cell.set_xticks([])
        cell.set_yticks([])
        cell.set_title(f"block {layer}", fontsize=10)
    figure.colorbar(drawn, ax=axes, label="images with an outlier there (%)", fraction=0.03, pad=0.01)
    return figure
