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
    leave_one_out: bool = False,
    chunk: int = 256,
) -> Tensor:
    """Votes (q, C) of each query's k nearest neighbours in a bank of labelled samples for each class.

    Neighbours by cosine similarity s vote with weight exp(s / temperature) (Wu et al. 2018, arXiv 1805.01978, whose
    temperature is the default; 20 neighbours as DINO reports).

    Args:
        queries: (q, d).
        bank: (n, d).
        labels: (n,) int, of the bank.
        num_labels: C.
        neighbors: k; fewer where the bank is smaller.
        leave_one_out: queries and bank are the same samples, of which none votes for itself.
        chunk: queries at a time: similarities of these to the whole bank are held at once.

    Raises:
        ValueError: nobody to vote.
    """
    voters = len(bank) - leave_one_out
    if voters < 1:
        raise ValueError(f"k-NN accuracy needs at least {1 + leave_one_out} samples, got {len(bank)}.")
    unit = F.normalize(bank.float(), dim=1)
    votes = torch.zeros(len(queries), num_labels, device=unit.device)
    for start in range(0, len(queries), chunk):
        similarity = F.normalize(queries[start : start + chunk].float(), dim=1) @ unit.T
        if leave_one_out:
            rows = torch.arange(len(similarity))
            similarity[rows, start + rows] = -torch.inf
        nearest, index = similarity.topk(min(neighbors, voters), dim=1)
        votes[start : start + chunk].scatter_add_(1, labels[index], (nearest / temperature).exp())
    return votes


def knn_accuracy(
    embeddings: Tensor, labels: Tensor, *, neighbors: int = 20, temperature: float = 0.07, chunk: int = 1024
) -> float:
    """Leave-one-out k-nearest-neighbour accuracy: each sample is classified by the others of the same set.

    Args:
        embeddings: (n, d).
        labels: (n,) int.
        neighbors, temperature, chunk: see [`knn_votes`].

    Raises:
        ValueError: fewer than two samples.
    """
    options = {"neighbors": neighbors, "temperature": temperature, "chunk": chunk}
    votes = knn_votes(embeddings, embeddings, labels, int(labels.max()) + 1, leave_one_out=True, **options)
    return (votes.argmax(dim=1) == labels).float().mean().item()
