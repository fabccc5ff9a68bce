"""What a distillation objective is, and the registry of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from ..artifacts import outlier_norm_share, peak_to_median
from ..backbones import Features, VisionBackbone
from ..layers import match_layers
from ..losses import patch_norms
from .tokens import TokenAligner

if TYPE_CHECKING:
    from ..arguments import DistillationArguments


@dataclass
class DistillationStep:
    """One batch as an objective sees it.

    Args:
        teacher: unrefined features of the objective's `teacher_features`, without gradient.
        student: features of its `student_layers`.
        sample_seeds: (B,) int64, one for each sample and epoch: the source of any randomness, so that a run does not
            depend on the number of processes. `None` where the data carry none.
    """

    teacher: Features
    student: Features
    sample_seeds: Tensor | None = None


@dataclass
class ObjectiveOutput:
    """Weighted loss terms, whose sum is the loss, and statistics to log; scalars by name."""

    terms: dict[str, Tensor]
    statistics: dict[str, Tensor] = field(default_factory=dict)

    @property
    def loss(self) -> Tensor:
        return sum(self.terms.values())


class Objective(nn.Module, ABC):
    """A loss between a teacher's and a student's features, with the modules it trains (projectors, …).

    Args:
        teacher: the teacher; a `PeftModel`'s backbone where `uses_adapter`.
        student: the student.
        teacher_layers: distilled blocks D of the teacher.
        student_layers: the student's blocks, matched by [`match_layers`] where `None`.
        layer_matching: rule of that matching; default: the objective's `default_layer_matching`.
        outlier_quantile: α in (0, 1): patches above this quantile of their image's norms are outliers, to the logged
            statistics and to losses on outliers; 0.97 in the paper.

    Raises:
        ValueError: α outside (0, 1), layers that [`match_layers`] refuses.
    """

    name: ClassVar[str]
    uses_adapter: ClassVar[bool] = False
    """Whether the teacher must carry a nullspace adapter, which the objective trains."""
    uses_feature_loss: ClassVar[bool] = False
    """Whether it has a [`FeatureLoss`], with its options."""
    default_layer_matching: ClassVar[str] = "paper"
    default_init_lora_weights: ClassVar[str] = "nullspace"

    def __init__(
        self,
        teacher: VisionBackbone,
        student: VisionBackbone,
        *,
        teacher_layers: Iterable[int],
        student_layers: Iterable[int] | None = None,
        layer_matching: str | None = None,
        outlier_quantile: float = 0.97,
    ):
        super().__init__()
        check_quantile(outlier_quantile)
        self.outlier_quantile = outlier_quantile
        self.teacher, self.student = teacher, student
        teacher_layers = list(teacher_layers)
        self.teacher_layers = sorted(teacher_layers)
        self.student_layers = match_layers(
            teacher_layers,
            teacher.num_blocks,
            student.num_blocks,
            matching=layer_matching or self.default_layer_matching,
            student_layers=student_layers,
        )

    @classmethod
    @abstractmethod
    def default_teacher_layers(cls, num_blocks: int) -> list[int]:
        """Distilled layers where the user names none."""

    @classmethod
    @abstractmethod
    def options(cls, args: DistillationArguments) -> dict[str, Any]:
        """The objective's own options, from the arguments that it reads."""

    @classmethod
    def from_arguments(
        cls, teacher: VisionBackbone, student: VisionBackbone, args: DistillationArguments, teacher_layers: list[int]
    ) -> Objective:
        """The objective that the arguments describe, on `teacher_layers`."""
        return cls(
            teacher,
            student,
            teacher_layers=teacher_layers,
            student_layers=args.student_layers,
            layer_matching=args.layer_matching,
            outlier_quantile=args.outlier_quantile,
            **cls.options(args),
        )

    @property
    def teacher_features(self) -> list[int]:
        """Blocks of the teacher whose output `forward` needs."""
        return self.teacher_layers

    @abstractmethod
    def forward(self, step: DistillationStep) -> ObjectiveOutput:
        """The weighted terms of one batch."""

    def _aligner(self, step: DistillationStep) -> TokenAligner:
        return TokenAligner(step.student.layout, step.teacher.layout)

    def _teacher_patches(self, step: DistillationStep, tokens: Tensor) -> Tensor:
        return tokens[:, step.teacher.layout.num_prefix_tokens :]


def check_quantile(quantile: float) -> None:
    """Raises ValueError unless 0 < quantile < 1."""
    if not 0 < quantile < 1:
        raise ValueError(f"outlier_quantile must lie strictly between 0 and 1, got {quantile}.")


def artifact_statistics(patches: Iterable[Tensor], quantile: float, suffix: str) -> dict[str, Tensor]:
    """Artifact statistics of each layer's patches (B, n, d), mean over layers."""
    norms = [patch_norms(layer.detach()) for layer in patches]
    return {
        f"outlier_norm_share_{suffix}": sum(outlier_norm_share(n, quantile) for n in norms) / len(norms),
        f"peak_to_median_{suffix}": sum(peak_to_median(n) for n in norms) / len(norms),
    }


OBJECTIVES: dict[str, type[Objective]] = {}


def register_objective(objective: type[Objective]) -> type[Objective]:
    """Class decorator: makes an objective known by its `name`, also to the command line."""
    OBJECTIVES[objective.name] = objective
    return objective


def objective_class(name: str) -> type[Objective]:
    """The objective registered as `name`. Raises ValueError with the known names otherwise."""
    if name not in OBJECTIVES:
        raise ValueError(f"Unknown objective {name!r}: expected one of {', '.join(sorted(OBJECTIVES))}.")
    return OBJECTIVES[name]
