"""Puts results of examples/evaluate.py side by side, beside the paper's figures where that is asked for.

python examples/compare.py results
python examples/compare.py results --paper "ViT-L → ViT-T" --radar radar.png
python examples/compare.py results/teacher results/singer results/fitnet --markdown table.md
"""

from __future__ import annotations

import sys
from pathlib import Path

if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.append(sys.path.pop(0))  # evaluate.py stands beside this file, see there

import argparse

from singer_hf.command_line import errors_in_one_line, setup
from singer_hf.evaluation import TASKS, find_results
from singer_hf.evaluation.paper import COLUMNS, TABLE_1, by_model, paper_table
from singer_hf.evaluation.radar import radar_figure
from singer_hf.evaluation.table import comparison_table, paper_table_shown


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", help="result files, or folders that hold some")
    parser.add_argument("--paper", nargs="+", default=[], choices=TABLE_1, help="pairs of Table 1 to show beside them")
    parser.add_argument("--radar", type=Path, help="picture to draw, as Figure 1b (.png, .svg, .pdf)")
    parser.add_argument("--markdown", type=Path, help="file for the table")
    args = parser.parse_args(argv)
    with errors_in_one_line(), setup():
        results = find_results(args.results)
        figures = paper_table(results, args.paper)
        in_paper_columns = bool(args.paper) or figures.notna().any(axis=None)
        table = paper_table_shown(figures) if in_paper_columns else comparison_table(results)
        print(table.to_string())
        outside = [result for result in results if result.task["name"] not in TASKS]
        if in_paper_columns and outside:
            print(f"\nOther tasks:\n{comparison_table(outside).to_string()}")
        if args.markdown is not None:
            args.markdown.write_text(markdown(table), encoding="utf-8")
        if args.radar is not None:
            if in_paper_columns:
                scores = {name: row.dropna().to_dict() for name, row in figures.iterrows()}
                lower = [column.title for column in COLUMNS.values() if column.lower_is_better]
            else:
                scores = {
                    model: {f"{name} {result.main_score}": result.value for name, result in tasks.items()}
                    for model, tasks in by_model(results).items()
                }
                lower = {name for row in scores.values() for name in row if name.endswith("rmse")}
            if in_paper_columns and not figures.iloc[: len(by_model(results))].notna().any(axis=None):
                raise ValueError(
                    "None of these results fills a column of the paper's table, so there is nothing to draw beside "
                    "it: leave --paper out for a picture of your own tasks."
                )
            radar_figure(scores, lower_is_better=lower).savefig(args.radar)
            print(f"Picture: {args.radar}")


def markdown(table) -> str:
    """A data frame as a table of Markdown."""
    rows = [["", *table.columns], ["---"] * (len(table.columns) + 1)]
    rows += [[name, *row] for name, row in zip(table.index, table.values.tolist(), strict=True)]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |\n" for row in rows)


if __name__ == "__main__":
    main()
