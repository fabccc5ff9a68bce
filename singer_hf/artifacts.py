"""Statistics of high-norm artifact tokens."""

from __future__ import annotations

from torch import Tensor

from .losses import norm_quantile


def outlier_norm_share(norms: Tensor, quantile: float) -> Tensor:
    """Share of an image's summed patch norm that patches above its own α-quantile carry; mean over images, scalar.

    Where all norms are equal none is above; with well-behaved norms it is near 1 − α, with artifacts a multiple of it.

    Args:
        norms: (B, n) patch norms.
        quantile: α.
    """
    above = norms > norm_quantile(norms, quantile)
    return ((norms * above).sum(dim=1) / norms.sum(dim=1)).mean()


def image_peaks(norms: Tensor) -> Tensor:
    """Greatest over median patch norm of each image: (B, n) -> (B,)."""
    return norms.amax(dim=1) / norms.median(dim=1).values


def peak_to_median(norms: Tensor) -> Tensor:
    """Mean over images of [`image_peaks`], scalar. `norms` (B, n)."""
    return image_peaks(norms).mean()


def patch_variance(pixel_values: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Pixel variance of each patch, mean over channels: (B, 3, H, W) -> (B, rows * columns)."""
    rows, columns = patch_size
    patches = pixel_values.unfold(2, rows, rows).unfold(3, columns, columns)  # (B, 3, rows', cols', rows, cols)
    return patches.float().var(dim=(-2, -1), correction=0).mean(dim=1).flatten(1)
