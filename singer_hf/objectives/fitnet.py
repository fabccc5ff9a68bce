"""FitNet: plain feature distillation, the baseline of the paper's tables."""

from __future__ import annotations

from typing import Any

from torch import nn

from .base import DistillationStep, Objective, ObjectiveOutput, artifact_statistics, register_objective
from .feature_loss import FeatureLoss
from .projectors import build_projector


@register_objective
class FitNetObjective(Objective):
    """`Σ_l mean((P_l(F_S) − F_l)²)` on unrefined features. Paper: FitNets, ICLR 2015 (arXiv 1412.6550).

    Term: `loss_fitnet`.

    Args:
        teacher, student, and the options of every objective: see [`Objective`].
        projector: a name in `PROJECTORS`.
        normalize_target, outlier_mask_ratio, prefix_share: of the loss, applied to F: see [`FeatureLoss`].
    """

    name = "fitnet"
    uses_feature_loss = True

    def __init__(
        self,
        teacher,
        student,
        *,
        projector: str = "linear",
        normalize_target: str = "none",
        outlier_mask_ratio: float | None = None,
        prefix_share: float | None = None,
        **common: Any,
    ):
        super().__init__(teacher, student, **common)
        self.feature_loss = FeatureLoss(normalize_target, outlier_mask_ratio, prefix_share)
        self.projectors = nn.ModuleDict(
            {
                str(layer): build_projector(projector, student.hidden_size, teacher.hidden_size)
                for layer in self.teacher_layers
            }
        )

    @classmethod
    def default_teacher_layers(cls, num_blocks: int) -> list[int]:
        """Half, three quarters and the whole of the depth: the released recipe's {11, 17, 23} of 24 blocks."""
        return sorted({max(num_blocks * quarters // 4 - 1, 0) for quarters in (2, 3, 4)})

    @classmethod
    def options(cls, args):
        return {
            "projector": args.projector,
            "normalize_target": args.target_normalization,
            "outlier_mask_ratio": args.outlier_mask_ratio,
            "prefix_share": args.prefix_share,
        }

    def forward(self, step: DistillationStep) -> ObjectiveOutput:
        aligner = self._aligner(step)
        targets = [aligner.align_teacher(step.teacher.hidden[layer]) for layer in self.teacher_layers]
        loss = sum(
            self.feature_loss(
                self.projectors[str(layer)](aligner.align_student(step.student.hidden[student_layer])),
                target,
                aligner.num_prefix_tokens,
            )
            for layer, student_layer, target in zip(self.teacher_layers, self.student_layers, targets, strict=True)
        )
        patches = [self._teacher_patches(step, step.teacher.hidden[layer]) for layer in self.teacher_layers]
        return ObjectiveOutput(
            {"loss_fitnet": loss},
            artifact_statistics(patches, self.outlier_quantile, "before")
            | self.feature_loss.statistics(targets, aligner.num_prefix_tokens),
        )
