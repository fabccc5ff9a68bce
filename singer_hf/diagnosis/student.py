"""How alike a student is to its teacher: Gram distance and CKA (Tables 2 and 5b), and the norms it ended up with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones import VisionBackbone
from ..layers import match_layers
from ..losses import full_precision, gram_distance, patch_norms
from ..similarity import LinearCKAStatistics
from ..tokens import TokenAligner
from .gradient_share import RunningShare
from .outliers import OutlierRule, find_outliers
from .refinement import Refinement
from .statistics import LogHistogram, Moments
from .teacher import TeacherDiagnosis
from .walk import Walk


@dataclass(frozen=True)
class StudentFit:
    """What a student was trained to: `P_l(F_S)` against F_T, or against F̂_T where the run had an adapter.

    Args:
        projectors: teacher layer -> P_l.
        targets: teacher layer -> refinement of the target; empty for a run without adapter.
        student_layers: teacher layer -> student layer that it was trained with; default: matched by relative depth.
    """

    projectors: Mapping[int, nn.Module]
    targets: Mapping[int, Refinement] = field(default_factory=dict)
    student_layers: Mapping[int, int] = field(default_factory=dict)


class _Pair:
    """One teacher layer and the student layer that it met."""

    def __init__(
        self,
        layer: int,
        student_layer: int,
        widths: tuple[int, int],
        refinement: Refinement | None,
        fit: StudentFit | None,
        threshold: float,
    ) -> None:
        self.layer, self.student_layer, self.refinement, self.threshold = layer, student_layer, refinement, threshold
        fits = fit is not None and layer in fit.projectors
        self.projector = fit.projectors[layer] if fits else None
        self.target = fit.targets.get(layer) if fits else None
        self.loss_share, self.gradient_share = RunningShare(), RunningShare()
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
        if self.projector is not None:
            outliers = patch_norms(teacher) >= self.threshold
            target = full_precision(teacher if self.target is None else self.target(teacher))
            residuals = patch_norms(self.projector(full_precision(student)) - target)
            self.gradient_share.add(residuals, outliers)
            self.loss_share.add(residuals.square(), outliers)
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
            "remaining_loss_on_outliers": self.loss_share.value,
            "remaining_gradient_on_outliers": self.gradient_share.value,
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
    diagnosis: TeacherDiagnosis,
    refinements: Mapping[int, Refinement] | None = None,
    fit: StudentFit | None = None,
) -> list[dict[str, Any]]:
    """One pass. Student layers are matched to the teacher's by relative depth, the last always to the last.

    Args:
        teacher, student: both models; an adapter in the teacher is left out.
        layers: of the teacher; the last block is added.
        pairs: normalised pixels of both, (B, 3, H, W) each.
        diagnosis: the teacher's: which of its patches are outliers, and the rule for the student's own.
        refinements: of the teacher's layers, to measure the distance to refined features as well.
        fit: the run's projectors, to measure where its loss remains.

    Returns:
        For each layer: `gram_distance` ‖G(F_T) − G(F_S)‖_F of an image (Table 5b), `gram_distance_per_patch` (divided
        by the number of patches, Table 2), `cka` over all patches, `norms` and `outliers` of the student, and with
        `fit` the share of what remains of the feature loss, and of its gradient's norm, that falls on the teacher's
        outliers.
    """
    layers = sorted({*layers, teacher.num_blocks - 1})
    matched = match_layers(layers, teacher.num_blocks, student.num_blocks)
    if fit is not None:
        matched = [fit.student_layers.get(layer, other) for layer, other in zip(layers, matched, strict=True)]
    widths = (teacher.hidden_size, student.hidden_size)
    measured = [
        _Pair(layer, other, widths, (refinements or {}).get(layer), fit, diagnosis.threshold(layer))
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
                aligner.align_student(tokens)[:, len(aligner.student_prefix) :],
                tokens[:, other.layout.num_prefix_tokens :],
            )
    if teacher_walk.layout is None:
        raise ValueError("There are no images to measure the student on.")
    return [pair.summary(teacher_walk.layout.num_patches, diagnosis.rule) for pair in measured]
