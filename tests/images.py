"""Small image sets for tests."""

import io

import datasets
import numpy as np
from PIL import Image


def image_dataset(count: int = 32, size: int = 40, classes: int = 4, seed: int = 0) -> datasets.Dataset:
    """Noisy images whose class is a colour; columns `image` and `label`."""
    rng = np.random.default_rng(seed)
    images, labels = [], []
    for index in range(count):
        label = index % classes
        pixels = rng.integers(0, 80, (size, size, 3), dtype=np.uint8)
        pixels[..., label % 3] += np.uint8(60 + 100 * (label // 3))
        images.append(Image.fromarray(pixels))
        labels.append(label)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=[str(c) for c in range(classes)]),
        }
    )
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def encoded(image: Image.Image, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def with_corrupt_image(dataset: datasets.Dataset, index: int) -> datasets.Dataset:
    """The same images, of which one is cut in the middle of its JPEG."""
    rows = [{"bytes": encoded(row["image"]), "path": None} for row in dataset]
    rows[index]["bytes"] = rows[index]["bytes"][: len(rows[index]["bytes"]) // 2]
    return datasets.Dataset.from_dict(
        {"image": rows, "label": dataset["label"]},
        features=datasets.Features({"image": datasets.Image(), "label": dataset.features["label"]}),
    )
