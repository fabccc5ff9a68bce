"""Diagnosis of a teacher: norms, outliers and what they carry, layer by layer, in one pass with bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..artifacts import image_peaks, patch_variance
from ..backbones import TokenLayout, VisionBackbone
from ..losses import patch_norms
from ..nullspace import surrogate_layer
from .norm_gain import NormGain, gain_table
from .outliers import OutlierRule, Outliers, PatchNorms, find_outliers, stands_out
from .positions import border_mask, map_cells, map_shape, variance_rank
from .spectrum import SurrogateSpectrum, effective_nullity, stable_rank, surrogate_spectrum
from .statistics import Moments, SumsByNorm
from .walk import Walk

BACKGROUND = 0.25
"""Patches of the lowest quarter of an image's pixel variances count as background."""


@dataclass(frozen=True)
class OutlierTraits:
    """What the outliers of a layer carry and where they are; each share beside what all patches have.

    Args:
        gradient_share: share of the MSE gradient's norm, at a prediction of zero, that falls on them: Σ_O‖F‖ / Σ‖F‖.
        loss_share: share of that MSE loss: Σ_O‖F‖² / Σ‖F‖².
        border_share, border_expected: share of them on the outermost ring; share of all patches there.
        background_share: share of them among the quarter of their image's patches of lowest pixel variance.
        variance_rank: mean rank of their pixel variance in their image, 0 the emptiest; 0.5 is chance.
        input_cosine, input_cosine_others: mean |cos| between the token and the leading left singular vector u₁ of the
            W̃ that refinements here must not disturb, the next block's (of the last block its own): the direction
            that its feed-forward part amplifies most. Of outliers and of the others.
        output_cosine, output_cosine_others: as before, with the leading right singular vector v₁ of the block's own
            W̃: the direction that it amplifies into, the "left singular vector" of works that write W x.
        places: how often they occur at each place of the image, rows of a map of `map_shape`.
    """

    gradient_share: float
    loss_share: float
    border_share: float
    border_expected: float
    background_share: float
    variance_rank: float
    input_cosine: float
    input_cosine_others: float
    output_cosine: float
    output_cosine_others: float
    places: list[list[int]]


@dataclass(frozen=True)
class LayerDiagnosis:
    """One block's output.

    Args:
        layer: block, 0-based.
        norms: the patch norms.
        peak_to_median: largest over median patch norm of an image, mean over images.
        outliers: what the rule says.
        traits: of the outliers; `None` where there are none.
    """

    layer: int
    norms: PatchNorms
    peak_to_median: float
    outliers: Outliers
    traits: OutlierTraits | None

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "layer": self.layer,
            "norms": self.norms.summary(),
            "peak_to_median": self.peak_to_median,
            "outliers": asdict(self.outliers),
            "traits": None if self.traits is None else asdict(self.traits),
        }


@dataclass(frozen=True)
class TeacherDiagnosis:
    """A teacher's blocks.

    Args:
        layers: one entry a block.
        spectra: of each block's surrogate.
        gains: one table a block, and `gains_pooled` over all, see [`gain_table`].
        images: how many were seen.
        layout: tokens of an image.
        rule: by which outliers were found.
    """

    layers: list[LayerDiagnosis]
    spectra: list[SurrogateSpectrum]
    gains: list[dict[str, dict[str, float]]]
    gains_pooled: dict[str, dict[str, float]]
    images: int
    layout: TokenLayout
    rule: OutlierRule

    @property
    def artifact_layers(self) -> list[int]:
        return [layer.layer for layer in self.layers if layer.outliers.are_artifacts]

    def threshold(self, layer: int) -> float:
        """τ of a layer."""
        return self.layers[layer].outliers.threshold

    def is_outlier(self, layer: int, norms: Tensor) -> Tensor:
        """(B, n) bool: which patches of a layer the rule calls outliers, by their norms (B, n)."""
        return (norms >= self.threshold(layer)) & stands_out(norms, self.rule.min_ratio)

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "images": self.images,
            "patches_per_image": self.layout.num_patches,
            "grid": self.layout.grid,
            "rule": asdict(self.rule),
            "artifact_layers": self.artifact_layers,
            "layers": [layer.summary() for layer in self.layers],
            "spectra": [
                {
                    "block": block,
                    "singular_values": spectrum.values,
                    "effective_nullity": effective_nullity(spectrum.values),
                    "stable_rank": stable_rank(spectrum.values),
                }
                for block, spectrum in enumerate(self.spectra)
            ],
            "norm_gain": {"all_blocks": self.gains_pooled, "blocks": self.gains},
        }


class _LayerStatistics:
    """What is summed of one layer."""

    def __init__(self, directions: tuple[Tensor, Tensor], cells: int, rule: OutlierRule) -> None:
        self.directions = F.normalize(torch.stack(directions), dim=1)
        self.norms, self.peak_to_median = PatchNorms(rule.min_ratio), Moments()
        self.sums = SumsByNorm(
            *("norm", "square", "border", "background", "variance_rank", "input_cosine", "output_cosine"),
            sizes={"place": cells},
        )

    def add(self, patches: Tensor, border: Tensor, cells: Tensor, ranks: Tensor) -> None:
        """Patches (B, n, d); their places (n,) and variance ranks (B, n)."""
        norms = patch_norms(patches)
        directions = self.directions.to(device=norms.device, dtype=norms.dtype)
        cosines = (patches.to(norms.dtype) @ directions.T / norms.clamp(min=1e-12)[..., None]).abs()
        self.norms.add(norms)
        self.peak_to_median.add(image_peaks(norms))
        self.sums.add(
            norms,
            stands_out(norms, self.norms.min_ratio),
            places={"place": cells},
            norm=norms,
            square=norms.double().square(),
            border=border,
            background=(ranks < BACKGROUND),
            variance_rank=ranks,
            input_cosine=cosines[..., 0],
            output_cosine=cosines[..., 1],
        )

    def result(self, layer: int, rule: OutlierRule, shape: tuple[int, int]) -> LayerDiagnosis:
        outliers = find_outliers(self.norms, rule)
        traits = self._traits(outliers.threshold, shape) if outliers.count else None
        return LayerDiagnosis(layer, self.norms, self.peak_to_median.mean, outliers, traits)

    def _traits(self, threshold: float, shape: tuple[int, int]) -> OutlierTraits:
        above, total = self.sums.above(threshold), self.sums.total()
        others = total["count"] - above["count"]

        def mean(name: str) -> float:
            return above[name] / above["count"]

        def mean_of_others(name: str) -> float:
            return (total[name] - above[name]) / others if others else math.nan

        return OutlierTraits(
            gradient_share=above["norm"] / total["norm"],
            loss_share=above["square"] / total["square"],
            border_share=mean("border"),
            border_expected=total["border"] / total["count"],
            background_share=mean("background"),
            variance_rank=mean("variance_rank"),
            input_cosine=mean("input_cosine"),
            input_cosine_others=mean_of_others("input_cosine"),
            output_cosine=mean("output_cosine"),
            output_cosine_others=mean_of_others("output_cosine"),
            places=self.sums.places_above("place", threshold).view(shape).tolist(),
        )


@torch.no_grad()
def diagnose_teacher(
    backbone: VisionBackbone,
    batches: Iterable[Tensor],
    *,
    rule: OutlierRule | None = None,
    fold_layer_norm: bool = False,
) -> TeacherDiagnosis:
    """One pass over the images. An adapter in the model is left out: this is the plain teacher.

    Args:
        backbone: the teacher.
        batches: normalised pixels (B, 3, H, W), all of one size.
        rule: what counts as an outlier; default: [`OutlierRule`]'s numbers.
        fold_layer_norm: of the surrogates, see [`linear_surrogate`].

    Raises:
        ValueError: no patches, batches of differing sizes, fewer images than the rule needs (the message says how
            many), features that are not finite.
    """
    rule = rule or OutlierRule()
    if backbone.model.training:
        raise ValueError(f"{type(backbone.model).__name__} is in training mode, where features are random: eval() it.")
    spectra = [
        surrogate_spectrum(backbone, block, fold_layer_norm=fold_layer_norm) for block in range(backbone.num_blocks)
    ]
    gain, walk = NormGain(backbone), Walk(backbone)
    layers: list[_LayerStatistics] = []
    with gain.recording():
        for pixels in batches:
            layout = walk.layout_of(pixels)
            if not layers:
                rows, columns = map_shape(layout.grid)
                layers = [
                    _LayerStatistics(
                        (spectra[surrogate_layer(layer, len(spectra))].leading_input, spectrum.leading_output),
                        rows * columns,
                        rule,
                    )
                    for layer, spectrum in enumerate(spectra)
                ]
                border, cells = border_mask(layout.grid), map_cells(layout.grid)
            ranks = variance_rank(patch_variance(pixels, backbone.patch_size))
            for layer, before, after in walk.blocks(pixels):
                layers[layer].add(after[:, layout.num_prefix_tokens :], border, cells, ranks)
                gain.add_block(layer, before, after)
    if not layers:
        raise ValueError("There are no images to diagnose on.")
    layout = walk.layout
    rule.require(walk.images, layout.num_patches)
    shape = map_shape(layout.grid)
    return TeacherDiagnosis(
        layers=[statistics.result(layer, rule, shape) for layer, statistics in enumerate(layers)],
        spectra=spectra,
        gains=[gain_table(ratios) for ratios in gain.ratios],
        gains_pooled=gain_table(gain.pooled()),
        images=walk.images,
        layout=layout,
        rule=rule,
    )
