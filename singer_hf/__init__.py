"""SiNGER: distilling Vision Transformers from refined features, as a Hugging Face ecosystem package.

Start with [`DistillationTrainer`], [`DistillationArguments`] and [`NullspaceLoraConfig`]; importing this package also
makes PEFT know the adapter, so that `PeftModel.from_pretrained` loads it.
"""

from .adapter import NullspaceLoraConfig
from .arguments import DistillationArguments
from .backbones import (
    STUDENT_SIZES,
    StudentSize,
    VisionBackbone,
    build_student,
    load_vision_model,
    register_backbone,
    supported_model_types,
    vision_backbone,
)
from .checkpoints.folder import CheckpointError, load_distillation, save_distillation
from .distiller import Distiller
from .dry_run import RunEstimate, estimate_run
from .objectives import OBJECTIVES, Objective, register_objective
from .records.run_record import RunRecord
from .trainer import DistillationTrainer

__version__ = "0.1.0"

__all__ = [
    "OBJECTIVES",
    "STUDENT_SIZES",
    "CheckpointError",
    "DistillationArguments",
    "DistillationTrainer",
    "Distiller",
    "NullspaceLoraConfig",
    "Objective",
    "RunEstimate",
    "RunRecord",
    "StudentSize",
    "VisionBackbone",
    "build_student",
    "estimate_run",
    "load_distillation",
    "load_vision_model",
    "register_backbone",
    "register_objective",
    "save_distillation",
    "supported_model_types",
    "vision_backbone",
]
