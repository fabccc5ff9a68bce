"""Scores of features that need no training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def knn_votes(
    queries: Tensor,
    bank: Tensor,
    labels: Tensor,
    num_labels: int,
    *,
    neighbors: int = 20,
    temperature: float = 0.07,
    own: Tensor | None = None,
) -> Tensor:
    """Votes (q, C) of the k nearest neighbours in a bank of labelled samples for each class.

    Neighbours by cosine similarity s vote with weight exp(s / temperature) (Wu et al. 2018, arXiv 1805.01978, whose
    temperature is the default; 20 neighbours as DINO reports).

    Args:
        queries: (q, d).
        bank: (n, d).
        labels: (n,) int, of the bank.
        num_labels: C.
        neighbors: k; fewer where the bank is smaller.
        own: (q,) position in the bank of each query itself, which does not vote.

    Raises:
        ValueError: nobody to vote.
    """
    voters = len(bank) - (own is not None)
    if voters < 1:
        raise ValueError(f"k-NN accuracy needs at least {1 + (own is not None)} samples, got {len(bank)}.")
    similarity = F.normalize(queries.float(), dim=1) @ F.normalize(bank.float(), dim=1).T
    if own is not None:
        similarity.scatter_(1, own[:, None], -torch.inf)
    nearest, index = similarity.topk(min(neighbors, voters), dim=1)
    votes = torch.zeros(len(queries), num_labels).to(similarity)
    return votes.scatter_add_(1, labels[index], (nearest / temperature).exp())


def knn_accuracy(
    embeddings: Tensor, labels: Tensor, *, neighbors: int = 20, temperature: float = 0.07, chunk: int = 1024
) -> float:
    """Leave-one-out k-nearest-neighbour accuracy: each sample is classified by the others of the same set.

    Args:
        embeddings: (n, d).
        labels: (n,) int.
        neighbors, temperature: see [`knn_votes`].
        chunk: rows classified at a time.

    Raises:
        ValueError: fewer than two samples.
    """
    unit = F.normalize(embeddings.float(), dim=1)
    classes = int(labels.max()) + 1
    correct = 0
    for rows in torch.arange(len(unit), device=unit.device).split(chunk):
        votes = knn_votes(unit[rows], unit, labels, classes, neighbors=neighbors, temperature=temperature, own=rows)
        correct += (votes.argmax(dim=1) == labels[rows]).sum().item()
    return correct / len(unit)
