"""Vision Transformers behind one contract."""

from .contract import (
    Features,
    FeedForward,
    FeedForwardModules,
    TokenLayout,
    VisionBackbone,
    blocks_prefix,
    check_layers,
    plain_block,
    register_backbone,
    supported_model_types,
    vision_backbone,
)
from .loading import STUDENT_SIZES, StudentSize, build_student, load_vision_model
from .timm_vit import TimmBackbone
from .transformers_vit import (
    BeitBackbone,
    ClipVisionBackbone,
    DeiTBackbone,
    Dinov2Backbone,
    Dinov2WithRegistersBackbone,
    Dinov3Backbone,
    IJepaBackbone,
    SiglipVisionBackbone,
    ViTBackbone,
    ViTMAEBackbone,
)

__all__ = [
    "STUDENT_SIZES",
    "BeitBackbone",
    "ClipVisionBackbone",
    "DeiTBackbone",
    "Dinov2Backbone",
    "Dinov2WithRegistersBackbone",
    "Dinov3Backbone",
    "Features",
    "FeedForward",
    "FeedForwardModules",
    "IJepaBackbone",
    "SiglipVisionBackbone",
    "StudentSize",
    "TimmBackbone",
    "TokenLayout",
    "ViTBackbone",
    "ViTMAEBackbone",
    "VisionBackbone",
    "blocks_prefix",
    "build_student",
    "check_layers",
    "load_vision_model",
    "plain_block",
    "register_backbone",
    "supported_model_types",
    "vision_backbone",
]
