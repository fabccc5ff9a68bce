"""How alike a student is to its teacher: Gram distance and CKA (Tables 2 and 5b), and the norms it ended up with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ..backbones import VisionBackbone
from ..layers import match_layers
from ..losses import full_precision, gram_distance, patch_norms
from ..similarity import LinearCKAStatistics
from ..tokens import TokenAligner
from .outliers import OutlierRule, find_outliers
from .refinement import Refinement
from .statistics import LogHistogram, Moments
from .teacher import Walk


class _Pair:
    """One teacher layer and the student layer that it met."""

    def __init__(self, layer: int, student_layer: int, widths: tuple[int, int], refinement: Refinement | None) -> None:
        self.layer, self.student_layer, self.refinement = layer, student_layer, refinement
        self.gram, self.gram_refined = LogHistogram(), LogHistogram()
        self.cka = LinearCKAStatistics(*widths)
        self.norms, self.peak = LogHistogram(), Moments()

    def add(self, teacher: Tensor, student: Tensor, own: Tensor) -> None:
        """Patches (B, n, d_T) of the teacher; (B, n, d_S) of the student on the teacher's grid, and on its own."""
        count = teacher.shape[1]
        self.gram.add(gram_distance(teacher, student) * count)
        if self.refinement is not None:
            self.gram_refined.add(gram_distance(self.refinement(teacher), student) * count)
        self.cka.add(full_precision(teacher).flatten(0, 1).cpu(), full_precision(student).flatten(0, 1).cpu())
        norms = patch_norms(own)
        self.norms.add(norms)
        self.peak.add(norms.amax(dim=1) / norms.median(dim=1).values)

    def summary(self, patches: int, rule: OutlierRule) -> dict[str, Any]:
        return {
            "teacher_layer": self.layer,
            "student_layer": self.student_layer,
            "gram_distance": self.gram.summary(),
            "gram_distance_per_patch": self.gram.mean / patches,
            "gram_distance_to_refined": self.gram_refined.summary() if self.gram_refined.count else None,
            "cka": self.cka.compute(),
            "norms": self.norms.summary(),
            "peak_to_median": self.peak.mean,
            "outliers": asdict(find_outliers(self.norms, rule)),
        }


@torch.no_grad()
def measure_student(
    teacher: VisionBackbone,
    student: VisionBackbone,
    layers: Sequence[int],
    pairs: Iterable[tuple[Tensor, Tensor]],
    *,
    rule: OutlierRule | None = None,
    refinements: Mapping[int, Refinement] | None = None,
) -> list[dict[str, Any]]:
    """One pass. Student layers are matched to the teacher's by relative depth, the last always to the last.

    Args:
        teacher, student: both models; an adapter in the teacher is left out.
        layers: of the teacher; the last block is added.
        pairs: normalised pixels of both, (B, 3, H, W) each.
        rule: what counts as an outlier among the student's own patches.
        refinements: of the teacher's layers, to measure the distance to refined features as well.

    Returns:
        For each layer: `gram_distance` ‖G(F_T) − G(F_S)‖_F of an image (Table 5b), `gram_distance_per_patch` (divided
        by the number of patches, Table 2), `cka` over all patches, `norms` and `outliers` of the student.
    """
    rule = rule or OutlierRule()
    layers = sorted({*layers, teacher.num_blocks - 1})
    matched = match_layers(layers, teacher.num_blocks, student.num_blocks)
    widths = (teacher.hidden_size, student.hidden_size)
    measured = [
        _Pair(layer, other, widths, (refinements or {}).get(layer))
        for layer, other in zip(layers, matched, strict=True)
    ]
    teacher_walk, student_walk = Walk(teacher), Walk(student)
    for teacher_pixels, student_pixels in pairs:
        teacher_walk.layout_of(teacher_pixels)
        student_walk.layout_of(student_pixels)
        own = teacher.features(teacher_pixels.to(teacher_walk.dtype), layers, adapters=False)
        other = student.features(student_pixels.to(student_walk.dtype), set(matched))
        aligner = TokenAligner(other.layout, own.layout)
        for pair in measured:
            tokens = other.hidden[pair.student_layer]
            pair.add(
                own.hidden[pair.layer][:, own.layout.num_prefix_tokens :],
                aligner.align_student(tokens)[:, _kept_prefix(aligner) :],
                tokens[:, other.layout.num_prefix_tokens :],
            )
    if teacher_walk.layout is None:
        raise ValueError("There are no images to measure the student on.")
    return [pair.summary(teacher_walk.layout.num_patches, rule) for pair in measured]


def _kept_prefix(aligner: TokenAligner) -> int:
    """Prefix tokens that an aligned student still has."""
    return len(aligner.student_prefix)
