"""The 80 published runs of "Mixture-of-Experts against dense" recounted: GAMUT_DATA=... python -m benchmarks.moe

Writes docs/moe.md: parameters, activated parameters, FLOPs of a token and of the run by gamut/plan/budget.py, against
what the paper prints (arXiv 2506.12119, Tables 9 to 17).
"""

import csv
from pathlib import Path
from statistics import median

from gamut.io.files import atomic_write
from gamut.plan.budget import HEAD, Shape
from gamut.plan.public import folder

ROOT = Path(__file__).resolve().parent.parent
COUNTS = ("N", "Na", "M", "C")


def shape_of(row: dict[str, str]) -> Shape:
    whole = {name: int(float(row[name] or 0)) for name in ("L", "Dm", "Dffn", "H", "E", "K", "De", "Dse")}
    dense = row["kind"] == "dense"
    experts = (0, 0, 0, 0) if dense else (whole["E"], whole["K"], whole["De"], whole["Dse"])
    width, heads = whole["Dm"], whole["H"]
    return Shape(width, whole["L"], whole["Dffn"], heads, int(float(row["Dh"] or HEAD)), *experts,
                 dense_layers=whole["L"] if dense else 1)  # fmt: skip


def counted(row: dict[str, str]) -> dict[str, float]:
    """Relative errors of what the paper prints and we count."""
    shape = shape_of(row)
    cost = shape.flops(int(row["S"]))
    made = {"N": shape.parameters, "Na": shape.active, "M": cost, "C": cost * float(row["D"])}
    return {name: made[name] / float(row[name]) - 1 for name in COUNTS if row[name]}


def main() -> None:
    path = folder() / "from_papers" / "moe_vs_dense_runs.csv"
    rows = list(csv.DictReader(path.open()))
    lines = [
        "# Mixtures and dense models: 80 published runs recounted", "",
        "Made by `python -m benchmarks.moe`. Errors of our counts in percent: median and largest of a table's rows.",
        "", "| table | runs | kinds | N | Na | FLOPs of a token | FLOPs of the run |", "|---|--:|---|--:|--:|--:|--:|",
    ]  # fmt: skip
    tables = dict.fromkeys(row["table"] for row in rows)
    for name in [*tables, "all"]:
        some = [row for row in rows if name in (row["table"], "all")]
        errors = [counted(row) for row in some]
        cells = []
        for what in COUNTS:
            off = [100 * abs(error[what]) for error in errors if what in error]
            cells.append(f"{median(off):.2f} ({max(off):.2f})" if off else "-")
        kinds = ", ".join(dict.fromkeys(row["kind"] for row in some))
        lines.append(f"| {name} | {len(some)} | {kinds} | " + " | ".join(cells) + " |")
    atomic_write(ROOT / "docs" / "moe.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
