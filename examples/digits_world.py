"""A small world for SiNGER without network: scikit-learn's digits, a ViT teacher with artifacts on purpose, a probe.

ViTs this small have no high-norm artifacts of their own, so the teacher is given some (`singer_hf.planting`): nothing
measured here says how strong the artifacts of a real, large ViT are. examples/distill.py without arguments uses it.
"""

from __future__ import annotations

import copy
import math

import datasets
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from singer_hf.backbones import vision_backbone
from singer_hf.planting import norm_profile, plant_artifacts

NUM_TEST_IMAGES = 500
SPLIT_SEED = 0
PLANTED_BLOCK = 2  # of 6: the artifacts are in blocks 2 to 5


def digits_datasets(image_size: int = 32) -> tuple[datasets.Dataset, datasets.Dataset]:
    """scikit-learn's 1,797 handwritten digits as 1,297 training and 500 test images, always the same split.

    Args:
        image_size: the 8×8 grey images are scaled up bilinearly to RGB images of this many pixels.

    Returns:
        Train and test set with columns `image` (PIL) and `label` (ClassLabel "0" to "9").
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    grey = (digits.images / 16 * 255).round().astype("uint8")  # (1797, 8, 8), 17 grey levels
    size = (image_size, image_size)
    images = [Image.fromarray(digit).resize(size, Image.Resampling.BILINEAR).convert("RGB") for digit in grey]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(digit) for digit in range(10)])}
    )
    split = train_test_split(
        range(len(images)), test_size=NUM_TEST_IMAGES, stratify=digits.target, random_state=SPLIT_SEED
    )
    train, test = (
        datasets.Dataset.from_dict(
            {"image": [images[i] for i in rows], "label": [int(digits.target[i]) for i in rows]}, features=features
        )
        for rows in split
    )
    return train, test


def pixels_and_labels(dataset: datasets.Dataset, processor: ViTImageProcessor) -> tuple[Tensor, Tensor]:
    """The whole set in memory: pixels (images, 3, H, W) as the processor makes them, and labels (images,)."""
    pixels = processor(images=list(dataset["image"]), return_tensors="pt")["pixel_values"]
    return pixels, torch.tensor(dataset["label"])


def train_teacher(
    train: datasets.Dataset, test: datasets.Dataset, *, seed: int = 0, progress: bool = True, plant: bool = True
) -> tuple[ViTForImageClassification, ViTImageProcessor, dict]:
    """A ViT of 6 blocks and 64 patches, trained on the digits and then given high-norm artifacts on purpose.

    Three steps: training; [`plant_artifacts`] at block `PLANTED_BLOCK`; tuning of what lies behind that block, which
    has to learn to live with the artifacts.

    Args:
        train: as [`digits_datasets`] makes it; images of 32 pixels.
        test: as `train`, for the report alone.
        seed: of weights, order of the images, and artifacts.
        progress: show a progress bar.
        plant: False leaves the second step out: the same teacher without artifacts.

    Returns:
        The teacher in eval mode, its image processor, and a report: test accuracy `accuracy_trained`,
        `accuracy_planted` and `accuracy_tuned`; with `plant`, `planted_block`, `planted_unit`, and `fired_share` and
        `background_precision` of the planted detector; for each block of the untouched and of the final model
        `high_norm_share_before`/`_after` and `largest_to_median_before`/`_after`, on the test images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        teacher, processor = new_teacher(train.features["label"].names)
        train_pixels, train_labels = pixels_and_labels(train, processor)
        test_pixels, test_labels = pixels_and_labels(test, processor)
        bar = tqdm(total=6, desc="teacher", unit="epoch", disable=not progress)

        _train(teacher, train_pixels, train_labels, epochs=4, learning_rate=1e-3, bar=bar)
        report = {"accuracy_trained": accuracy(teacher, test_pixels, test_labels)}
        before = norm_profile(teacher, test_pixels)

        if plant:
            planting = plant_artifacts(teacher, train_pixels[:512], block=PLANTED_BLOCK, seed=seed)
            report |= {
                "planted_block": planting.block,
                "planted_unit": planting.unit,
                "fired_share": planting.fired_share,
                "background_precision": planting.background_precision,
            }
        report["accuracy_planted"] = accuracy(teacher, test_pixels, test_labels)

        teacher.requires_grad_(False)
        blocks = vision_backbone(teacher).blocks
        for part in (*blocks[PLANTED_BLOCK + 1 :], teacher.vit.layernorm, teacher.classifier):
            part.requires_grad_(True)
        _train(teacher, train_pixels, train_labels, epochs=2, learning_rate=2e-4, bar=bar)
        report["accuracy_tuned"] = accuracy(teacher, test_pixels, test_labels)
        bar.close()
    teacher.requires_grad_(True)
    after = norm_profile(teacher, test_pixels)
    report |= {
        "high_norm_share_before": list(before.high_norm_share),
        "high_norm_share_after": list(after.high_norm_share),
        "largest_to_median_before": list(before.largest_to_median),
        "largest_to_median_after": list(after.largest_to_median),
    }
    return teacher, processor, report


def linear_probe(
    model: nn.Module, processor: ViTImageProcessor, train: datasets.Dataset, test: datasets.Dataset
) -> dict[str, float]:
    """Test accuracy of a logistic regression on frozen features of the last block, before the final norm.

    Args:
        model: a ViT that `singer_hf.vision_backbone` knows, with or without a head, which is not used.
        processor: the model's image processor.
        train: images and labels to fit the probe on.
        test: images and labels to score it on.

    Returns:
        `"patches"`: on the mean of the patch tokens, in which high-norm artifacts weigh as much as their norm.
        `"cls"`: on the CLS token, where the model has one.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fit_features, fit_labels = _probe_features(model, processor, train)
    test_features, test_labels = _probe_features(model, processor, test)
    scores = {}
    for name, values in fit_features.items():
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        probe.fit(values.numpy(), fit_labels.numpy())
        scores[name] = float(probe.score(test_features[name].numpy(), test_labels.numpy()))
    return scores


@torch.no_grad()
def accuracy(model: ViTForImageClassification, pixels: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy; pixels (images, 3, H, W), labels (images,)."""
    model.eval()
    predicted = torch.cat([model(batch).logits.argmax(dim=1) for batch in pixels.split(256)])
    return (predicted == labels).float().mean().item()


def new_teacher(names: list[str]) -> tuple[ViTForImageClassification, ViTImageProcessor]:
    """An untrained ViT for 32-pixel images of these classes, and its image processor."""
    config = ViTConfig(
        image_size=32,
        patch_size=4,
        hidden_size=96,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=192,
        # About 1 / sqrt(width). With the default of 0.02, made for a width of 768, seven epochs reach 57 %.
        initializer_range=0.1,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    size = {"height": 32, "width": 32}
    processor = ViTImageProcessor(size=size, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5])
    return ViTForImageClassification(config), processor


def _train(model: nn.Module, pixels: Tensor, labels: Tensor, *, epochs: int, learning_rate: float, bar: tqdm) -> None:
    """AdamW on the parameters that require a gradient, one cycle of the learning rate."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    batch_size = 32
    steps = epochs * math.ceil(len(pixels) / batch_size)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.25)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(pixels)).split(batch_size):
            loss = F.cross_entropy(model(pixels[batch]).logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
        bar.update()
    model.eval()


@torch.no_grad()
def _probe_features(
    model: nn.Module, processor: ViTImageProcessor, dataset: datasets.Dataset
) -> tuple[dict[str, Tensor], Tensor]:
    """Features (images, d) by name, and labels (images,)."""
    model = copy.deepcopy(model).cpu().float().eval()  # the caller's model stays on its device and in its mode
    backbone = vision_backbone(model)
    pixels, labels = pixels_and_labels(dataset, processor)
    last = backbone.num_blocks - 1
    hidden = torch.cat([backbone.features(batch, [last]).hidden[last] for batch in pixels.split(256)])
    features = {"patches": hidden[:, backbone.num_prefix_tokens :].mean(dim=1)}
    if "cls" in backbone.prefix:
        features["cls"] = hidden[:, backbone.prefix.index("cls")]
    return features, labels
