"""Starts of the adapter that look at images, which `NullspaceLoraConfig` has none of: a recipe's `adapter_start`."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel

from singer_hf import vision_backbone
from singer_hf.backbones import VisionBackbone
from singer_hf.diagnosis import ImageBatches, ModelInput, Refinement, diagnose_teacher, fit_closed_form
from singer_hf.diagnosis.jacobian import jacobian_nullspace, mean_outer_product
from singer_hf.diagnosis.recommend import null_rank
from singer_hf.diagnosis.refinement import initial_refinements, refined_model
from singer_hf.nullspace import surrogate_layer

IMAGES = 1000
"""Training images that a start is fitted to."""

Refinements = dict[int, Refinement]


def closed_form(backbone: VisionBackbone, batches: ImageBatches, layers: list[int], rank: int) -> Refinements:
    """The refinement that needs no training, see [`fit_closed_form`]; none for layers without outliers."""
    return fit_closed_form(backbone, layers, diagnose_teacher(backbone, batches), batches, rank=rank)


def jacobian(backbone: VisionBackbone, batches: ImageBatches, layers: list[int], rank: int) -> Refinements:
    """The null basis of the next block's Jacobian (the paper's Table 8) in place of the feed-forward surrogate's."""
    features = backbone.features(next(iter(batches)), range(backbone.num_blocks - 1), adapters=False)
    found = {}
    for layer in layers:
        block = surrogate_layer(layer, backbone.num_blocks)
        outer = mean_outer_product(backbone, block, features.hidden[block - 1], features.block_inputs)
        basis = jacobian_nullspace(outer, rank).float()
        found[layer] = Refinement(basis, basis.T)
    return found


def spectrum(backbone: VisionBackbone, batches: ImageBatches, layers: list[int], rank: int) -> Refinements:
    """The paper's basis, of the rank that the surrogates' spectra say; `rank` is not looked at. See [`null_rank`]."""
    rank, _ = null_rank(diagnose_teacher(backbone, batches), layers)
    return initial_refinements(backbone, layers, rank)


STARTS = {"closed_form": closed_form, "jacobian": jacobian, "spectrum": spectrum}


def started_teacher(
    teacher: PreTrainedModel, processor: Any, start: str, *, layers: list[int], rank: int, images: Dataset
) -> PeftModel:
    """The teacher with an adapter that starts as `STARTS` says, fitted to `IMAGES` of `images` (jacobian: to 100).

    Args:
        processor: the teacher's image processor.
        layers: blocks to refine behind.
        rank: r.

    Raises:
        ValueError: the start has nothing to do in one of the layers.
    """
    some = images.select(range(0, len(images), max(1, len(images) // IMAGES)))
    batches = ImageBatches(some, ModelInput.of_processor(processor), batch_size=100)
    with torch.no_grad():
        found = STARTS[start](vision_backbone(teacher.eval()), batches, layers, rank)
    without = sorted(set(layers) - found.keys())
    if without:
        raise ValueError(f"Blocks {without} have no outliers: there is no {start} to start from.")
    return refined_model(teacher, found)
