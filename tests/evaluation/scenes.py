"""Small rendered scenes with what dense tasks predict: depth in metres, and which object a pixel shows."""

import datasets
import numpy as np
from PIL import Image

SKY, GROUND, BALL = 0, 1, 2


def scenes(count: int = 24, size: int = 48, seed: int = 0) -> datasets.Dataset:
    """Balls on a ground plane in fog, so that colour tells depth and object.

    Columns `image`, `annotation` (class of a pixel; the lowest row is 9, unlabelled), `depth` (16-bit PNG in
    millimetres; 0 in the sky, where there is no measurement).
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:size, 0:size]
    images, masks, depths = [], [], []
    for _ in range(count):
        horizon = size // 3
        depth = np.where(rows > horizon, 1.2 * size / (3.0 * np.maximum(rows - horizon, 1)), 0.0).clip(0, 9.0)
        mask = np.where(rows > horizon, GROUND, SKY)
        color = np.where((rows > horizon)[..., None], (60, 160, 60), (120, 170, 240)).astype(float)
        for _ in range(2):
            distance = rng.uniform(1.0, 6.0)
            radius = size / (2.5 * distance) + 3
            x, y = rng.uniform(0, size), rng.uniform(horizon, 0.9 * size)
            inside = (columns - x) ** 2 + (rows - y) ** 2 < radius**2
            depth, mask = np.where(inside, distance, depth), np.where(inside, BALL, mask)
            color = np.where(inside[..., None], (220, 60, 40), color)
        fog = np.exp(-np.where(depth == 0, 0, depth) / 4)[..., None]
        pixels = color * fog + 255 * (1 - fog) + rng.normal(0, 4, (size, size, 3))
        mask[-1] = 9
        images.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
        masks.append(Image.fromarray(mask.astype(np.uint8)))
        depths.append(Image.fromarray((1000 * depth).astype(np.uint16)))
    features = datasets.Features({name: datasets.Image() for name in ("image", "annotation", "depth")})
    return datasets.Dataset.from_dict({"image": images, "annotation": masks, "depth": depths}, features=features)
