"""Errors of predicted depth maps, from sums over each image's valid pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..losses import full_precision

DELTA = 1.25


def valid_depth(reference: Tensor, max_depth: float | None = None) -> Tensor:
    """Where a reference has a depth: finite, positive, and not above `max_depth` if given; bool of its shape."""
    valid = torch.isfinite(reference) & (reference > 0)
    return valid if max_depth is None else valid & (reference <= max_depth)


def depth_sums(prediction: Tensor, reference: Tensor, max_depth: float | None = None) -> Tensor:
    """Sums over each image's valid pixels of (p − t)², |p − t| / t, [max(p/t, t/p) < 1.25] and 1, with p the predicted
    and t the true depth: (..., 4) float64.

    A prediction that is not positive counts as outside 1.25. Leading axes broadcast, so that many heads (K, B, H, W)
    can be compared with one reference (B, H, W).

    Args:
        prediction: (..., H, W) depth in metres, valid or not.
        reference: (..., H, W) depth in metres; pixels that [`valid_depth`] rules out are not counted.
        max_depth: metres.

    Raises:
        ValueError: maps of different sizes; predictions that are not finite.
    """
    if prediction.ndim < 2 or prediction.shape[-2:] != reference.shape[-2:]:
        raise ValueError(
            f"Prediction and reference must be maps of one size, got {tuple(prediction.shape)} and "
            f"{tuple(reference.shape)}: resize the prediction to the reference first."
        )
    finite = torch.isfinite(prediction)
    if not finite.all():
        raise ValueError(
            f"{(~finite).sum().item()} of {finite.numel()} predicted depths are NaN or infinite: only references may "
            "lack values."
        )
    valid = valid_depth(reference, max_depth)
    true = torch.where(valid, full_precision(reference), 1.0)
    predicted = full_precision(prediction)
    error = torch.where(valid, predicted - true, 0.0)
    within = (torch.maximum(predicted / true, true / predicted) < DELTA) & (predicted > 0) & valid
    terms = torch.broadcast_tensors(error.square(), error.abs() / true, within.to(error), valid.to(error))
    return torch.stack([term.sum(dim=(-2, -1), dtype=torch.float64) for term in terms], dim=-1)


def depth_scores(sums: Tensor) -> dict[str, Tensor]:
    """All scores of a set of n images, each (...) float64.

    - `rmse`: the RMSE of each image in metres, then the mean over images (the paper's NYUd figures).
    - `rmse_pooled`: the RMSE over all valid pixels of the set, in metres.
    - `abs_rel`, `delta1`: the mean of |p − t| / t and the share with max(p/t, t/p) < 1.25, of each image, then the
      mean over images.
    - `images_without_depth`: number of images without a valid pixel, which count in none of the above.

    Args:
        sums: (..., n, 4) as of [`depth_sums`].

    Raises:
        ValueError: no image has a valid pixel.
    """
    pixels = sums[..., 3]
    if not (pixels > 0).any(dim=-1).all():
        raise ValueError(
            f"None of the {sums.shape[-2]} reference maps has a valid depth: all are 0, negative, not finite or above "
            "max_depth. Depths are expected in metres."
        )
    squared, relative, within, _ = (sums / pixels[..., None]).unbind(dim=-1)  # NaN for images without depth
    return {
        "rmse": squared.sqrt().nanmean(dim=-1),
        "rmse_pooled": (sums[..., 0].sum(dim=-1) / pixels.sum(dim=-1)).sqrt(),
        "abs_rel": relative.nanmean(dim=-1),
        "delta1": within.nanmean(dim=-1),
        "images_without_depth": (pixels == 0).sum(dim=-1),
    }
