"""Means of logged values between two log entries, over batches and processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class RunningMean:
    """Weighted sums kept on the device, so that logging costs one synchronisation an entry and not one a step."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._weight = 0.0

    def add(self, values: dict[str, Tensor], weight: float = 1.0) -> None:
        """Adds one batch's scalars; `weight`: its number of images."""
        for name, value in values.items():
            weighted = value.detach().float() * weight
            self._sums[name] = self._sums[name] + weighted if name in self._sums else weighted
        self._weight += weight

    def count(self, name: str, number: Tensor) -> None:
        """Adds to a counter, which is summed over processes, not averaged."""
        number = number.detach().float()
        self._counts[name] = self._counts[name] + number if name in self._counts else number

    def counted(self, name: str, accelerator: Any) -> int:
        """A counter over all processes, which goes on. Every process must call it."""
        number = self._counts.get(name, torch.zeros((), device=accelerator.device))
        return int(accelerator.reduce(number.reshape(1), reduction="sum"))

    def pop(self, accelerator: Any) -> tuple[dict[str, float], dict[str, float]]:
        """Means and counters over all processes, and forgets them. Every process must call it."""
        names, counters = sorted(self._sums), sorted(self._counts)
        if not names:
            return {}, {}
        row = torch.stack([*(self._sums[n] for n in names), *(self._counts[n] for n in counters)])
        row = torch.cat([row, row.new_tensor([self._weight])])
        total = accelerator.reduce(row, reduction="sum").tolist()
        self.__init__()
        means = {name: value / total[-1] for name, value in zip(names, total, strict=False)}
        return means, dict(zip(counters, total[len(names) :], strict=False))
