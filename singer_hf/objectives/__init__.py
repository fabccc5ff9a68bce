"""Distillation objectives, one a file, in one registry."""

from .base import (
    OBJECTIVES,
    DistillationStep,
    Objective,
    ObjectiveOutput,
    objective_class,
    register_objective,
)
from .fitnet import FitNetObjective
from .singer import ReferenceSingerObjective, SingerObjective
from .vitkd import ViTKDObjective

__all__ = [
    "OBJECTIVES",
    "DistillationStep",
    "FitNetObjective",
    "Objective",
    "ObjectiveOutput",
    "ReferenceSingerObjective",
    "SingerObjective",
    "ViTKDObjective",
    "objective_class",
    "register_objective",
]
