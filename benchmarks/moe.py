"""Dense against mixtures of experts, published and ours: GAMUT_DATA=... python -m benchmarks.moe [--train FILE]

Writes docs/moe.md. First the paper's 80 runs recounted by gamut/plan/budget.py: parameters, activated parameters, FLOPs
of a token and of the run against what is printed (arXiv 2506.12119, Tables 9 to 17). Then our own runs of the recipe
moe_vs_dense at tiny size, from results/moe_vs_dense_*.jsonl; --train FILE makes those that FILE lacks, a line each.
"""

import csv
import json
from pathlib import Path
from statistics import mean, median

import gamut
from benchmarks.record import RESULTS, parser
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


def published() -> list[str]:
    """The paper's runs: how far our counts are from the printed ones."""
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
    return lines


def ours() -> list[str]:
    """Tiny runs of the recipe, seeds together; nothing where there are none."""
    lines = [line for file in sorted(RESULTS.glob("moe_vs_dense_*.jsonl")) for line in file.read_text().splitlines()]
    groups: dict[tuple, list[dict]] = {}
    for row in map(json.loads, lines):
        experts = tuple(row.get(name, 0) for name in ("experts", "top_k", "expert_ffn"))
        groups.setdefault((*experts, row["N"], row["D"], row["unique"], row["text"]), []).append(row)
    table = [
        f"| {f'{k} of {e} experts of {size}' if e else 'dense'} | {n:,.0f} | {d:,.0f} | "
        f"{f'{d / unique:.1f}' if unique else 'new text'} | {len(rows)} | {mean(row['loss'] for row in rows):.4f} | "
        f"{min(row['loss'] for row in rows):.4f} to {max(row['loss'] for row in rows):.4f} | "
        + (f"{max(row['busiest'] for row in rows):.2f} | {max(row['dead'] for row in rows):.0%} |" if e else "- | - |")
        for (e, k, size, n, d, unique, _), rows in sorted(groups.items(), key=lambda one: (one[0][1], -one[0][5]))
    ]
    commits, texts = (", ".join(sorted({row[what] for rows in groups.values() for row in rows}))
                      for what in ("commit", "text"))  # fmt: skip
    said = (
        f"`gamut run moe_vs_dense` on {texts}: equal N, equal measured FLOPs, a shared expert as wide as the chosen "
        "ones, the same text read again (epochs). Held-out loss in nats a character, mean and range of the seeds; load "
        "of the busiest expert in even shares, dead experts (below a hundredth of one), the worst seed's. "
        f"Commits: {commits}."
    )
    head = ["| model | N | characters | epochs | seeds | loss | range | busiest | dead |", "|---|" + "--:|" * 8]
    return ["", "# Ours, tiny", "", said, "", *head, *table] if table else []


def main() -> None:
    asked = parser(__doc__)
    asked.add_argument("--train", metavar="FILE", help="first train what this .jsonl lacks; resumable")
    options = asked.parse_args()
    if options.train:
        gamut.run("moe_vs_dense", out=ROOT / "runs", record=options.train)
    text = "\n".join([*published(), *ours()]) + "\n"
    print(text)
    if not options.dry:
        atomic_write(ROOT / "docs" / "moe.md", text)


if __name__ == "__main__":
    main()
