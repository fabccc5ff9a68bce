"""ViTKD: mimicking of the first blocks and masked generation of the last."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..losses import full_precision
from .base import DistillationStep, Objective, ObjectiveOutput, artifact_statistics, register_objective
from .projectors import build_projector
from .sample_noise import sample_noise


@register_objective
class ViTKDObjective(Objective):
    """ViTKD (arXiv 2209.02432, its official form): `α Σ_l ‖A_l(F_S) − F_l‖² / B + (β/λ) ‖m ∘ (gen(F̃_S) − F_L)‖² / B`.

    All but the last of `teacher_layers` are mimicked through linear maps A_l; for the last, a share λ of the student's
    aligned patches is replaced by a mask token and two 3×3 convolutions generate the teacher's patches from the rest.
    Patch tokens alone; sums over tokens and channels, mean over the batch. The projector's and generator's weights
    train, unlike in the released code. Terms: `loss_mimicking`, `loss_generation`, weighted.

    Args:
        teacher, student, and the options of every objective: see [`Objective`].
        mimicking_weight: α, 3e-5 officially.
        generation_weight: β, 3e-6 officially.
        mask_ratio: λ in (0, 1), 0.5 officially.
        projector: a name in `PROJECTORS`.
    """

    name = "vitkd"

    def __init__(
        self,
        teacher,
        student,
        *,
        mimicking_weight: float = 3e-5,
        generation_weight: float = 3e-6,
        mask_ratio: float = 0.5,
        projector: str = "linear",
        **common: Any,
    ):
        super().__init__(teacher, student, **common)
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio must lie strictly between 0 and 1, got {mask_ratio}.")
        self.mimicking_weight, self.generation_weight = mimicking_weight, generation_weight
        self.mask_ratio = mask_ratio
        widths = (student.hidden_size, teacher.hidden_size)
        self.mimicking = nn.ModuleDict({str(t): build_projector(projector, *widths) for t in self.teacher_layers[:-1]})
        self.align = build_projector(projector, *widths)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, teacher.hidden_size))
        self.generation = nn.Sequential(
            nn.Conv2d(teacher.hidden_size, teacher.hidden_size, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(teacher.hidden_size, teacher.hidden_size, kernel_size=3, padding=1),
        )

    @classmethod
    def default_teacher_layers(cls, num_blocks: int) -> list[int]:
        """Blocks 0 and 1 are mimicked, the last is generated."""
        return sorted({0, min(1, num_blocks - 1), num_blocks - 1})

    @classmethod
    def options(cls, args):
        return {
            "mimicking_weight": args.vitkd_mimicking_weight,
            "generation_weight": args.vitkd_generation_weight,
            "mask_ratio": args.vitkd_mask_ratio,
            "projector": args.projector,
        }

    def forward(self, step: DistillationStep) -> ObjectiveOutput:
        pairs = list(zip(self.teacher_layers, self.student_layers, strict=True))
        mimicking = sum(self.mimic(step, self.mimicking[str(pair[0])], *pair) for pair in pairs[:-1])
        student, target = self._patches(step, *pairs[-1])
        mask = self.mask(step, target)
        generated = self.generate(student, mask, step.teacher.layout.grid)
        generation = self._per_image_sum(mask * (generated - target))
        return ObjectiveOutput(
            {
                "loss_mimicking": self.mimicking_weight * torch.as_tensor(mimicking, device=generation.device),
                "loss_generation": self.generation_weight / self.mask_ratio * generation,
            },
            artifact_statistics([target], self.outlier_quantile, "before"),
        )

    def mimic(self, step: DistillationStep, projector: nn.Module, layer: int, student_layer: int) -> Tensor:
        """‖A(F_S) − F_l‖² / B of one pair of blocks, unweighted."""
        student, target = self._patches(step, layer, student_layer)
        return self._per_image_sum(projector(student) - target)

    def _patches(self, step: DistillationStep, layer: int, student_layer: int) -> tuple[Tensor, Tensor]:
        """Patches of a pair of blocks, the student's on the teacher's grid: (B, n, d_S), (B, n, d_T)."""
        aligner = self._aligner(step)
        student = aligner.align_student(step.student.hidden[student_layer])[:, aligner.num_prefix_tokens :]
        return student, self._teacher_patches(step, step.teacher.hidden[layer])

    def mask(self, step: DistillationStep, patches: Tensor) -> Tensor:
        """(B, n, 1), 1 for masked patches: those whose noise ranks above the kept share of the image."""
        batch, count = patches.shape[:2]
        if step.sample_seeds is None:
            noise = torch.rand(batch, count, device=patches.device)
        else:
            noise = sample_noise(step.sample_seeds, count)
        return self.mask_from_noise(noise)

    def mask_from_noise(self, noise: Tensor) -> Tensor:
        """(B, n) noise -> (B, n, 1) mask."""
        rank = noise.argsort(dim=1).argsort(dim=1)
        return (rank >= int(noise.shape[1] * (1 - self.mask_ratio)))[..., None].to(self.mask_token.dtype)

    def generate(self, student: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
        """Student patches (B, n, d_S) -> generated teacher patches (B, n, d_T)."""
        visible = torch.where(mask.bool(), self.mask_token, self.align(student))
        maps = visible.transpose(1, 2).unflatten(2, grid)
        return self.generation(maps).flatten(2).transpose(1, 2)

    def _per_image_sum(self, difference: Tensor) -> Tensor:
        return full_precision(difference).square().sum() / len(difference)
