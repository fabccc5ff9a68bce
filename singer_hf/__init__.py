"""SiNGER: distilling Vision Transformers from refined features, as a Hugging Face ecosystem package.

Start with [`DistillationTrainer`], [`DistillationArguments`] and [`NullspaceLoraConfig`]; importing this package also
makes PEFT know the adapter, so that `PeftModel.from_pretrained` loads it.
"""

from .adapter import NullspaceLoraConfig
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
from .objectives import OBJECTIVES, Objective, register_objective

__version__ = "0.1.0"

