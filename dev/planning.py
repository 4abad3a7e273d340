"""docs/plan.md, the page of all plans beside what happened, with its figures: python -m dev.planning

It reads what the benchmarks wrote (docs/scaling.md, moe.md, pipelines.md, stream.md and benchmarks/results), measures
nothing, and is made anew by `python -m dev.readme` too; a test says when it is out of date.
"""

import json
import math
import re
from pathlib import Path
from statistics import stdev

from benchmarks.figures import strips
from gamut.io.files import atomic_write

DOCS = Path(__file__).resolve().parent.parent / "docs"
RESULTS = DOCS.parent / "benchmarks" / "results"


def tables(page: str) -> list[list[list[str]]]:
    """Tables of a Markdown page: rows of cells, the header first."""
    found = re.findall(r"(?:^\|.*\|\n)+", page + "\n", re.M)
    rows = [[[cell.strip() for cell in line.strip("|").split("|")] for line in some.splitlines()] for some in found]
    return [[row for row in some if not re.fullmatch(r"[-: ]+", row[0])] for some in rows]


def _read(name: str) -> str:
    return (DOCS / f"{name}.md").read_text()


def markdown(rows: list[list[str]]) -> list[str]:
    head, *rest = rows
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] + ["--:"] * (len(head) - 1), *rest]]


def laws() -> tuple[list[str], str]:
    """(section, figure): the held-out error of every law."""
    [head, *rows] = tables(_read("scaling"))[0]
    single = [row for row in rows if not row[0].startswith("**")]
    errors = {law: [(float(row[i]), False) for row in single if _number(row[i])] for i, law in enumerate(head) if i > 1}
    picture = strips(errors, "error on held-out runs, percent", ticks=(0.2, 0.5, 1, 2, 5, 10, 20),
                     note="a dot is one hold-out of one table; red: median")  # fmt: skip
    spread = markdown([head, *[row for row in rows if row[0].startswith("**")]])
    return [
        "## Scaling laws on runs that they had not seen", "",
        f"{len(single)} hold-outs of {len({row[0] for row in single})} real tables; mean error in percent. `auto` is "
        "what `gamut plan scaling` uses.", "", "![Held-out error of every law](scaling.svg)", "", *spread, "",
        "Made by `python benchmarks/scaling.py --table`; every hold-out: [scaling.md](scaling.md).", "",
    ], picture  # fmt: skip


def _number(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d+)?", text) is not None


def mixtures() -> list[str]:
    rows = tables(_read("moe"))[0]
    return [
        "## Mixtures and dense models", "",
        f"{rows[-1][1]} published runs recounted: errors of our counts in percent, median and largest.", "",
        *markdown([rows[0], rows[-1]]), "",
        "Made by `python -m benchmarks.moe`; table by table, and our own tiny runs: [moe.md](moe.md).", "",
    ]  # fmt: skip


def schedules() -> tuple[list[str], str]:
    """(section, figure): every instance over its lower bound."""
    page = _read("pipelines")
    [head, *rows] = next(some for some in tables(page) if "bound" in some[0])
    shown = ("serial", "greedy", "gap filler", "published", "ours")
    ratios = {name: [(_value(row[head.index(name)]) / _value(row[head.index("bound")]), False) for row in rows]
              for name in shown if name in head}  # fmt: skip
    picture = strips(ratios, "time of the schedule / lower bound", ticks=(1, 1.1, 1.2, 1.3, 1.4, 1.5),
                     note="a dot is one of the twelve instances; red: median")  # fmt: skip
    said = re.search(r"^Of \d+ instances.*?\.$", page, re.M | re.S)
    spread = [["schedule", "median", "least", "most"]]
    for name, some in ratios.items():
        values = sorted(value for value, _ in some)
        middle = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
        spread.append([name, *(f"{value:.3f}" for value in (middle, values[0], values[-1]))])
    return [
        "## Fused pipelines", "", *([said[0].replace("\n", " "), ""] if said else []),
        "![Every instance over its lower bound](pipelines.svg)", "", *markdown(spread), "",
        "Time over the lower bound. Made by `python -m benchmarks.pipeline --table`; all twelve, with memory and "
        "seconds: [pipelines.md](pipelines.md).", "",
    ], picture  # fmt: skip


def _value(text: str) -> float:
    return float(text.strip("*"))


def streams() -> list[str]:
    page = _read("stream")
    return [
        "## RL systems, simulated", "", "![Every cell: simulated over published](stream.svg)", "",
        *markdown(tables(page)[0]), "",
        "Made by `python -m benchmarks.stream`; every cell, what was fitted, and what cannot be predicted: "
        "[stream.md](stream.md).", "",
    ]  # fmt: skip


def ladder() -> list[str]:
    """Our own runs: recipe farseer."""
    rows = [json.loads(line) for line in (RESULTS / "farseer_ladder.jsonl").read_text().splitlines()]
    lines = [json.loads(line) for line in (RESULTS / "claims.jsonl").read_text().splitlines()]
    made = [line for line in lines if line["recipe"] == "farseer"][-1]
    first = {(row["N"], row["D"]): row["loss"] for row in reversed(rows)}
    largest = max(N for N, _ in first)
    counts = sorted(D for N, D in first if N == largest)
    loss = [["parameters", *(f"{D:,.0f} characters" for D in counts)]]
    for size in sorted({N for N, _ in first}):
        loss.append([f"{size:,.0f}", *(f"{first[size, D]:.3f}" for D in counts)])
    laws = [name.removeprefix("error/") for name in made["metrics"] if name.startswith("error/")]
    errors = [["fitted on the smaller sizes", *laws], ["error on the largest, percent", *(
        f"{made['metrics'][f'error/{law}']:.2f}" for law in laws)]]  # fmt: skip
    return [
        "## A ladder of our own", "",
        f"`gamut run farseer`: {len(rows)} tiny models on {rows[0]['text']}, nats a character on unseen text.", "",
        *markdown(loss), "", *markdown(errors), "",
        f"Seeds of one cell differ by {' and by '.join(_seeds(rows))} (standard deviation): laws this close to one "
        "another cannot be told apart at this scale. Made by `gamut run farseer --record "
        "benchmarks/results/farseer_ladder.jsonl`, which goes on where it was stopped.", "",
    ]  # fmt: skip


def _seeds(rows: list[dict]) -> list[str]:
    """How far runs of one cell are apart, for every cell with several."""
    cells: dict[tuple[float, float], list[float]] = {}
    for row in rows:
        cells.setdefault((row["N"], row["D"]), []).append(math.log(row["loss"]))
    return [f"{100 * stdev(losses):.2f} % at {N:,.0f} parameters and {D:,.0f} characters"
            for (N, D), losses in sorted(cells.items()) if len(losses) > 1]  # fmt: skip


def pages() -> dict[Path, str]:
    """File -> content."""
    (scaling, law_figure), (pipelines, schedule_figure) = laws(), schedules()
    head = [
        "# Plans beside what happened", "",
        "`gamut plan --help` names what can be planned. This page shows how far off such plans are, with their "
        "spread. Made by `python -m dev.planning`.", "",
    ]  # fmt: skip
    text = "\n".join([*head, *scaling, *mixtures(), *pipelines, *streams(), *ladder()])
    return {DOCS / "plan.md": text, DOCS / "scaling.svg": law_figure, DOCS / "pipelines.svg": schedule_figure}


def write() -> None:
    for path, text in pages().items():
        if not path.exists() or path.read_text() != text:
            atomic_write(path, text)


if __name__ == "__main__":
    write()
