"""Timing for benchmarks: candidates take turns, so that what slows the machine for a while slows all of them."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

Candidate = Callable[[], Callable[[], object]]
"""Prepares, outside the measured time, and returns what is timed."""


@dataclass(frozen=True)
class Seconds:
    """Median, quartiles and the least of repeated measurements, in seconds.

    What else the machine does can only add to a time, so the fastest says more where it was not idle.
    """

    median: float
    lower_quartile: float
    upper_quartile: float
    fastest: float

    @classmethod
    def of(cls, values: list[float]) -> Seconds:
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, lower, upper, min(values))


def interleave(
    candidates: dict[str, Candidate],
    repetitions: int,
    device: torch.device,
    *,
    warm_up: int = 2,
    before_each: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each candidate in each of `repetitions` (at least 2) rounds.

    `warm_up` rounds before them do not count. A round runs every candidate once, and starts one candidate later than
    the round before. `before_each` runs in front of each, untimed (a barrier between processes).
    """
    names = list(candidates)
    times: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(warm_up + repetitions):
        for offset in range(len(names)):
            name = names[(repetition + offset) % len(names)]
            run = candidates[name]()
            before_each()
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            if repetition >= warm_up:
                times[name].append(time.perf_counter() - start)
    return times


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(candidate: Candidate, device: torch.device) -> float | None:
    """MiB that one run takes at its peak, above what lay in memory before it; `None` where that cannot be read.

    On a GPU torch's own count. On a CPU the kernel's high-water mark of resident memory (Linux), which also holds
    what the allocator keeps between two tensors.
    """
    run = candidate()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the mark
    except OSError:
        return None
    before = _resident("VmRSS")
    run()
    return _resident("VmHWM") - before


def _resident(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no line {name}.")


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """FLOP/s of a square matrix product in `dtype`, the best of 10 (8192² on a GPU, 2048² on a CPU)."""
    size = size or (8192 if device.type == "cuda" else 2048)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = interleave({"product": lambda: lambda: a @ b}, 10, device)["product"]
    return 2 * size**3 / min(times)
