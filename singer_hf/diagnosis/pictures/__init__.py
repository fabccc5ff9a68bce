"""Pictures of a diagnosis. Every function gives a matplotlib Figure about 1,000 pixels wide; nothing uses pyplot."""

from .layers import layers_figure
from .norm_distribution import norm_distribution_figure
from .norm_maps import norm_maps_figure
from .places import places_figure
from .similarity_maps import similarity_maps_figure
from .spectra import spectra_figure

__all__ = [
    "layers_figure",
    "norm_distribution_figure",
    "norm_maps_figure",
    "places_figure",
    "similarity_maps_figure",
    "spectra_figure",
]
