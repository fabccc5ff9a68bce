"""Small ViTs trained on labels: the study's teachers, and the students without one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, set_seed

from singer_hf.data import DistillationDataset, PixelNormalization, eval_transform, train_transform
from singer_hf.data.sampler import EpochSampler


def new_classifier(sizes: dict[str, int], names: Sequence[str], seed: int) -> tuple[nn.Module, ViTImageProcessor]:
    """A ViT from scratch and its image processor. `sizes`: fields of [`ViTConfig`]."""
    set_seed(seed)
    config = ViTConfig(
        **sizes,
        initializer_range=sizes["hidden_size"] ** -0.5,  # small ViTs learn slowly from ViT's own 0.02
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    size = {"height": config.image_size, "width": config.image_size}
    return ViTForImageClassification(config), ViTImageProcessor(size=size)


def train_classifier(
    model: nn.Module,
    processor: ViTImageProcessor,
    images: Any,
    *,
    epochs: float,
    learning_rate: float,
    batch_size: int,
    weight_decay: float,
    min_crop_scale: float,
    seed: int,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
) -> list[float]:
    """Cross-entropy with label smoothing 0.1, AdamW, one cycle; parameters that need no gradient stay.

    Returns:
        Mean loss of each epoch.
    """
    size = processor.size["height"]
    views = DistillationDataset(
        images, train_transform(size, min_scale=min_crop_scale), label_column="label", seed=seed
    )
    sampler = EpochSampler(len(views), seed=seed)
    loader = DataLoader(views, batch_size, sampler=sampler, num_workers=num_workers, drop_last=True)
    normalize = PixelNormalization.from_image_processor(processor)
    trained = [p for p in model.to(device).parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=round(epochs * len(loader)))
    losses, steps = [], 0
    model.train()
    while steps < schedule.total_steps:
        sampler.set_epoch(len(losses))
        total, count = 0.0, 0
        for batch in tqdm(loader, desc="labels", leave=False, disable=None):
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=torch.device(device).type != "cpu"):
                logits = model(normalize(batch["pixel_values"].to(device))).logits
            loss = F.cross_entropy(logits.float(), batch["labels"].to(device), label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            total, count, steps = total + loss.detach(), count + 1, steps + 1
            if steps == schedule.total_steps:
                break
        losses.append(float(total) / count)
    return losses


@torch.no_grad()
def accuracy(model: nn.Module, processor: ViTImageProcessor, images: Any, *, device: torch.device | str) -> float:
    """Top-1 of the model's own classifier."""
    normalize = PixelNormalization.from_image_processor(processor)
    views = DistillationDataset(images, eval_transform(processor.size["height"]), label_column="label")
    model.to(device).eval()
    hits = [
        model(normalize(batch["pixel_values"].to(device))).logits.argmax(dim=1).cpu() == batch["labels"]
        for batch in DataLoader(views, 256)
    ]
    return torch.cat(hits).float().mean().item()
