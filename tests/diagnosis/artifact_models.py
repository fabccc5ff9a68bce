"""Tiny models with artifacts, and images for them."""

import datasets
import torch
from PIL import Image

from singer_hf import vision_backbone


def pixels(count=64, size=32, seed=0):
    """Smooth noise of varying contrast, so that norms differ from patch to patch."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, size, size, generator=generator)
    return images * torch.rand(count, 1, size, size, generator=generator)


def noise_dataset(count=64):
    """The kind of images of [`pixels`] as a dataset, of a size that the test protocol only crops, to 32 pixels."""
    levels = ((pixels(count, size=36).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in levels]
    return datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": datasets.Image()}))


def with_artifacts(model, block, patch_unit=0, size=40.0):
    """Makes one hidden unit of a block's feed-forward part fire on a few patches and write a long vector."""
    modules = vision_backbone(model).feed_forward_modules(block)
    with torch.no_grad():
        modules.linear_in.weight[patch_unit] = 0
        modules.linear_in.weight[patch_unit, 0] = 8.0
        modules.linear_in.bias[patch_unit] = -14.0  # fires where the first normed channel is above 1.75
        modules.linear_out.weight[:, patch_unit] = size * torch.nn.functional.normalize(
            torch.randn(modules.linear_out.out_features, generator=torch.Generator().manual_seed(1)), dim=0
        )
    return model
