"""Tables and figures of a grid, from its cells' result files alone.

    python benchmarks/study/summary.py benchmarks/results/study/cpu

Writes `summary.json` (a list of rows: cell, score, mean, std, seeds, and the paired difference from FitNet of the same
teacher with its 95 % interval), prints Markdown tables, and draws `docs/images/study_<grid>.png`.

Cells of one seed share the order of images, augmentation and the student's first weights, so differences are taken
seed by seed: mean ± t(0.975, n − 1) s / √n. Of one seed there is no interval. The interval covers what changes with
the seed, on these test images; another set of images is not covered.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scipy import stats

ROOT = Path(__file__).parents[2]
BASELINES = {"vs_fitnet": "fitnet", "vs_fitnet_layer_norm": "fitnet_layer_norm"}
SCORES = {
    "linear_top1": ("linear top-1", 100),
    "knn_top1": ("k-NN top-1", 100),
    "corrupted_top1": ("corrupted top-1", 100),
    "camvid_miou": ("CamVid mIoU", 100),
    "gram_distance": ("Gram distance", 1),
    "cka": ("CKA", 1),
}
"""Name in a result -> (heading, factor to the unit shown)."""


def read_cells(folder: Path) -> dict[tuple[str, str], dict[int, dict[str, float]]]:
    """(teacher, recipe) -> seed -> score -> value."""
    cells: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for path in sorted(folder.glob("*.*.*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        cell, alike = result["cell"], result["likeness"]
        values = result["scores"] | {name: alike[name] for name in ("gram_distance", "cka") if name in alike}
        known = {name: value for name, value in values.items() if value is not None}
        cells.setdefault((cell["teacher"], cell["recipe"]), {})[cell["seed"]] = known
    return cells


def paired_difference(own: dict[int, float], other: dict[int, float]) -> dict[str, Any] | None:
    """Mean difference over the seeds that both have, with its 95 % interval (`None` of one seed)."""
    seeds = sorted(own.keys() & other.keys())
    if not seeds:
        return None
    differences = [own[seed] - other[seed] for seed in seeds]
    mean, interval = statistics.fmean(differences), None
    if len(seeds) > 1:
        half = stats.t.ppf(0.975, len(seeds) - 1) * statistics.stdev(differences) / len(seeds) ** 0.5
        interval = [mean - half, mean + half]
    return {"mean": mean, "interval": interval, "seeds": len(seeds)}


def summary_rows(cells: dict[tuple[str, str], dict[int, dict[str, float]]]) -> list[dict[str, Any]]:
    """One row for each cell and score, in the units that are shown (points, or the score's own)."""

    def values(teacher: str, recipe: str, score: str) -> dict[int, float]:
        factor = SCORES[score][1]
        of = cells.get((teacher, recipe), {})
        return {seed: factor * scores[score] for seed, scores in of.items() if score in scores}

    rows = []
    for teacher, recipe in cells:
        for score in SCORES:
            own = values(teacher, recipe, score)
            if not own:
                continue
            row: dict[str, Any] = {
                "teacher": teacher,
                "cell": recipe,
                "score": score,
                "mean": statistics.fmean(own.values()),
                "std": statistics.stdev(own.values()) if len(own) > 1 else None,
                "seeds": len(own),
            }
            for name, baseline in BASELINES.items():
                if recipe != baseline and teacher != "none":
                    row[name] = paired_difference(own, values(teacher, baseline, score))
            rows.append(row)
    return rows


def markdown(rows: list[dict[str, Any]], score: str) -> str:
    """The table of one score: a line a recipe, two columns a teacher."""
    of_score = [row for row in rows if row["score"] == score]
    teachers = [name for name in dict.fromkeys(row["teacher"] for row in of_score) if name != "none"]
    digits = 1 if SCORES[score][1] == 100 else 3
    lines = [
        f"| {SCORES[score][0]} | " + " | ".join(f"{name} teacher | against FitNet" for name in teachers) + " |",
        "|---" * (1 + 2 * len(teachers)) + "|",
    ]
    for recipe in dict.fromkeys(row["cell"] for row in of_score):
        found = {row["teacher"]: row for row in of_score if row["cell"] == recipe}
        cells: Iterable[str] = [
            text for name in teachers for text in _texts(found.get(name, found.get("none")), digits)
        ]
        lines.append(f"| {recipe} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _texts(row: dict[str, Any] | None, digits: int) -> tuple[str, str]:
    if row is None:
        return "", ""
    spread = "" if row["std"] is None else f" ± {row['std']:.{digits}f}"
    value, against = f"{row['mean']:.{digits}f}{spread}", row.get("vs_fitnet")
    if against is None:
        return value, ""
    interval = against["interval"]
    bounds = "" if interval is None else f" [{interval[0]:+.{digits}f}, {interval[1]:+.{digits}f}]"
    return value, f"{against['mean']:+.{digits}f}{bounds}"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Paired differences from FitNet with intervals, one panel a score, colours by teacher."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    scores = [score for score in ("linear_top1", "camvid_miou") if any(row["score"] == score for row in rows)]
    colours = {"clean": "#0072B2", "artifacts": "#D55E00"}
    figure, axes = plt.subplots(1, len(scores), figsize=(5.2 * len(scores), 3.6), layout="constrained", squeeze=False)
    for axis, score in zip(axes[0], scores, strict=True):
        shown = [row for row in rows if row["score"] == score and row.get("vs_fitnet")]
        recipes = list(dict.fromkeys(row["cell"] for row in shown))[::-1]
        for offset, (teacher, colour) in zip((0.15, -0.15), colours.items(), strict=True):
            for row in (row for row in shown if row["teacher"] == teacher):
                difference, height = row["vs_fitnet"], recipes.index(row["cell"]) + offset
                axis.plot(difference["mean"], height, "o", color=colour, label=teacher)
                if difference["interval"] is not None:
                    axis.plot(difference["interval"], [height, height], color=colour)
        axis.axvline(0, color="0.5", linewidth=1)
        axis.set_yticks(range(len(recipes)), recipes)
        axis.set_xlabel(f"{SCORES[score][0]}: points above FitNet of the same teacher")
    handles = dict(zip(*axes[0][0].get_legend_handles_labels()[::-1], strict=True))
    axes[0][0].legend(handles.values(), [f"{name} teacher" for name in handles], loc="best", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="results of a grid's cells")
    args = parser.parse_args()
    rows = summary_rows(read_cells(args.folder))
    if not rows:
        raise SystemExit(f"error: {args.folder} holds no results of cells: run benchmarks/study/run.py first.")
    (args.folder / "summary.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    for score in SCORES:
        if any(row["score"] == score for row in rows):
            print(markdown(rows, score), end="\n\n")
    draw(rows, ROOT / "docs" / "images" / f"study_{args.folder.name}.png")


if __name__ == "__main__":
    main()
