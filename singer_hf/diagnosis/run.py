"""A whole diagnosis: teacher, refinements, students and perturbations, in the order in which they need each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones import VisionBackbone, check_layers, vision_backbone
from ..losses import patch_norms
from ..nullspace import surrogate_layer
from .cka import images_for_cka
from .closed_form import fit_closed_form
from .effect import RefinementEffect, measure_refinements
from .images import ImageBatches, ImageSample, ModelInput
from .outliers import OutlierRule
from .perturbation import measure_perturbations
from .recommend import Recommendation, looked_at_sentence, null_rank, recommend
from .refinement import Refinement, check_refinements, initial_refinements
from .statistics import as_json
from .student import StudentFit, check_student, measure_student
from .teacher import TeacherDiagnosis, diagnose_teacher

INITIAL, CLOSED_FORM, CLOSED_FORM_FREE = "untrained (F N Nᵀ)", "closed form", "closed form, all directions"


@dataclass(frozen=True)
class DiagnosisOptions:
    """What to do.

    Args:
        rule: what counts as an outlier.
        layers: blocks to look at closely; default: the adapters', else the recommended ones.
        rank: r of null bases; default: the adapters', else the recommended one.
        fold_layer_norm: fold LayerNorm and LayerScale into surrogates.
        closed_form: fit and measure the training-free refinement.
        closed_form_weight: ω of it.
        perturbation_images: images for Table 8; 0 leaves it out.
        perturbation_size: norm of a perturbation relative to its patch.
        sample_images: images whose norms are drawn one by one.
        shown_images: images that are shown.
        seed: of everything random.
    """

    rule: OutlierRule = field(default_factory=OutlierRule)
    layers: list[int] | None = None
    rank: int | None = None
    fold_layer_norm: bool = False
    closed_form: bool = True
    closed_form_weight: float = 1.0
    perturbation_images: int = 64
    perturbation_size: float = 0.2
    sample_images: int = 100
    shown_images: int = 4
    seed: int = 0

    def __post_init__(self):
        for name in ("sample_images", "shown_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.perturbation_images < 0 or self.perturbation_images == 1:
            raise ValueError(f"perturbation_images must be 0 (none) or at least 2, got {self.perturbation_images}.")
        if self.perturbation_size <= 0:
            raise ValueError(f"perturbation_size must be positive, got {self.perturbation_size}.")
        if self.closed_form_weight <= 0:
            raise ValueError(f"closed_form_weight must be positive, got {self.closed_form_weight}.")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}.")


@dataclass
class Diagnosis:
    """All results; `summary()` is what is written as JSON, and what tables and report are made from."""

    options: DiagnosisOptions
    backbone: VisionBackbone
    teacher: TeacherDiagnosis
    recommendation: Recommendation
    layers: list[int]
    rank: int
    sample: ImageSample
    refinements: dict[str, dict[int, Refinement]]
    effects: dict[str, dict[int, RefinementEffect]]
    students: dict[str, VisionBackbone]
    shown: list[int]
    student_samples: dict[str, ImageSample]
    student_results: dict[str, list[dict[str, Any]]]
    perturbations: dict[int, dict[str, dict[str, float]]]

    @property
    def widest(self) -> int:
        """Greatest width of teacher and students."""
        return max(backbone.hidden_size for backbone in (self.backbone, *self.students.values()))

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        return as_json(
            {
                "recommendation": asdict(self.recommendation),
                "layers": self.layers,
                "rank": self.rank,
                "looked_at": looked_at_sentence(self.teacher, self.layers, self.rank, self.recommendation),
                "images_for_cka": images_for_cka(self.widest, self.teacher.layout.num_patches),
                "options": asdict(self.options),
                "teacher": self.teacher.summary(),
                "refinements": {
                    name: [effect.summary() for effect in of.values()] for name, of in self.effects.items()
                },
                "students": self.student_results,
                "perturbations": self.perturbations,
            }
        )


def diagnose(
    teacher: nn.Module,
    images: ImageBatches,
    *,
    refinements: Mapping[str, Mapping[int, Refinement]] | None = None,
    students: Mapping[str, tuple[nn.Module, ModelInput]] | None = None,
    fits: Mapping[str, StudentFit] | None = None,
    options: DiagnosisOptions | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Diagnosis:
    """Diagnoses a teacher and what was made of it.

    The teacher takes one pass over the images, all refinements together one, the closed form two more, each student
    one. Memory does not grow with the number of images.

    Args:
        teacher: the plain teacher, in eval mode, on the device of `images`.
        images: the dataset.
        refinements: of trained adapters, name -> layer -> refinement.
        students: name -> (student, what it takes).
        fits: name of a student -> what it was trained to.
        options: see [`DiagnosisOptions`].
        report: called with a line before each stage.

    Raises:
        ValueError: whatever of the models, images and options do not go together; the message says what to do.
    """
    options, trained = options or DiagnosisOptions(), {name: dict(of) for name, of in (refinements or {}).items()}
    backbone = vision_backbone(teacher)
    named = sorted({layer for of in trained.values() for layer in of}) or None
    for name, of in trained.items():
        if name in (INITIAL, CLOSED_FORM, CLOSED_FORM_FREE):
            raise ValueError(f"{name!r} is the diagnosis's own name of a refinement: give the adapter another.")
        check_refinements(name, of, backbone)
    students = {name: (vision_backbone(student), takes) for name, (student, takes) in (students or {}).items()}
    for name, (student, _) in students.items():
        check_student(name, student)
    layers = check_layers(options.layers, backbone.num_blocks) if options.layers else named
    if (rank := options.rank) is not None and rank > backbone.hidden_size:
        raise ValueError(f"rank {rank} is above the teacher's width {backbone.hidden_size}.")
    if images.count is not None:  # before a pass over all of them
        rows, columns = images.teacher.size
        options.rule.require(images.count, backbone.layout(torch.empty(1, 3, rows, columns)).num_patches)
    report("Teacher: norms of every block")
    found = diagnose_teacher(backbone, images, rule=options.rule, fold_layer_norm=options.fold_layer_norm)
    advice = recommend(found)
    layers = sorted(layers or advice.layers)
    ranks = [refinement.down.shape[1] for of in trained.values() for refinement in of.values()]
    rank = options.rank or (max(ranks) if ranks else null_rank(found, layers)[0])

    every = dict(trained)
    every[INITIAL] = initial_refinements(backbone, layers, rank, fold_layer_norm=options.fold_layer_norm)
    if options.closed_form:
        report("Closed form: what outliers carry")
        for name, size in ((CLOSED_FORM, rank), (CLOSED_FORM_FREE, backbone.hidden_size)):
            fitted = fit_closed_form(
                backbone,
                layers,
                found,
                images,
                rank=size,
                weight=options.closed_form_weight,
                fold_layer_norm=options.fold_layer_norm,
            )
            if fitted:
                every[name] = fitted
    report(f"Refinements: {', '.join(every)}")
    effects = measure_refinements(backbone, every, found, images)
    sample = images.sample(max(options.sample_images, options.perturbation_images))
    shown = images_with_most_outliers(backbone, found, layers, sample.teacher_pixels, options.shown_images)

    results, samples = {}, {}
    for name, (student, takes) in students.items():
        report(f"Student: {name}")
        own = replace(images, student=takes)
        results[name] = measure_student(
            backbone,
            student,
            layers,
            own.pairs(),
            diagnosis=found,
            refinements=trained.get(name),  # of its own run alone
            fit=(fits or {}).get(name),
        )
        samples[name] = own.sample(len(sample)).select(shown)
    perturbations = {}
    if options.perturbation_images:
        report("Perturbations in null directions")
        perturbations = measure_perturbations(
            backbone,
            layers,
            sample.teacher_pixels[: options.perturbation_images],
            rank=rank,
            size=options.perturbation_size,
            seed=options.seed,
        )
    return Diagnosis(
        options=options,
        backbone=backbone,
        teacher=found,
        recommendation=advice,
        layers=layers,
        rank=rank,
        sample=sample,
        refinements=every,
        effects=effects,
        shown=shown,
        students={name: student for name, (student, _) in students.items()},
        student_samples=samples,
        student_results=results,
        perturbations=perturbations,
    )


@torch.no_grad()
def images_with_most_outliers(
    backbone: VisionBackbone, diagnosis: TeacherDiagnosis, layers: list[int], pixels: Tensor, count: int
) -> list[int]:
    """Indices of the `count` images with most outliers in `layers`, in the order of the images.

    Images without any are of little interest in a picture of artifacts; without artifacts it is the first images.
    """
    weight, found = next(backbone.model.parameters()), []
    for batch in pixels.split(16):
        features = backbone.features(batch.to(weight), layers, adapters=False)
        found.append(
            sum(
                diagnosis.is_outlier(layer, patch_norms(hidden[:, backbone.num_prefix_tokens :])).sum(dim=1)
                for layer, hidden in features.hidden.items()
            ).cpu()
        )
    order = torch.cat(found).argsort(descending=True, stable=True)
    return sorted(order[:count].tolist())


def surrogate_blocks(diagnosis: Diagnosis) -> list[int]:
    """The blocks whose surrogates refinements at the diagnosis's layers must not disturb."""
    num_blocks = len(diagnosis.teacher.layers)
    return list(dict.fromkeys(surrogate_layer(layer, num_blocks) for layer in diagnosis.layers))
