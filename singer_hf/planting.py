"""High-norm artifacts planted on purpose in a small Vision Transformer, to have a teacher for SiNGER to repair.

Small ViTs have none of the high-norm background tokens of large ones. `plant_artifacts` gives them some: one hidden
unit of one feed-forward part becomes a detector of background patches whose output is a large vector, so that a few
background tokens carry several times the median norm from that block to the last. The blocks behind it have never seen
such tokens: tune them, with the blocks up to the planted one frozen, for a few epochs at a small rate.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .artifacts import patch_variance, peak_to_median
from .backbones import vision_backbone
from .backbones.contract import check_layers, plain_block
from .losses import patch_norms

HIGH_NORM = 2.5
"""A token is counted as high-norm above this many times the median patch norm of the same block."""

_FIRING = 4.0
"""Pre-activation of the detector at an average artifact: far enough from 0 that the rest stays in GELU's flat part."""


@dataclass(frozen=True)
class NormProfile:
    """Patch norms of every block of a model, in a few numbers; the index is the block.

    Args:
        high_norm_share: share of patch tokens above `HIGH_NORM` times the median norm of that block.
        largest_to_median: greatest over median patch norm of an image, mean over images.
    """

    high_norm_share: tuple[float, ...]
    largest_to_median: tuple[float, ...]


@dataclass(frozen=True)
class PlantingReport:
    """What [`plant_artifacts`] did, measured on the images it was given.

    Args:
        block: block that was changed.
        unit: hidden unit of its feed-forward part that was overwritten.
        fired_share: share of patch tokens on which the detector fires.
        background_precision: share of those tokens that are background patches.
        before: norms of the model as it came.
        after: norms of the changed model, not yet tuned.
    """

    block: int
    unit: int
    fired_share: float
    background_precision: float
    before: NormProfile
    after: NormProfile


def plant_artifacts(
    model: nn.Module,
    pixel_values: Tensor,
    *,
    block: int,
    strength: float = 5.0,
    share: float = 0.04,
    background: float = 0.25,
    seed: int = 0,
    batch_size: int = 128,
) -> PlantingReport:
    """Plants high-norm background tokens in `model`, in place, from block `block` on.

    A logistic regression on the feed-forward input x (after its norm) tells background patches at some positions of
    the grid from every other token. Its logit, shifted so that `share` of the patches are above zero, becomes the
    least used hidden unit: row of W_in and bias; the unit's column of W_out becomes a long vector in a random
    direction. Only some positions, drawn so that about `share` of the patches are background there: a detector of all
    background, held down to `share` by its threshold, fires on twenty patches of a few images and on none of the rest.

    Args:
        model: a ViT that [`vision_backbone`] knows, whose feed-forward part is two linear layers.
        pixel_values: (B, 3, H, W), normalised; a few hundred images. The patches of lowest pixel variance among them
            are the background.
        block: 0-based block whose feed-forward part is changed; earlier blocks stay as they are.
        strength: norm that an average artifact is given, in multiples of the median patch norm behind `block`.
        share: share of patch tokens that become artifacts (METHOD: 3 % of an image's patches count as outliers).
        background: share of patches, those of lowest variance, that count as background.
        seed: of the artifacts' positions and direction.
        batch_size: images a forward pass.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: an option out of range, a gated feed-forward part, or one without a bias.
    """
    backbone = vision_backbone(model)
    check_layers([block], backbone.num_blocks, what="block")
    if not 0 < share < background < 1:
        raise ValueError(f"Expected 0 < share < background < 1, got share {share} and background {background}.")
    if strength <= 1:
        raise ValueError(f"strength is a multiple of the median norm and must be above 1, got {strength}.")
    w_in, w_out = _plain_feed_forward(plain_block(backbone.blocks[block]), block)
    was_training = model.training
    model.eval()
    try:
        before = norm_profile(model, pixel_values, batch_size=batch_size)
        inputs, usage, median_norm = _observe(backbone, w_in, w_out, block, pixel_values, batch_size)
        is_background = background_patches(pixel_values, backbone.patch_size, background).to(inputs.device)
        generator = torch.Generator().manual_seed(seed)
        positions = _draw_positions(is_background, share, generator)
        detector, offset = _fit_detector(inputs, is_background & positions)

        logits = inputs[:, backbone.num_prefix_tokens :] @ detector + offset
        threshold = torch.quantile(logits.flatten().float().cpu(), 1 - share).item()
        fired = logits > threshold
        scale = _FIRING / (logits[fired] - threshold).mean()
        unit = int(usage.argmin())
        output = torch.randn(w_out.out_features, generator=generator).to(w_out.weight)
        layer_scale = backbone.feed_forward(block).layer_scale
        reaches_stream = output if layer_scale is None else output * layer_scale
        output *= strength * median_norm / (_FIRING * torch.linalg.vector_norm(reaches_stream))
        with torch.no_grad():
            w_in.weight[unit] = (detector * scale).to(w_in.weight)
            w_in.bias[unit] = (offset - threshold) * scale
            w_out.weight[:, unit] = output
        after = norm_profile(model, pixel_values, batch_size=batch_size)
    finally:
        model.train(was_training)
    return PlantingReport(
        block=block,
        unit=unit,
        fired_share=fired.float().mean().item(),
        background_precision=is_background[fired].float().mean().item(),
        before=before,
        after=after,
    )


@torch.no_grad()
def norm_profile(model: nn.Module, pixel_values: Tensor, *, batch_size: int = 128) -> NormProfile:
    """Patch norms behind every block. `pixel_values` (B, 3, H, W), normalised; prefix tokens are left out."""
    backbone = vision_backbone(model)
    norms: list[list[Tensor]] = [[] for _ in range(backbone.num_blocks)]
    for pixels in pixel_values.split(batch_size):
        features = backbone.features(pixels.to(_device(model)), range(backbone.num_blocks))
        for layer, hidden in features.hidden.items():
            norms[layer].append(patch_norms(hidden[:, backbone.num_prefix_tokens :]).cpu())
    stacked = [torch.cat(parts) for parts in norms]  # one (B, n) a block
    return NormProfile(
        tuple((n > HIGH_NORM * n.median()).float().mean().item() for n in stacked),
        tuple(peak_to_median(n).item() for n in stacked),
    )


def background_patches(pixel_values: Tensor, patch_size: tuple[int, int], share: float) -> Tensor:
    """The `share` of all patches with the lowest pixel variance: (B, 3, H, W) -> bool (B, rows*cols).

    Patches that tie with the last of them are background too, so there are more where many are entirely empty.
    """
    variance = patch_variance(pixel_values, patch_size)
    kth = max(1, round(share * variance.numel()))
    return variance <= variance.flatten().kthvalue(kth).values


def _plain_feed_forward(block: nn.Module, index: int) -> tuple[nn.Linear, nn.Linear]:
    """First and second linear layer of a feed-forward part without a gate."""
    linears = [module for module in block.mlp.modules() if isinstance(module, nn.Linear)]
    if len(linears) != 2 or linears[0].out_features != linears[1].in_features:
        sizes = ", ".join(f"{m.in_features}->{m.out_features}" for m in linears)
        raise ValueError(
            f"The feed-forward part of block {index} is gated (linear layers {sizes}); expected two, d->h and h->d, "
            "whose hidden unit is one row and one column. Plant artifacts in a model with a plain feed-forward part."
        )
    if linears[0].bias is None:
        raise ValueError(
            f"The first feed-forward layer of block {index} has no bias, which a detector needs as its threshold."
        )
    return linears[0], linears[1]


@torch.no_grad()
def _observe(backbone, w_in, w_out, block, pixel_values, batch_size) -> tuple[Tensor, Tensor, Tensor]:
    """One pass over the images.

    Returns:
        Inputs of the feed-forward part (B, N, d); how much each hidden unit adds, mean |activation| times the norm of
        its output column, (h,); median patch norm behind the block, scalar.
    """
    inputs, activations, norms = [], [], []
    with _recorded_inputs(w_in, inputs), _recorded_inputs(w_out, activations):
        for pixels in pixel_values.split(batch_size):
            hidden = backbone.features(pixels.to(w_in.weight.device), [block]).hidden[block]
            norms.append(patch_norms(hidden[:, backbone.num_prefix_tokens :]))
            activations[-1] = activations[-1].abs().mean(dim=(0, 1)) * len(pixels)
    usage = torch.stack(activations).sum(0) / len(pixel_values) * torch.linalg.vector_norm(w_out.weight, dim=0)
    return torch.cat(inputs).float(), usage, torch.cat(norms).median()


@contextmanager
def _recorded_inputs(module: nn.Module, into: list[Tensor]):
    handle = module.register_forward_pre_hook(lambda _, args: into.append(args[0]))
    try:
        yield
    finally:
        handle.remove()


def _draw_positions(is_background: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Grid positions, in random order until `share` of all patches are background there: (B, n) -> bool (n,)."""
    order = torch.randperm(is_background.shape[1], generator=generator)
    frequency = is_background.float().mean(dim=0).cpu()[order]
    enough = int((frequency.cumsum(0) < share * len(order)).sum()) + 1
    positions = torch.zeros(len(order), dtype=torch.bool)
    positions[order[:enough]] = True
    return positions.to(is_background.device)


def _fit_detector(inputs: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (d,) and offset (scalar) of a logistic regression: the positive patches against every other token.

    Args:
        inputs: (B, N, d) feed-forward inputs, prefix tokens first.
        positive: (B, n) bool, of the patches.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ImportError(
            "plant_artifacts fits its detector with scikit-learn, which is not installed: pip install singer_hf[demo]"
        ) from error
    num_prefix, num_patches = inputs.shape[1] - positive.shape[1], positive.shape[1]
    labels = torch.cat([positive.new_zeros(len(positive), num_prefix), positive], dim=1)
    weights = torch.ones(inputs.shape[:2])
    if num_prefix:  # one CLS among many patches would hardly count, and an artifact on it is what must not happen
        weights[:, :num_prefix] = num_patches / num_prefix
    regression = LogisticRegression(max_iter=300)
    regression.fit(
        inputs.flatten(0, 1).cpu().numpy(), labels.flatten().cpu().numpy(), sample_weight=weights.flatten().numpy()
    )
    return inputs.new_tensor(regression.coef_[0]), inputs.new_tensor(regression.intercept_[0])


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
