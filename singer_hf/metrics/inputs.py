"""What callers hand to a metric, as tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_tensor(values: Any) -> Tensor:
    """A tensor of a tensor, an array, an image, numbers, or a list of any of these that are of one shape."""
    if isinstance(values, (list, tuple)) and any(isinstance(value, Tensor) for value in values):
        return torch.stack([as_tensor(value) for value in values])
    # A copy: torch warns about arrays that cannot be written to, such as those of images.
    return values.detach() if isinstance(values, Tensor) else torch.from_numpy(np.array(values, order="C"))


def stacks(predictions: Sequence, references: Sequence, axes: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Predictions and references in pairs of stacks (B, ., .), on the device of the predictions.

    One pair if both came as one array; otherwise each sample is a stack of its own, since samples may differ in size.

    Args:
        axes: what the axes of one sample are, for the error.

    Raises:
        ValueError: samples that have not two axes.
    """
    whole = all(isinstance(values, (Tensor, np.ndarray)) for values in (predictions, references))
    for prediction, reference in [(predictions, references)] if whole else zip(predictions, references, strict=True):
        prediction, reference = as_tensor(prediction), as_tensor(reference)
        if not whole:
            prediction, reference = prediction[None], reference[None]
        if prediction.ndim != 3 or reference.ndim != 3:
            raise ValueError(
                f"Each sample must be {axes}, got predictions and references of shapes {tuple(prediction.shape[1:])} "
                f"and {tuple(reference.shape[1:])}."
            )
        yield prediction, reference.to(prediction.device)
