"""The module that a Trainer trains: teacher, student and objective in one."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .backbones import vision_backbone
from .data import PixelNormalization
from .losses import gram_distance
from .objectives import DistillationStep, Objective
from .objectives.tokens import TokenAligner


class Distiller(nn.Module):
    """Teacher, student and objective as one module, so that all that trains is synchronised, clipped and saved.

    The teacher is frozen and always in eval mode; only the adapter in it trains, where the objective uses one. Its
    pass runs without the adapter and without gradient, and stops at the last block the objective needs.

    Args:
        teacher: a ViT, or a `PeftModel` with a nullspace adapter where the objective uses one.
        student: a plain `PreTrainedModel`.
        objective: built on both.
        teacher_normalization, student_normalization: from uint8 pixels to what each model expects.
    """

    # Read by Trainer: the loss is a mean, to be divided by the number of accumulated batches.
    accepts_loss_kwargs = False
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True

    def __init__(
        self,
        teacher: nn.Module,
        student: PreTrainedModel,
        objective: Objective,
        *,
        teacher_normalization: PixelNormalization,
        student_normalization: PixelNormalization,
    ):
        super().__init__()
        self.teacher, self.student, self.objective = teacher, student, objective
        self.teacher_normalization, self.student_normalization = teacher_normalization, student_normalization
        self.teacher_backbone, self.student_backbone = vision_backbone(teacher), vision_backbone(student)
        # A copy: Trainer writes `use_cache` into it, which must not reach the student's config.json.
        self.config = copy.deepcopy(student.config)
        for name, parameter in teacher.named_parameters():
            parameter.requires_grad_(objective.uses_adapter and "lora_" in name)
        self.train(self.training)

    def train(self, mode: bool = True) -> Distiller:
        super().train(mode)
        self.teacher.eval()
        return self

    # Called by Trainer; of the student alone, since the teacher keeps no activations but those behind its adapters.
    def activation_checkpointing_enable(self, **options: Any) -> None:
        self.student.activation_checkpointing_enable(**options)

    def activation_checkpointing_disable(self) -> None:
        self.student.activation_checkpointing_disable()

    # The names of the two above before transformers 5.23; to be removed with support for those versions.
    def gradient_checkpointing_enable(self, **options: Any) -> None:
        self.student.gradient_checkpointing_enable(**options)

    def gradient_checkpointing_disable(self) -> None:
        self.student.gradient_checkpointing_disable()

    def forward(
        self,
        pixel_values: Tensor,
        teacher_pixel_values: Tensor | None = None,
        sample_seed: Tensor | None = None,
    ) -> dict[str, Any]:
        """One distillation step's loss.

        Args:
            pixel_values: (B, 3, H, W) uint8, the student's view.
            teacher_pixel_values: (B, 3, H', W') uint8; the student's view where `None`.
            sample_seed: (B,) int64, see [`DistillationStep`].

        Returns:
            `loss` (scalar), `terms` and `statistics` (scalars by name); in eval mode also `embedding` (B, d_S), the
            student's last CLS token (or its mean patch, where it has none), and `gram_distance` (B,), between the
            last blocks of student and unrefined teacher.
        """
        if teacher_pixel_values is None:
            teacher_pixel_values = pixel_values
        scoring = not self.training
        teacher_layers, student_layers = set(self.objective.teacher_features), set(self.objective.student_layers)
        if scoring:
            teacher_layers.add(self.teacher_backbone.num_blocks - 1)
            student_layers.add(self.student_backbone.num_blocks - 1)
        with torch.no_grad():
            teacher_pixels = self.teacher_normalization(teacher_pixel_values).to(_dtype(self.teacher))
            teacher = self.teacher_backbone.features(teacher_pixels, teacher_layers, adapters=False)
        student_pixels = self.student_normalization(pixel_values).to(_dtype(self.student))
        student = self.student_backbone.features(student_pixels, student_layers)

        step = DistillationStep(teacher, student, sample_seed)
        output = self.objective(step)
        result = {"loss": output.loss, "terms": output.terms, "statistics": output.statistics}
        if scoring:
            result |= self._scores(step)
        return result

    def _scores(self, step: DistillationStep) -> dict[str, Tensor]:
        last = step.student.hidden[self.student_backbone.num_blocks - 1]
        teacher = step.teacher.hidden[self.teacher_backbone.num_blocks - 1]
        aligner = TokenAligner(step.student.layout, step.teacher.layout)
        patches = aligner.align_student(last)[:, len(aligner.student_prefix) :]
        return {
            "embedding": self.embedding(last).float(),
            "gram_distance": gram_distance(patches, teacher[:, step.teacher.layout.num_prefix_tokens :]),
        }

    def embedding(self, hidden: Tensor) -> Tensor:
        """(B, N, d) -> (B, d): the CLS token, or the mean patch of a model without one."""
        prefix = self.student_backbone.prefix
        return hidden[:, prefix.index("cls")] if "cls" in prefix else hidden[:, len(prefix) :].mean(dim=1)

    def freeze_unused(self, student_size: tuple[int, int], teacher_size: tuple[int, int]) -> list[str]:
        """Stops training what the objective never reaches, and says what: a final norm, a pooler, a mask token.

        Features are taken in front of the final norm, so it gets no gradient. Left trainable, such a parameter would
        be an error under `DistributedDataParallel` and would only be decayed.

        Args:
            student_size, teacher_size: (height, width) of the models' inputs.

        Returns:
            Names of the parameters that were frozen.
        """
        device = next(self.student.parameters()).device
        trainable = {name: p for name, p in self.named_parameters() if p.requires_grad}
        training = self.training
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pixels = [torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8) for size in (student_size, teacher_size)]
            seed = torch.zeros(1, dtype=torch.int64, device=device)
            loss = self.train()(*(p.to(device) for p in pixels), seed)["loss"]
            gradients = torch.autograd.grad(loss, trainable.values(), allow_unused=True)
        self.train(training)
        unused = [name for name, gradient in zip(trainable, gradients, strict=True) if gradient is None]
        for name in unused:
            trainable[name].requires_grad_(False)
        return unused


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype
