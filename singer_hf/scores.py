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
    chunk: int = 1024,
    bank_chunk: int = 65536,
) -> Tensor:
    """Votes (q, C) of each query's k nearest neighbours in a bank of labelled samples for each class.

    Neighbours by cosine similarity s vote with weight exp(s / temperature) (Wu et al. 2018, arXiv 1805.01978, whose
    temperature is the default; 20 neighbours as DINO reports).

    Args:
        queries: (q, d), on the device to work on.
        bank: (n, d), on any device.
        labels: (n,) int, of the bank.
        num_labels: C.
        neighbors: k; fewer where the bank is smaller.
        leave_one_out: queries and bank are the same samples, of which none votes for itself.
        chunk, bank_chunk: queries and samples of the bank whose similarities are held at once.

    Raises:
        ValueError: nobody to vote.
    """
    voters = len(bank) - leave_one_out
    if voters < 1:
        raise ValueError(f"k-NN accuracy needs at least {1 + leave_one_out} samples, got {len(bank)}.")
    device, k = queries.device, min(neighbors, voters)
    nearest = torch.full((len(queries), k), -torch.inf, device=device)
    classes = torch.zeros(len(queries), k, dtype=torch.long, device=device)
    for first in range(0, len(bank), bank_chunk):
        unit = F.normalize(bank[first : first + bank_chunk].to(device).float(), dim=1)
        own_labels = labels[first : first + bank_chunk].to(device)
        for start in range(0, len(queries), chunk):
            rows = torch.arange(start, min(start + chunk, len(queries)), device=device)
            similarity = F.normalize(queries[rows].float(), dim=1) @ unit.T
            if leave_one_out:
                here = (rows >= first) & (rows < first + len(unit))
                similarity[torch.where(here)[0], rows[here] - first] = -torch.inf
            similarity = torch.cat([nearest[rows], similarity], dim=1)
            candidates = torch.cat([classes[rows], own_labels.expand(len(rows), -1)], dim=1)
            nearest[rows], index = similarity.topk(k, dim=1)
            classes[rows] = candidates.gather(1, index)
    votes = torch.zeros(len(queries), num_labels, device=device)
    return votes.scatter_add_(1, classes, (nearest / temperature).exp())


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
