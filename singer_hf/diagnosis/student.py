"""How alike a student is to its teacher: Gram distance and CKA (Tables 2 and 5b), and the norms it ended up with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..artifacts import image_peaks
from ..backbones import VisionBackbone
from ..layers import match_layers
from ..losses import full_precision, gram_distance, patch_norms
from ..measures.similarity import LinearCKAStatistics
from ..objectives.feature_loss import FeatureLoss
from ..objectives.tokens import TokenAligner
from .cka import trusted_cka
from .gradient_share import RunningShare
from .outliers import PatchNorms, find_outliers
from .refinement import Refinement
from .statistics import LogHistogram, Moments
from .teacher import TeacherDiagnosis
from .walk import Walk


@dataclass(frozen=True)
class StudentFit:
    """What a student was trained to: `P_l(F_S)` against F_T, or against F̂_T where the run had an adapter.

    Args:
        projectors: teacher layer -> P_l.
        student_layers: teacher layer -> student layer that it was trained with, for every projector.
        targets: teacher layer -> refinement of the target; empty for a run without adapter.
        feature_loss: what the run compared its tokens by.

    Raises:
        ValueError: projectors and pairs of different layers.
    """

    projectors: Mapping[int, nn.Module]
    student_layers: Mapping[int, int]
    targets: Mapping[int, Refinement] = field(default_factory=dict)
    feature_loss: FeatureLoss = field(default_factory=FeatureLoss)

    def __post_init__(self):
        if set(self.projectors) != set(self.student_layers):
            raise ValueError(
                f"Projectors of teacher layers {sorted(self.projectors)} but student layers for "
                f"{sorted(self.student_layers)}: every projector needs the student layer it was trained with."
            )


def check_student(name: str, student: VisionBackbone) -> None:
    """Raises ValueError, naming the student, where it is in training mode or has weights that are not finite."""
    if student.model.training:
        raise ValueError(f"Student {name!r} is in training mode, where features are random: eval() it.")
    for parameter, weight in student.model.named_parameters():
        if not torch.isfinite(weight).all():
            raise ValueError(
                f"Student {name!r}: {parameter} holds NaN or infinite values: its training diverged; take an earlier "
                "checkpoint."
            )


class _Pair:
    """One teacher layer and the student layer that it met."""

    def __init__(
        self,
        layer: int,
        student_layer: int,
        widths: tuple[int, int],
        refinement: Refinement | None,
        fit: StudentFit | None,
        diagnosis: TeacherDiagnosis,
    ) -> None:
        self.layer, self.student_layer, self.refinement, self.diagnosis = layer, student_layer, refinement, diagnosis
        self.projector = None if fit is None else fit.projectors[layer]
        self.target = None if fit is None else fit.targets.get(layer)
        self.feature_loss = None if fit is None else fit.feature_loss
        self.loss_share, self.gradient_share = RunningShare(), RunningShare()
        self.gram, self.gram_refined = LogHistogram(), LogHistogram()
        self.cka = LinearCKAStatistics(*widths)
        self.norms, self.peak = PatchNorms(diagnosis.rule.min_ratio), Moments()

    def add(self, teacher: Tensor, student: Tensor, own: Tensor) -> None:
        """Patches (B, n, d_T) of the teacher; (B, n, d_S) of the student on the teacher's grid, and on its own."""
        count = teacher.shape[1]
        self.gram.add(gram_distance(teacher, student) * count)
        if self.refinement is not None:
            self.gram_refined.add(gram_distance(self.refinement(teacher), student) * count)
        self.cka.add(full_precision(teacher).flatten(0, 1).cpu(), full_precision(student).flatten(0, 1).cpu())
        if self.projector is not None:
            outliers = self.diagnosis.is_outlier(self.layer, patch_norms(teacher))
            target = full_precision(teacher if self.target is None else self.target(teacher))
            projected, target = self.feature_loss.compared(self.projector(full_precision(student)), target, 0)
            residuals = patch_norms(projected - target)
            self.gradient_share.add(residuals, outliers)
            self.loss_share.add(residuals.square(), outliers)
        norms = patch_norms(own)
        self.norms.add(norms)
        self.peak.add(image_peaks(norms))

    def summary(self, patches: int) -> dict[str, Any]:
        target = None if self.projector is None else "F" if self.target is None else "F̂"
        return {
            "teacher_layer": self.layer,
            "student_layer": self.student_layer,
            "gram_distance": self.gram.summary(),
            "gram_distance_per_patch": self.gram.mean / patches,
            "gram_distance_to_refined": self.gram_refined.summary() if self.gram_refined.count else None,
            "cka": trusted_cka(self.cka),
            "trained_to": target,
            "remaining_loss_on_outliers": self.loss_share.value,
            "remaining_gradient_on_outliers": self.gradient_share.value,
            "norms": self.norms.summary(),
            "peak_to_median": self.peak.mean,
            "outliers": asdict(find_outliers(self.norms, self.diagnosis.rule)),
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
    """One pass. With `fit`, over the pairs of layers that the run trained, and no others.

    Without, student layers are matched to the teacher's by relative depth, the last always to the last.

    Args:
        teacher, student: both models; an adapter in the teacher is left out.
        layers: of the teacher; the last block is added. Without `fit`.
        pairs: normalised pixels of both, (B, 3, H, W) each.
        diagnosis: the teacher's: which of its patches are outliers, and the rule for the student's own.
        refinements: of the teacher's layers, to measure the distance to refined features as well.
        fit: the run's projectors, to measure where its loss remains.

    Returns:
        For each layer: `gram_distance` ‖G(F_T) − G(F_S)‖_F of an image (Table 5b), `gram_distance_per_patch` (divided
        by the number of patches, Table 2), `cka` over all patches (`None` where they are too few for one, see
        [`trusted_cka`]), `norms` and `outliers` of the student, and with
        `fit` the share of what remains of the feature loss, and of its gradient's norm, that falls on the teacher's
        outliers: `trained_to` says whether that is the loss against F or against F̂.

    Raises:
        ValueError: a student in training mode, with features that are not finite, or no images.
    """
    check_student("student", student)
    if fit is None:
        layers = sorted({*layers, teacher.num_blocks - 1})
        matched = match_layers(layers, teacher.num_blocks, student.num_blocks)
    else:
        layers = sorted(fit.student_layers)
        matched = [fit.student_layers[layer] for layer in layers]
    widths = (teacher.hidden_size, student.hidden_size)
    measured = [
        _Pair(layer, other, widths, (refinements or {}).get(layer), fit, diagnosis)
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
    return [pair.summary(teacher_walk.layout.num_patches) for pair in measured]
