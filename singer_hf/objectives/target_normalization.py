"""What is done to a teacher's tokens before the student learns them, beyond the paper."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from ..losses import full_precision


def unchanged(target: Tensor) -> Tensor:
    """The paper's target: F̂ (or F) as it is."""
    return target


def layer_norm(target: Tensor) -> Tensor:
    """(…, d) -> (…, d), each token with mean 0 and variance 1 over its channels, without learnt scale or shift.

    A token's norm is then √d whatever it was, so that no token dominates the loss; what an artifact's direction was
    stays. Often done to targets of feature prediction, e.g. in data2vec (arXiv 2202.03555, section 3.3).
    """
    target = full_precision(target)
    return F.layer_norm(target, target.shape[-1:])


TARGET_NORMALIZATIONS: dict[str, Callable[[Tensor], Tensor]] = {"none": unchanged, "layer_norm": layer_norm}


def target_normalization(name: str) -> Callable[[Tensor], Tensor]:
    """The normalisation registered as `name`. Raises ValueError for an unknown one."""
    if name not in TARGET_NORMALIZATIONS:
        raise ValueError(f"Unknown target_normalization {name!r}: expected one of {', '.join(TARGET_NORMALIZATIONS)}.")
    return TARGET_NORMALIZATIONS[name]
