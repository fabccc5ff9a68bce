"""Tables and figures of a grid, from its cells' result files alone.

    python benchmarks/study/summary.py benchmarks/results/study/cpu

Writes `summary.json` beside the grid's folder (rows of other grids stay): rows, each of a cell (teacher, recipe) and a
score, with mean and standard deviation over seeds, and the paired differences from each of `BASELINES` of the same
teacher with their 95 % intervals and numbers of pairs. Prints Markdown tables, and draws
`study_<grid>.png` (paired differences) and `study_<grid>_scores.png` (every student): in `docs/images` of the recorded
results, of others beside their `summary.json`.

Cells of one seed share the order of images, augmentation and the student's first weights, so differences are taken
seed by seed: mean ± t(0.975, n − 1) s / √n. Of one seed there is no interval. The interval covers what changes with
the seed; another teacher network, other planted artifacts and other test images are not covered. Each holds by itself,
not all of them at once.
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
BASELINES = {
    "fitnet": "FitNet",
    "fitnet_two_layers": "FitNet on SiNGER's layers",
    "fitnet_layer_norm": "FitNet with normalised targets",
    "singer": "SiNGER",
    "fitnet_mask_prefix": "masked FitNet with CLS",
}
"""Recipe that others are compared with -> its name in a table."""
NAMES = {
    "teacher": "the teacher itself",
    "untrained": "untrained",
    "labels": "labels, no teacher",
    "fitnet": "FitNet",
    "fitnet_two_layers": "FitNet, SiNGER's layers",
    "vitkd": "ViTKD",
    "singer": "SiNGER, the paper's",
    "singer_reference": "SiNGER, released code's",
    "fitnet_layer_norm": "FitNet, normalised targets",
    "singer_layer_norm": "SiNGER, normalised targets",
    "fitnet_two_layers_mask": "FitNet, SiNGER's layers, masked",
    "fitnet_mask_prefix": "FitNet, SiNGER's layers, masked, CLS",
    "singer_gated": "SiNGER, gated",
}
"""Recipe -> its name in tables by teacher and in the figure, in their order; others follow under their own."""
BOUNDS = ("teacher", "untrained")
"""Recipes that bound what a student can have, drawn as lines."""
FIGURE_SCORES = ("linear_top1", "corrupted_top1", "camvid_miou")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
SCORES = {
    "linear_top1": ("linear top-1", 100),
    "knn_top1": ("k-NN top-1", 100),
    "corrupted_top1": ("corrupted top-1", 100),
    "camvid_miou": ("CamVid mIoU", 100),
    "gram_distance": ("Gram distance", 1),
    "cka": ("CKA", 1),
    "remaining_gradient_on_outliers": ("remaining gradient on outliers, %", 100),
    "energy_prob": ("E_prob of Φ_up", 1),
    "energy_safe": ("E_safe of Φ_up", 1),
}
"""Name in a result -> (heading, factor to the unit shown)."""


def read_cells(folder: Path) -> dict[tuple[str, str], dict[int, dict[str, float]]]:
    """(teacher, recipe) -> seed -> score -> value."""
    cells: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for path in sorted(folder.glob("*.*.*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        cell, alike = result["cell"], result["likeness"]
        likeness = ("gram_distance", "cka", "remaining_gradient_on_outliers")
        values = result["scores"] | {name: alike[name] for name in likeness if name in alike}
        if energy := alike.get("energy"):  # mean over the refined layers
            for share in ("prob", "safe"):
                values[f"energy_{share}"] = statistics.fmean(layer["up"][share] for layer in energy.values())
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
            for baseline in BASELINES:
                if recipe == baseline or recipe in BOUNDS or teacher == "none":
                    continue
                difference = paired_difference(own, values(teacher, baseline, score))
                row[f"difference_from_{baseline}"] = difference and difference["mean"]
                row[f"interval_against_{baseline}"] = difference and difference["interval"]
                row[f"pairs_with_{baseline}"] = difference and difference["seeds"]
            rows.append(row)
    return rows


def markdown(rows: list[dict[str, Any]], score: str, baseline: str = "fitnet") -> str:
    """The table of one score: a line a recipe, two columns a teacher."""
    of_score = [row for row in rows if row["score"] == score]
    teachers = [name for name in dict.fromkeys(row["teacher"] for row in of_score) if name != "none"]
    digits = 1 if SCORES[score][1] == 100 else 3
    lines = [
        f"| {SCORES[score][0]} | "
        + " | ".join(f"{name} teacher | against {BASELINES[baseline]}" for name in teachers)
        + " |",
        "|---" * (1 + 2 * len(teachers)) + "|",
    ]
    for recipe in dict.fromkeys(row["cell"] for row in of_score):
        found = {row["teacher"]: row for row in of_score if row["cell"] == recipe}
        cells: Iterable[str] = [
            text for name in teachers for text in _texts(found.get(name, found.get("none")), baseline, digits)
        ]
        lines.append(f"| {recipe} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _texts(row: dict[str, Any] | None, baseline: str, digits: int) -> tuple[str, str]:
    if row is None:
        return "", ""
    spread = "" if row["std"] is None else f" ± {row['std']:.{digits}f}"
    value, difference = f"{row['mean']:.{digits}f}{spread}", row.get(f"difference_from_{baseline}")
    if difference is None:
        return value, ""
    interval = row[f"interval_against_{baseline}"]
    bounds = "" if interval is None else f" [{interval[0]:+.{digits}f}, {interval[1]:+.{digits}f}]"
    pairs = row[f"pairs_with_{baseline}"]
    few = "" if pairs == row["seeds"] else f" ({pairs} pair{'s' * (pairs > 1)})"
    return value, f"{difference:+.{digits}f}{bounds}{few}"


def teacher_markdown(rows: list[dict[str, Any]], teacher: str) -> str:
    """The table of one teacher: a line a recipe, every score between 0 and 100, and differences from FitNet."""
    own = [row for row in rows if row["teacher"] in (teacher, "none")]
    headings = ["linear top-1", "against FitNet", "k-NN", "corrupted", "CamVid mIoU", "against FitNet"]
    lines = [f"| {teacher} teacher | seeds | {' | '.join(headings)} |", "|---" * 8 + "|"]
    for recipe in sorted(dict.fromkeys(row["cell"] for row in own), key=_place):
        of = {row["score"]: row for row in own if row["cell"] == recipe}
        texts = {score: _texts(of.get(score), "fitnet", 1) for score in SCORES}
        cells = [NAMES.get(recipe, recipe), str(of["linear_top1"]["seeds"]), *texts["linear_top1"]]
        cells += [texts["knn_top1"][0], texts["corrupted_top1"][0], *texts["camvid_miou"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def likeness_markdown(rows: list[dict[str, Any]], teacher: str) -> str:
    """How like its teacher each recipe's student is, and what its adapter became; means over seeds."""
    scores = ("gram_distance", "cka", "remaining_gradient_on_outliers", "energy_prob", "energy_safe")
    lines = [
        f"| {teacher} teacher | {' | '.join(SCORES[score][0] for score in scores)} |",
        "|---" * (1 + len(scores)) + "|",
    ]
    own = [row for row in rows if row["teacher"] == teacher and row["cell"] not in BOUNDS]
    for recipe in sorted(dict.fromkeys(row["cell"] for row in own), key=_place):
        of = {row["score"]: row["mean"] for row in own if row["cell"] == recipe}
        texts = [f"{of[score]:.{1 if SCORES[score][1] == 100 else 2}f}" if score in of else "" for score in scores]
        lines.append(f"| {NAMES.get(recipe, recipe)} | {' | '.join(texts)} |")
    return "\n".join(lines)


def _place(recipe: str) -> int:
    return list(NAMES).index(recipe) if recipe in NAMES else len(NAMES)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Each recipe's paired difference from FitNet of the same teacher, with its interval; a panel a score."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in rows if (row.get("pairs_with_fitnet") or 0) > 2]  # of two, the interval says nothing
    scores = [score for score in FIGURE_SCORES if any(row["score"] == score for row in rows)]
    if not scores:
        return
    teachers = list(dict.fromkeys(row["teacher"] for row in rows))
    recipes = sorted(dict.fromkeys(row["cell"] for row in rows), key=_place)[::-1]
    height = 1.2 + 0.14 * len(recipes) * (1 + len(teachers))
    figure, axes = plt.subplots(
        1, len(scores), figsize=(4.4 * len(scores), height), layout="constrained", squeeze=False, sharey=True
    )
    for axis, score in zip(axes[0], scores, strict=True):
        for number, (teacher, colour) in enumerate(zip(teachers, COLOURS, strict=False)):
            shown = [row for row in rows if row["score"] == score and row["teacher"] == teacher]
            heights = [recipes.index(row["cell"]) + 0.25 * ((len(teachers) - 1) / 2 - number) for row in shown]
            means = [row["difference_from_fitnet"] for row in shown]
            half = [row["interval_against_fitnet"][1] - mean for row, mean in zip(shown, means, strict=True)]
            axis.errorbar(
                means, heights, xerr=half, fmt="o", markersize=4, color=colour, capsize=2, label=f"{teacher} teacher"
            )
        axis.axvline(0, color="0.5", linewidth=1)
        axis.set_yticks(range(len(recipes)), [NAMES.get(recipe, recipe) for recipe in recipes])
        axis.set_xlabel(f"{SCORES[score][0]}, points above FitNet")
        axis.grid(axis="x", alpha=0.3)
    _save(figure, axes, path)


def draw_scores(cells: dict[tuple[str, str], dict[int, dict[str, float]]], path: Path) -> None:
    """Every student of a recipe of `NAMES` as a point, a panel a score; lines: the teachers, untrained students."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    recipes = [name for name in NAMES if any(of == name for _, of in cells) and name not in BOUNDS][::-1]
    teachers = [name for name in dict.fromkeys(teacher for teacher, _ in sorted(cells)) if name != "none"]
    scores = [
        score for score in FIGURE_SCORES if any(score in of for seeds in cells.values() for of in seeds.values())
    ]
    if not recipes or not scores:
        return
    figure, axes = plt.subplots(
        1, len(scores), figsize=(4.4 * len(scores), 1.2 + 0.32 * len(recipes)), layout="constrained", squeeze=False
    )
    for panel, (axis, score) in enumerate(zip(axes[0], scores, strict=True)):
        for number, teacher in enumerate([*teachers, "none"]):
            points = [
                (SCORES[score][1] * of[score], recipes.index(recipe) + 0.22 * ((len(teachers) - 1) / 2 - number))
                for (own, recipe), seeds in cells.items()
                if own == teacher and recipe in recipes
                for of in seeds.values()
                if score in of
            ]
            colour = (*COLOURS[: len(teachers)], "0.3")[number]
            label = "no teacher" if teacher == "none" else f"{teacher} teacher"
            if points:
                axis.plot(*zip(*points, strict=True), "o", markersize=4, color=colour, alpha=0.7, label=label)
        for (teacher, recipe), seeds in cells.items():
            if recipe in BOUNDS:
                colour = "0.3" if teacher == "none" else COLOURS[teachers.index(teacher)]
                of_score = [of[score] for of in seeds.values() if score in of]
                if of_score:
                    value, line = SCORES[score][1] * statistics.fmean(of_score), ":" if teacher == "none" else "--"
                    axis.axvline(value, color=colour, linestyle=line)
        for label, line in (("the teacher itself", "--"), ("untrained student", ":")):
            axis.plot([], [], color="0.3", linestyle=line, label=label)
        axis.set_yticks(range(len(recipes)), [NAMES[name] for name in recipes] if panel == 0 else [])
        axis.set_ylim(-0.6, len(recipes) - 0.4)
        axis.set_xlabel(SCORES[score][0])
        axis.grid(alpha=0.3)
    _save(figure, axes, path)


def _save(figure: Any, axes: Any, path: Path) -> None:
    """Writes a figure with one legend below all of its panels."""
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="results of a grid's cells")
    args = parser.parse_args()
    cells = read_cells(args.folder)
    rows = summary_rows(cells)
    if not rows:
        raise SystemExit(f"error: {args.folder} holds no results of cells: run benchmarks/study/run.py first.")
    path = args.folder.resolve().parent / "summary.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    kept = [row for row in kept if row["grid"] != args.folder.name]
    found = [{"grid": args.folder.name} | row for row in rows]
    path.write_text(json.dumps(kept + found, indent=2) + "\n", encoding="utf-8")
    for teacher in dict.fromkeys(row["teacher"] for row in rows if row["teacher"] != "none"):
        print(teacher_markdown(rows, teacher), likeness_markdown(rows, teacher), sep="\n\n", end="\n\n")
    for score in SCORES:
        if any(row["score"] == score for row in rows):
            for baseline in BASELINES:
                print(markdown(rows, score, baseline), end="\n\n")
    recorded = path.parent == ROOT / "benchmarks" / "results" / "study"
    images = ROOT / "docs" / "images" if recorded else path.parent
    draw(rows, images / f"study_{args.folder.name}.png")
    draw_scores(cells, images / f"study_{args.folder.name}_scores.png")


if __name__ == "__main__":
    main()
