"""Heads, features and results that tests of evaluation share."""

import torch

from singer_hf.evaluation import EvaluationResult
from singer_hf.evaluation.features import CachedFeatures
from singer_hf.evaluation.head_data import PooledData
from singer_hf.evaluation.heads import LinearHeads


def random_heads(count: int, width: int, outputs: int, dtype: torch.dtype = torch.float64) -> LinearHeads:
    return LinearHeads(torch.randn(count, width, outputs, dtype=dtype), torch.randn(count, outputs, dtype=dtype))


def blobs(count: int, classes: int = 3, width: int = 6, spread: float = 1.0, seed: int = 0):
    """Points (count, width) of Gaussian clouds, and their classes; other seeds draw from the same clouds."""
    centres = 2 * torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % classes
    return centres[targets] + spread * torch.randn(count, width, generator=generator), targets


def pooled_data(features: torch.Tensor, targets: torch.Tensor, seed: int = 0) -> PooledData:
    """Data of one view (n, d), or of several (K, n, d)."""
    features = features if features.ndim == 3 else features[None]
    return PooledData(features, targets, torch.arange(features.shape[1]), seed, torch.device("cpu"))


def cached(tensors: dict[str, torch.Tensor], shard_images: int) -> CachedFeatures:
    """Tensors (K, n, ...) as features in shards."""
    count = next(iter(tensors.values())).shape[1]
    views = len(next(iter(tensors.values())))
    shards = [
        [
            {name: tensor[view, start : start + shard_images] for name, tensor in tensors.items()}
            for start in range(0, count, shard_images)
        ]
        for view in range(views)
    ]
    return CachedFeatures(shards, shard_images, count)


def result(task: str, value: float, *, model: str = "ours", protocol: str = "default", score: str = "top1_accuracy"):
    return EvaluationResult(
        model={"name": model, "revision": None},
        task={"name": task, "splits": {"test": {"images": 10}}},
        protocol={"name": protocol},
        hyperparameters={"learning_rate": 0.1, "weight_decay": 0.0, "epochs": 3},
        scores={score: value},
        main_score=score,
        seed=0,
        seconds={"total": 1.0},
        environment={"torch": "2"},
    )
