"""A table of a report, and how its numbers are written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """Text cells; the first column names the row.

    Args:
        title: such as "Norms of every block".
        columns: heads.
        rows: one list of cells a row.
        note: what the columns mean.
        paper: rows of the paper's own figures, below the others and set apart.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    paper: list[list[str]] = field(default_factory=list)


def number(value: float | None, digits: int | None = None) -> str:
    if value is None:
        return "–"
    if digits is None:  # three digits at least, and no exponent
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def fixed(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def beside(value: float | None, other: float | None) -> str:
    return f"{fixed(value, 2)} ({fixed(other, 2)})"


def spread(summary: dict[str, float], digits: int) -> str:
    deviation = summary["std"]
    return f"{summary['mean']:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def change(pair: dict[str, float | None], show: Callable[[float | None], str] = number) -> str:
    return "–" if pair["before"] is None else f"{show(pair['before'])} → {show(pair['after'])}"
