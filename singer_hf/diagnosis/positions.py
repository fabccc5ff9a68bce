"""Where in an image a patch is: on the border, at which place, and how little there is to see in it."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_CELLS = 16
"""Cells a side of the map of places: larger grids are pooled, so that memory does not grow with the image size."""


def border_mask(grid: tuple[int, int]) -> Tensor:
    """(rows * columns,) bool: the outermost ring of patches."""
    rows, columns = grid
    mask = torch.ones(rows, columns, dtype=torch.bool)
    mask[1:-1, 1:-1] = False
    return mask.flatten()


def map_shape(grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the map of places."""
    return min(grid[0], MAX_CELLS), min(grid[1], MAX_CELLS)


def map_cells(grid: tuple[int, int]) -> Tensor:
    """(rows * columns,) int64: the cell of the map that each patch falls into, row by row."""
    shape = map_shape(grid)
    rows, columns = (torch.arange(size) * cells // size for size, cells in zip(grid, shape, strict=True))
    return (rows[:, None] * shape[1] + columns[None]).flatten()


def variance_rank(variance: Tensor) -> Tensor:
    """(B, n) pixel variances -> (B, n) share of the image's patches that vary less, ties counted half; mean 1/2.

    0 is the emptiest patch of its image. Equal patches have equal ranks, so an image of one colour has 1/2 everywhere.
    """
    ordered = variance.sort(dim=1).values
    below = torch.searchsorted(ordered, variance.contiguous())
    up_to = torch.searchsorted(ordered, variance.contiguous(), right=True)
    return (below + up_to).double() / (2 * variance.shape[1])
