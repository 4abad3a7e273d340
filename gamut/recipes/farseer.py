"""Farseer (arXiv 2506.10972): a scaling law fitted on a real ladder of tiny models, and what it says of larger ones.

    gamut run farseer                      # five sizes x four token counts; a quarter of an hour on an idle core
    gamut run farseer --size small         # six token counts; an hour. Both resume with --resume
    gamut run farseer --text my_texts      # a folder of .txt files
    gamut run farseer --record runs.jsonl  # appends every finished run to a file, and makes none again that it holds

The paper trains about 1,000 models, of which 337 runs of 0.2 to 6.4 B parameters make the grid (Table 4), and fits
L(N, D) with the exponent of D a function of N. Here the same grid, N and D growing by constant factors, stands four
orders of magnitude below: at most one epoch, learning rate and batch by Step Law. Each law is fitted on the small sizes
and judged on the largest, which it has not seen. It shows the machinery and its error bars, not the paper's constants.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from gamut.data.characters import read
from gamut.evals.claims import Claim, Result
from gamut.io.report import Heading, Table
from gamut.io.runs import Run
from gamut.plan.holdout import percent
from gamut.plan.pictures import Dots
from gamut.plan.scaling import ScalingTable, fit
from gamut.train.pretrain import Cell, dense, train_all

LAWS = ("chinchilla", "kappa", "farseer", "auto")


@dataclass(frozen=True)
class Config:
    """Sizes are (width, layers); tokens are characters."""

    widths: tuple[int, ...] = (32, 48, 64, 96, 128)  # paper 1024 to 3328 (Table 4); ours, channels
    layers: tuple[int, ...] = (3, 3, 4, 4, 5)  # paper 16 to 47 (Table 4); ours
    fewest: int = 65536  # paper 1e9 (Table 4); ours
    counts: int = 4  # paper 11 to 18 token counts a size (Table 4); ours, each twice the one before
    lr_scale: float = 1.0  # paper: Step Law; times its rate
    noise_seeds: int = 3  # ours; runs of one cell, for the noise
    text: str = "auto"  # not found in the paper: its corpus; ours, a folder, or auto: books, or Python's own library
    record: str = ""  # ours; a .jsonl file of finished runs, kept between runs of the recipe; empty: in the run folder
    seed: int = 0  # ours


TINY = Config()
SMALL = replace(TINY, counts=6)


def cells(cfg: Config) -> list[Cell]:
    """The grid, the cheapest runs first."""
    tokens = [cfg.fewest * 2**i for i in range(cfg.counts)]
    grid = [Cell(dense(w, n), d, cfg.seed, lr_scale=cfg.lr_scale)
            for w, n in zip(cfg.widths, cfg.layers, strict=True) for d in tokens]  # fmt: skip
    return sorted(grid, key=lambda cell: cell.parameters * cell.tokens)


def ladder(cfg: Config, run: Run | None) -> tuple[list[dict[str, float]], list[float], str]:
    """(a row for every cell, losses of one cell with several seeds, where the text is from)."""
    corpus, grid = read(cfg.text), cells(cfg)
    middle = grid[len(grid) // 2]
    again = [replace(middle, seed=seed) for seed in range(cfg.seed + 1, cfg.seed + cfg.noise_seeds)]
    record = Path(cfg.record) if cfg.record else run.path / "ladder.jsonl" if run else None
    rows = train_all(grid + again, corpus, run, record)
    noise = [row["loss"] for row in [rows[len(grid) // 2], *rows[len(grid) :]]]
    return rows[: len(grid)], noise, corpus.origin


def judged(rows: list[dict[str, float]]) -> tuple[dict[str, float], ScalingTable]:
    """Error of every law on the largest size, in percent, fitted without it."""
    N, D, loss, lr, batch = (np.array([row[name] for row in rows]) for name in ("N", "D", "loss", "lr", "batch"))
    table = ScalingTable(N=N, D=D, loss=loss, lr=lr, batch=batch, convention="non-embedding", unit="nats/token",
                         name="tiny ladder")  # fmt: skip
    largest = table.N == table.N.max()
    left, kept = table.take(~largest), table.take(largest)
    found = {}
    for law in LAWS:
        surface = fit(left, law, draws=60 if law == "auto" else 0, check=False)
        found[f"error/{law}"] = percent(np.exp(surface._logs(kept.N, kept.D, 1.0, False)), kept.loss)
        if law == "auto":
            low, high = surface.interval(kept.N, kept.D, 0.8)
            found["covered"] = float(np.mean((kept.loss >= low) & (kept.loss <= high)))
    return found, table


def main(cfg: Config = TINY, run: Run | None = None) -> Result:
    rows, losses, origin = ladder(cfg, run)
    metrics, table = judged(rows)
    metrics["noise"] = float(100 * np.std(np.log(losses), ddof=1)) if len(losses) > 1 else 0.0
    metrics["loss/lowest"], metrics["loss/highest"] = float(table.loss.min()), float(table.loss.max())
    by = [[table.loss[(table.N == N) & (table.D == D)] for D in np.unique(table.D)] for N in table.sizes]
    metrics["falls/tokens"] = _falling([[float(v[0]) for v in row if len(v)] for row in by])
    most = [row for row in rows if row["D"] >= 0.9 * max(one["D"] for one in rows)]
    metrics["falls/size"] = _falling([[row["loss"] for row in sorted(most, key=lambda row: row["N"])]])
    return Result(metrics, notes={"origin": origin, "report": _report(table, metrics, origin)})


def _falling(series: list[list[float]]) -> float:
    """Share of neighbours of which the second is lower."""
    steps = [b < a for row in series for a, b in pairwise(row)]
    return float(np.mean(steps))


def _report(table: ScalingTable, metrics: dict[str, float], origin: str) -> list:
    surface = fit(table.take(table.N < table.N.max()), "auto", draws=0, check=False)
    series: dict[str, tuple] = {}
    for N in table.sizes:
        D = np.geomspace(table.D.min(), table.D.max(), 40)
        rows = table.N == N
        series[f"N {N:,.0f}"] = (table.D[rows], table.loss[rows])
        series[f"fit N {N:,.0f}"] = (D, np.exp(surface._logs(N, D, 1.0, False)))
    lines = tuple(name for name in series if name.startswith("fit "))
    return [
        Heading("The ladder", f"Trained on {origin}; the largest size was kept from the fit that draws its line."),
        Dots("Held-out loss by tokens", series, x="tokens D", y="nats a character", lines=lines),
        Table(("law", "error on the largest size, percent"), [[law, metrics[f"error/{law}"]] for law in LAWS],
              caption=f"runs of one cell differ by {metrics['noise']:.2f}% between seeds"),
    ]  # fmt: skip


CLAIMS = [
    Claim("the default predictor is within 3 % of the largest size's losses", lambda r: r.metrics["error/auto"] <= 3),
    Claim("its 80 % interval holds at least half of them", lambda r: r.metrics["covered"] >= 0.5),
    Claim("more tokens lower the loss of a size in 9 of 10 steps", lambda r: r.metrics["falls/tokens"] >= 0.9),
    Claim("runs of one cell differ by less than 1 % between seeds", lambda r: r.metrics["noise"] < 1),
]
