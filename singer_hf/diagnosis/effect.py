"""What refinements do to a teacher's features: norms (Figure 6), cosines (Table 3), Gram distances (Table 5b)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..artifacts import image_peaks
from ..backbones import VisionBackbone
from ..losses import full_precision, gram_distance, patch_norms
from ..nullspace import surrogate_layer
from .gradient_share import RunningShare
from .outliers import PatchNorms, find_outliers
from .refinement import Refinement, check_refinements, energy_shares
from .spectrum import left_singular_vectors
from .statistics import LogHistogram, Moments
from .teacher import TeacherDiagnosis
from .walk import Walk


def patch_cosine(patches: Tensor, other: Tensor) -> Tensor:
    """(B, n, d), (B, n, d) -> (B, n) cosine similarity of each patch with its counterpart."""
    return F.cosine_similarity(full_precision(patches), full_precision(other), dim=-1)


class RefinementEffect:
    """One refinement of one layer, over all images.

    Args:
        layer: block behind which features are refined.
        refinement: Φ_down, Φ_up.
        diagnosis: the teacher's: outliers are those of F, also where F̂ is measured.
        energy: Table 5a of Φ_up and Φ_down, by [`energy_shares`].
    """

    def __init__(
        self, layer: int, refinement: Refinement, diagnosis: TeacherDiagnosis, energy: dict[str, dict[str, float]]
    ) -> None:
        self.layer, self.refinement, self.diagnosis, self.energy = layer, refinement, diagnosis, energy
        ratio = diagnosis.rule.min_ratio
        self.norms, self.norms_after = PatchNorms(ratio), PatchNorms(ratio)
        self.peak, self.peak_after = Moments(), Moments()
        self.cosine, self.cosine_next = Moments(), Moments()
        self.cosine_outliers, self.cosine_others = Moments(), Moments()
        self.gram, self.gram_next = LogHistogram(), LogHistogram()
        self.outliers_before, self.outliers_after = Moments(), Moments()
        self.loss_share_after = RunningShare()

    def add(self, patches: Tensor, next_outputs: tuple[Tensor, Tensor] | None) -> None:
        """A batch.

        Args:
            patches: F_l, (B, n, d).
            next_outputs: patches of block l+1's outputs from F_l and from F̂_l; `None` behind the last block.
        """
        refined = self.refinement(patches)
        before, after = patch_norms(patches), patch_norms(refined)
        outliers = self.diagnosis.is_outlier(self.layer, before)
        self.norms.add(before)
        self.norms_after.add(after)
        self.peak.add(image_peaks(before))
        self.peak_after.add(image_peaks(after))
        self.outliers_before.add(before[outliers])
        self.outliers_after.add(after[outliers])
        self.loss_share_after.add(after.square(), outliers)
        cosine = patch_cosine(patches, refined)
        self.cosine.add(cosine.mean(dim=1))
        self.cosine_outliers.add(cosine[outliers])
        self.cosine_others.add(cosine[~outliers])
        self.gram.add(gram_distance(patches, refined) * patches.shape[1])
        if next_outputs is not None:
            self.cosine_next.add(patch_cosine(*next_outputs).mean(dim=1))
            self.gram_next.add(gram_distance(*next_outputs) * patches.shape[1])

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        unrefined = self.diagnosis.layers[self.layer]
        threshold = unrefined.outliers.threshold
        after = find_outliers(self.norms_after, self.diagnosis.rule)
        return {
            "layer": self.layer,
            "rank": self.refinement.down.shape[1],
            "init": self.refinement.init,
            "fold_layer_norm": self.refinement.fold_layer_norm,
            "images": self.cosine.count,
            "norms": {"before": self.norms.summary(), "after": self.norms_after.summary()},
            "peak_to_median": {"before": self.peak.mean, "after": self.peak_after.mean},
            "share_of_outliers": {
                "before": self.norms.prominent.count_above(threshold) / self.norms.count,
                "after": self.norms_after.prominent.count_above(threshold) / self.norms.count,
            },
            "verdict_before": unrefined.outliers.verdict,
            "outliers_after": asdict(after),
            "mean_norm_of_outliers": _pair(self.outliers_before, self.outliers_after),
            "loss_share_of_outliers": {
                "before": getattr(unrefined.traits, "loss_share", 0.0),
                "after": self.loss_share_after.value,
            },
            "cosine": self.cosine.summary(),
            "cosine_of_outliers": _mean(self.cosine_outliers),
            "cosine_of_others": _mean(self.cosine_others),
            "cosine_next_block": self.cosine_next.summary() if self.cosine_next.count else None,
            "gram_distance": self.gram.summary(),
            "gram_distance_next_block": self.gram_next.summary() if self.gram_next.count else None,
            "energy": self.energy,
        }


@torch.no_grad()
def measure_refinements(
    backbone: VisionBackbone,
    refinements: Mapping[str, Mapping[int, Refinement]],
    diagnosis: TeacherDiagnosis,
    batches: Iterable[Tensor],
) -> dict[str, dict[int, RefinementEffect]]:
    """One pass: every refinement of every layer, on the same images.

    Args:
        backbone: the teacher.
        refinements: name -> layer -> refinement.
        diagnosis: the teacher's.
        batches: normalised pixels (B, 3, H, W).

    Returns:
        Name -> layer -> effect.
    """
    for name, of in refinements.items():
        check_refinements(name, of, backbone)
    energies = _energies(backbone, refinements)
    effects = {
        name: {
            layer: RefinementEffect(layer, refinement, diagnosis, energies[name, layer])
            for layer, refinement in of.items()
        }
        for name, of in refinements.items()
    }
    layers = sorted({layer for of in refinements.values() for layer in of})
    following = {layer + 1 for layer in layers if layer + 1 < backbone.num_blocks}
    prefix, walk = backbone.num_prefix_tokens, Walk(backbone)
    for pixels in batches:
        walk.layout_of(pixels)
        features = backbone.features(pixels.to(walk.dtype), {*layers, *following}, adapters=False)
        for of in effects.values():
            for layer, effect in of.items():
                hidden = features.hidden[layer]
                outputs = None
                if layer + 1 in following:
                    refined = effect.refinement.of_tokens(hidden, prefix)
                    refined = backbone.run_block(layer + 1, refined, features.block_inputs, adapters=False)
                    outputs = (features.hidden[layer + 1][:, prefix:], refined[:, prefix:])
                effect.add(hidden[:, prefix:], outputs)
    return effects


def _energies(
    backbone: VisionBackbone, refinements: Mapping[str, Mapping[int, Refinement]]
) -> dict[tuple[str, int], dict[str, dict[str, float]]]:
    """(name, layer) -> Table 5a, each refinement by the surrogate it was made from; one U is held at a time."""
    wanted: dict[tuple[int, bool], list[tuple[str, int]]] = {}
    for name, of in refinements.items():
        for layer, refinement in of.items():
            source = (surrogate_layer(layer, backbone.num_blocks), refinement.fold_layer_norm)
            wanted.setdefault(source, []).append((name, layer))
    energies = {}
    for (block, fold_layer_norm), users in wanted.items():
        left = left_singular_vectors(backbone, block, fold_layer_norm=fold_layer_norm)
        for name, layer in users:
            refinement = refinements[name][layer]
            energies[name, layer] = {
                "up": energy_shares(refinement.up.T, left),
                "down": energy_shares(refinement.down, left),
            }
    return energies


def _mean(moments: Moments) -> float | None:
    return moments.mean if moments.count else None


def _pair(before: Moments, after: Moments) -> dict[str, float | None]:
    return {"before": _mean(before), "after": _mean(after)}
