"""Scores of a student during training, without training a head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def knn_accuracy(
    embeddings: Tensor, labels: Tensor, *, neighbors: int = 20, temperature: float = 0.07, chunk: int = 1024
) -> float:
    """Leave-one-out k-nearest-neighbour accuracy: each sample is classified by the others of the same set.

    Neighbours by cosine similarity s vote with weight exp(s / temperature) (Wu et al. 2018, arXiv 1805.01978, whose
    temperature is the default; 20 neighbours as DINO reports).

    Args:
        embeddings: (n, d).
        labels: (n,) int.
        neighbors: k; fewer where the set is smaller.
        chunk: rows classified at a time.

    Raises:
        ValueError: fewer than two samples.
    """
    count = len(embeddings)
    if count < 2:
        raise ValueError(f"k-NN accuracy needs at least 2 samples, got {count}.")
    unit = F.normalize(embeddings.float(), dim=1)
    classes = int(labels.max()) + 1
    correct = 0
    for start in range(0, count, chunk):
        similarity = unit[start : start + chunk] @ unit.T
        rows = torch.arange(len(similarity))
        similarity[rows, start + rows] = -torch.inf  # not its own neighbour
        nearest, index = similarity.topk(min(neighbors, count - 1), dim=1)
        votes = torch.zeros(len(similarity), classes).to(unit)
        votes.scatter_add_(1, labels[index], (nearest / temperature).exp())
        correct += (votes.argmax(dim=1) == labels[start : start + chunk]).sum().item()
    return correct / count
