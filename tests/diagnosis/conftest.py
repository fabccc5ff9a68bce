import pytest
import torch
from artifact_models import pixels, with_artifacts
from families import tiny_vit


@pytest.fixture
def images():
    return pixels()


@pytest.fixture
def artifact_teacher():
    """A tiny ViT with artifacts in blocks 2 and 3 of 4."""
    torch.manual_seed(0)
    return with_artifacts(tiny_vit(hidden_size=32, num_hidden_layers=4), 2).eval()
