"""The losses of METHOD.md section 4 as pure functions of features. All compute in float32 or better."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """At least float32: bf16 features of an autocast forward pass are compared in full precision."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def kd_loss(projected: Tensor, target: Tensor) -> Tensor:
    """One layer of L_KD: mean((P(F_S) − F̂)²) over batch, tokens and channels; both (B, N, d)."""
    return F.mse_loss(full_precision(projected), full_precision(target))


def patch_norms(patches: Tensor) -> Tensor:
    """(B, n, d) -> (B, n), ‖F_b,i‖₂."""
    return torch.linalg.vector_norm(full_precision(patches), dim=-1)


def norm_quantile(norms: Tensor, quantile: float) -> Tensor:
    """(B, n) -> (B, 1): the α-quantile of each image's patch norms, without gradient.

    As `torch.quantile` defines it, by linear interpolation at position α (n − 1) of the sorted norms, but without
    sorting those below.
    """
    norms = norms.detach()
    position = quantile * (norms.shape[1] - 1)
    below = math.floor(position)
    largest = norms.topk(norms.shape[1] - below, dim=1).values
    lower, upper = largest[:, -1:], largest[:, -2:][:, :1]
    return torch.lerp(lower, upper, position - below)


def outlier_loss(norms: Tensor, quantile: float, power: int = 1, min_ratio: float | None = None) -> Tensor:
    """One layer of L_outlier: mean over {(b, i): norm above q_b} of (norm − q_b)^power; 0 where no norm is above.

    Args:
        norms: (B, n) patch norms of F̂.
        quantile: α.
        power: p, 1 in the paper, 2 in the released code.
        min_ratio: norms that are not [`far_above_median`] add nothing, though they stay in the mean's count, which is
            then the same however a batch is split. `None` in the paper.
    """
    threshold = norm_quantile(norms, quantile)
    above = norms > threshold
    counted = above if min_ratio is None else above & far_above_median(norms, min_ratio)
    # Not norms[above], whose shape would depend on the data, which torch.compile cannot follow; nor clamp(min=0),
    # whose gradient at a norm equal to the quantile is 1 or 0 depending on torch's version.
    excess = torch.where(counted, norms - threshold, 0.0)
    return excess.pow(power).sum() / above.sum().clamp(min=1)


def far_above_median(norms: Tensor, ratio: float) -> Tensor:
    """(B, n) patch norms -> bool (B, n), whether a norm is above `ratio` times the batch's median.

    Of the batch, since most patches of one image may be artifacts. Each process, and each accumulated batch, takes its
    own median, so that a patch near the threshold may be judged otherwise where batches are split otherwise.
    """
    return norms > ratio * norms.median()


def check_median_ratio(name: str, ratio: float | None) -> None:
    """Raises ValueError, naming the option, unless the ratio is `None` or above 1."""
    if ratio is not None and not ratio > 1:
        raise ValueError(f"{name} is a multiple of the median norm and must be above 1, got {ratio}.")


def gram_matrix(patches: Tensor) -> Tensor:
    """G(X): (B, n, d) -> (B, n, n), cosine similarities of the patches of each image."""
    unit = F.normalize(full_precision(patches), dim=-1)
    # Under autocast this product would run in bf16, whose 8 bits are too few for differences of cosines.
    with torch.autocast(unit.device.type, enabled=False):
        return unit @ unit.transpose(1, 2)


def gram_loss(patches: Tensor, other: Tensor) -> Tensor:
    """One layer of L_info: MSE(G(X), G(Y)); X (B, n, d), Y (B, n, d')."""
    return F.mse_loss(gram_matrix(patches), gram_matrix(other))


def gram_distance(patches: Tensor, other: Tensor) -> Tensor:
    """‖G(X) − G(Y)‖_F / n for each image, (B,): the paper's Table 2 (its Table 5b does not divide by n)."""
    difference = gram_matrix(patches) - gram_matrix(other)
    return torch.linalg.matrix_norm(difference) / patches.shape[1]
