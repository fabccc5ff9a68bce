"""Which blocks are distilled, and which student block meets which teacher block (METHOD.md section 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from .backbones import check_layers


def default_teacher_layers(num_blocks: int) -> list[int]:
    """The block at three quarters of the depth, and the last: {17, 23} of 24 blocks as in the paper, {8, 11} of 12.

    A teacher of one block has only that one.
    """
    return sorted({max(3 * num_blocks // 4 - 1, 0), num_blocks - 1})


def _match(depths: np.ndarray, student_blocks: int) -> list[int]:
    """Distinct student blocks at least total |depth difference|; depths in [0, 1], of the teacher's layers."""
    student_depths = np.arange(student_blocks) / max(student_blocks - 1, 1)
    return linear_sum_assignment(np.abs(depths[:, None] - student_depths[None]))[1].tolist()


def match_layers_paper(teacher_layers: Sequence[int], teacher_blocks: int, student_blocks: int) -> list[int]:
    """Least Σ |l / (L_T − 1) − s / (L_S − 1)|: the last teacher block meets the last student block."""
    return _match(np.asarray(teacher_layers) / max(teacher_blocks - 1, 1), student_blocks)


def match_layers_reference(teacher_layers: Sequence[int], teacher_blocks: int, student_blocks: int) -> list[int]:
    """The released code's rule, l / L_T in place of l / (L_T − 1): the student's last block may get no gradient."""
    return _match(np.asarray(teacher_layers) / teacher_blocks, student_blocks)


LAYER_MATCHINGS: dict[str, Callable[[Sequence[int], int, int], list[int]]] = {
    "paper": match_layers_paper,
    "reference": match_layers_reference,
}


def match_layers(
    teacher_layers: Sequence[int],
    teacher_blocks: int,
    student_blocks: int,
    *,
    matching: str = "paper",
    student_layers: Sequence[int] | None = None,
) -> list[int]:
    """The student layer of every teacher layer, in the order of the sorted teacher layers.

    Args:
        teacher_layers: blocks of the teacher to distill, 0-based.
        teacher_blocks: L_T, blocks of the teacher.
        student_blocks: L_S, blocks of the student.
        matching: a name in `LAYER_MATCHINGS`.
        student_layers: named by the user: they win, one for each teacher layer in the order these were given.

    Raises:
        ValueError: a layer out of range or named twice, more teacher layers than student blocks, an unknown matching.
    """
    named = list(teacher_layers)
    teacher_layers = check_layers(named, teacher_blocks, "teacher layer")
    if student_layers is not None:
        if len(student_layers) != len(named):
            raise ValueError(
                f"{len(student_layers)} student layers {list(student_layers)} for {len(named)} teacher "
                f"layers {named}: name one student layer for each teacher layer."
            )
        for layer in student_layers:  # one at a time: a student layer may learn from several teacher layers
            check_layers([layer], student_blocks, "student layer")
        return [student for _, student in sorted(zip(named, student_layers, strict=True))]
    if len(teacher_layers) > student_blocks:
        raise ValueError(
            f"{len(teacher_layers)} teacher layers {teacher_layers} need as many distinct student blocks, but the "
            f"student has {student_blocks}: distill fewer layers or take a deeper student."
        )
    if matching not in LAYER_MATCHINGS:
        raise ValueError(f"Unknown layer matching {matching!r}: expected one of {', '.join(LAYER_MATCHINGS)}.")
    return LAYER_MATCHINGS[matching](teacher_layers, teacher_blocks, student_blocks)
