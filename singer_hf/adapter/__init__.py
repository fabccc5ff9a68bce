"""The nullspace-initialised adapter as a PEFT method."""

from .config import NullspaceLoraConfig
from .layer import NullspaceLoraLayer
from .model import NullspaceLoraModel, initialize_adapter

__all__ = ["NullspaceLoraConfig", "NullspaceLoraLayer", "NullspaceLoraModel", "initialize_adapter"]
