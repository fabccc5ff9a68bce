"""Emissions as codecarbon measured them; without its file a card says nothing of them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path


class EmissionsError(ValueError):
    """A file that is none of codecarbon's."""


@dataclass(frozen=True)
class Emissions:
    """Of the whole run: grams of CO₂ equivalents, kWh, and where and on what, as codecarbon names it."""

    grams: float
    energy: float
    location: str | None
    hardware: str | None

    @classmethod
    def load(cls, path: str | Path) -> Emissions:
        """The last line of codecarbon's `emissions.csv`, which is of the last run."""
        try:
            with open(path, newline="", encoding="utf-8") as file:
                last = list(csv.DictReader(file))[-1]
            hardware = last.get("gpu_model") or last.get("cpu_model")
            return cls(
                grams=1000 * float(last["emissions"]),
                energy=float(last["energy_consumed"]),
                location=last.get("country_name") or None,
                hardware=hardware or None,
            )
        except (OSError, IndexError, KeyError, TypeError, ValueError) as error:
            raise EmissionsError(f"{path} is not codecarbon's emissions.csv: {error!r}") from error

    def metadata(self) -> dict[str, float | str]:
        """The entry `co2_eq_emissions` of a card's metadata."""
        named = {"geographical_location": self.location, "hardware_used": self.hardware}
        return {"emissions": self.grams, "source": "codecarbon", "training_type": "distillation"} | {
            name: value for name, value in named.items() if value
        }
