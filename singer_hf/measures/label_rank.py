"""Where a classifier's scores put the right class: what top-k accuracy is made of."""

from __future__ import annotations

import torch
from torch import Tensor


def label_rank(scores: Tensor, labels: Tensor) -> Tensor:
    """Number of classes that the scores put before the right one, 0 where it is first: (..., n), int64.

    A class comes before another if its score is greater, or equal and its index lower (so argmax decides, too): a
    classifier that gives every class the same score is right for class 0 only. Top-k accuracy is the share of ranks
    below k.

    Args:
        scores: (..., n, C) logits or probabilities; leading axes, say of several heads, are free.
        labels: (n,) int, or with the leading axes of the scores.

    Raises:
        ValueError: shapes that do not fit, labels that are no class indices, scores that are NaN.
    """
    if scores.ndim < 2 or labels.ndim < 1 or scores.shape[-2] != labels.shape[-1]:
        raise ValueError(
            f"Expected scores (n, classes) and one label for each, got shapes {tuple(scores.shape)} and "
            f"{tuple(labels.shape)}."
        )
    if labels.is_floating_point():
        raise ValueError(f"Expected class indices as labels, got {labels.dtype}.")
    classes = scores.shape[-1]
    labels = labels.long()
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        raise ValueError(
            f"Label {labels[outside][0].item()} is outside 0…{classes - 1}, the range of scores of {classes} classes."
        )
    if scores.isnan().any():
        raise ValueError("Scores hold NaN, which have no rank.")
    labels = labels.expand(scores.shape[:-1])[..., None]
    own = scores.gather(-1, labels)
    index = torch.arange(classes, device=scores.device)
    return ((scores > own) | ((scores == own) & (index < labels))).sum(dim=-1)
