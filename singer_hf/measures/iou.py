"""Intersection over union and the accuracies of semantic segmentation, from counts of pixels that may be added up."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def class_counts(prediction: Tensor, reference: Tensor, num_labels: int, ignore_index: int | None = None) -> Tensor:
    """Counts of pixels for each image and class: (..., 3, C) int64, the three being those where prediction and
    reference agree on the class, those predicted as it, and those of the reference.

    Counts of images add up to those of a set. Leading axes broadcast, so that many heads (K, B, H, W) can be compared
    with one reference (B, H, W).

    Args:
        prediction: (..., H, W) class indices.
        reference: (..., H, W) class indices.
        num_labels: C.
        ignore_index: pixels of this value in the reference are not counted at all; where it is predicted, no class is,
            which is wrong at every pixel that counts.

    Raises:
        ValueError: maps of different sizes, or that do not hold class indices; labels outside 0…C − 1 that are not
            `ignore_index` (in predictions, only at pixels that count).
    """
    for name, labels in (("Predictions", prediction), ("References", reference)):
        if labels.is_floating_point():
            raise ValueError(f"{name} must be maps of class indices, got {labels.dtype}: take scores' argmax first.")
    if prediction.ndim < 2 or prediction.shape[-2:] != reference.shape[-2:]:
        raise ValueError(
            f"Prediction and reference must be maps of one size, got {tuple(prediction.shape)} and "
            f"{tuple(reference.shape)}: resize the scores to the reference before their argmax."
        )
    prediction, reference = prediction.long(), reference.long()
    if ignore_index is None:
        counted = torch.ones_like(reference, dtype=torch.bool)
        some_class = counted
    else:
        counted = reference != ignore_index
        some_class = counted & (prediction != ignore_index)
    _check_labels("references", reference, counted, num_labels, ignore_index)
    _check_labels("predictions", prediction, some_class, num_labels, ignore_index)
    nothing = num_labels  # one class more, which is not returned
    reference = torch.where(counted, reference, nothing)
    prediction = torch.where(some_class, prediction, nothing)
    agreed = torch.where(prediction == reference, reference, nothing)
    counts = (_histogram(labels, num_labels) for labels in (agreed, prediction, reference))
    return torch.stack(torch.broadcast_tensors(*counts), dim=-2)


def iou_from_counts(counts: Tensor) -> Tensor:
    """Intersection over union of each class, (..., C) float64; NaN for classes that occur in neither map.

    The mean IoU of each of the leading axes is `iou_from_counts(counts).nanmean(dim=-1)`.

    Args:
        counts: (..., 3, C) as of [`class_counts`], summed over the images of a set.
    """
    agreed, predicted, reference = counts.double().unbind(dim=-2)
    return agreed / (predicted + reference - agreed)


def segmentation_scores(counts: Tensor) -> dict[str, Tensor]:
    """All scores of a set of images, each (...) float64 but for the two that are (..., C).

    - `mean_iou`: mean IoU of the classes that occur in prediction or reference; others are left out.
    - `overall_accuracy`: share of the counted pixels that are right.
    - `mean_accuracy`: mean of the classes' accuracies, over classes that occur in the reference.
    - `per_category_iou`, `per_category_accuracy`: NaN for classes that are left out of the mean.

    Args:
        counts: (..., 3, C) as of [`class_counts`], summed over the images of a set.

    Raises:
        ValueError: no pixel was counted.
    """
    agreed, _, reference = counts.double().unbind(dim=-2)
    if not (reference.sum(dim=-1) > 0).all():
        raise ValueError("No pixel of the references counts: there are none, or all are ignore_index.")
    iou, accuracy = iou_from_counts(counts), agreed / reference
    return {
        "mean_iou": iou.nanmean(dim=-1),
        "overall_accuracy": agreed.sum(dim=-1) / reference.sum(dim=-1),
        "mean_accuracy": accuracy.nanmean(dim=-1),
        "per_category_iou": iou,
        "per_category_accuracy": accuracy,
    }


def _histogram(labels: Tensor, num_labels: int) -> Tensor:
    """(..., H, W) of 0…C -> (..., C): how often each label below C occurs in each map."""
    *leading, height, width = labels.shape
    maps = labels.reshape(math.prod(leading), height * width)
    offset = torch.arange(len(maps), device=labels.device)[:, None] * (num_labels + 1)
    bins = torch.bincount((maps + offset).flatten(), minlength=len(maps) * (num_labels + 1))
    return bins.view(*leading, num_labels + 1)[..., :num_labels]


def _check_labels(name: str, labels: Tensor, counted: Tensor, num_labels: int, ignore_index: int | None) -> None:
    outside = counted & ((labels < 0) | (labels >= num_labels))
    if outside.any():
        value = labels.expand(outside.shape)[outside][0].item()
        raise ValueError(
            f"Label {value} in the {name} is neither in 0…{num_labels - 1} nor the ignore_index {ignore_index}: check "
            "num_labels, ignore_index, and whether labels begin at 1."
        )
