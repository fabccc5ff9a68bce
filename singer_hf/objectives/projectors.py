"""P_l: maps from the student's width to the teacher's."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def linear_projector(student_width: int, teacher_width: int) -> nn.Module:
    """The paper's projector: one linear map with bias, initialised as `nn.Linear`."""
    return nn.Linear(student_width, teacher_width)


def identity_projector(student_width: int, teacher_width: int) -> nn.Module:
    """No projector, where the student already has the teacher's width.

    Raises:
        ValueError: the widths differ.
    """
    if student_width != teacher_width:
        raise ValueError(
            f"An identity projector needs a student as wide as the teacher, got {student_width} and {teacher_width}: "
            "use projector='linear'."
        )
    return nn.Identity()


PROJECTORS: dict[str, Callable[[int, int], nn.Module]] = {"linear": linear_projector, "identity": identity_projector}


def build_projector(name: str, student_width: int, teacher_width: int) -> nn.Module:
    """The projector registered as `name`: tokens (…, d_S) -> (…, d_T). Raises ValueError for an unknown name."""
    if name not in PROJECTORS:
        raise ValueError(f"Unknown projector {name!r}: expected one of {', '.join(PROJECTORS)}.")
    return PROJECTORS[name](student_width, teacher_width)
