"""Bringing a student's tokens onto a teacher's token layout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbones import TokenLayout


def shared_prefix(student: TokenLayout, teacher: TokenLayout) -> tuple[list[int], list[int]]:
    """Indices of the prefix tokens that mean the same in both layouts.

    Roles are matched in order: CLS to CLS, the k-th register to the k-th register. A token with no counterpart (the
    registers of a DINOv2 teacher, the distillation token of a DeiT student) is left out on its side.

    Returns:
        Positions in the student's and in the teacher's prefix, pairwise.
    """
    free = list(range(teacher.num_prefix_tokens))
    pairs = []
    for position, role in enumerate(student.prefix):
        match = next((other for other in free if teacher.prefix[other] == role), None)
        if match is not None:
            free.remove(match)
            pairs.append((position, match))
    return [s for s, _ in pairs], [t for _, t in pairs]


def resize_patches(patches: Tensor, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Bilinear interpolation of patch tokens (B, rows*cols, d) from one grid to another, (B, rows'*cols', d).

    Interpolation and a linear projector commute (its weights sum to one), so it is done at the student's width.
    """
    if grid == target:
        return patches
    maps = patches.transpose(1, 2).unflatten(2, grid)
    maps = F.interpolate(maps.float(), size=target, mode="bilinear", align_corners=False, antialias=True)
    return maps.flatten(2).transpose(1, 2).to(patches.dtype)


class TokenAligner:
    """Selects and resamples tokens so that a student's and a teacher's features can be compared token by token.

    Where both layouts are the same it changes nothing. Otherwise the student's patches are interpolated onto the
    teacher's grid and prefix tokens without a counterpart are left out.

    Args:
        student: layout of the student's features.
        teacher: layout of the teacher's features.
    """

    def __init__(self, student: TokenLayout, teacher: TokenLayout):
        self.student, self.teacher = student, teacher
        self.student_prefix, self.teacher_prefix = shared_prefix(student, teacher)

    @property
    def num_prefix_tokens(self) -> int:
        """Prefix tokens of aligned features: those that both have."""
        return len(self.teacher_prefix)

    def align_student(self, tokens: Tensor) -> Tensor:
        """(B, N_S, d_S) -> (B, N, d_S): shared prefix tokens, then patches on the teacher's grid."""
        if self.student == self.teacher:
            return tokens
        patches = resize_patches(tokens[:, self.student.num_prefix_tokens :], self.student.grid, self.teacher.grid)
        return torch.cat([tokens[:, self.student_prefix], patches], dim=1)

    def align_teacher(self, tokens: Tensor) -> Tensor:
        """(B, N_T, d_T) -> (B, N, d_T): shared prefix tokens, then patches."""
        if len(self.teacher_prefix) == self.teacher.num_prefix_tokens:
            return tokens
        return torch.cat([tokens[:, self.teacher_prefix], tokens[:, self.teacher.num_prefix_tokens :]], dim=1)
