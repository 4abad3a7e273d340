"""`gamut plan scaling A.csv --against B.csv`: which of two recipes wins where, as a page with a map."""

from pathlib import Path
from typing import Any

import numpy as np

from gamut.plan.compare import Comparison, compare
from gamut.plan.pictures import Dots, Heat
from gamut.plan.surface import Surface


def summary(found: Comparison, a: Surface, b: Surface) -> list[str]:
    """What the terminal shows."""
    lines = [f"{s.seen.name}: law {s.law}, residual {100 * s.noise:.2f}%" for s in (a, b)]
    lines += [f"  careful, {s.seen.name}: {note}" for s in (a, b) for note in s.notes]
    return [*lines, found.verdict()]


def budgets(a: Surface, b: Surface, dn_range: tuple[float, float]) -> list[tuple]:
    """(C, best loss of a, of b, b over a in percent), a row for each power of ten of compute on either table."""
    spans = [6 * s.seen.N[i] * s.seen.D[i] for s in (a, b) for i in (0, 1)]
    rows = []
    for power in range(int(np.floor(np.log10(min(spans)))), int(np.ceil(np.log10(max(spans)))) + 2):
        try:
            losses = [s.optimal(10.0**power, dn_range).loss for s in (a, b)]
        except ValueError:
            continue
        rows.append((f"1e{power}", *(f"{loss:.4f}" for loss in losses), f"{100 * (losses[1] / losses[0] - 1):+.2f}%"))
    return rows


def blocks(
    found: Comparison, a: Surface, b: Surface, dn_range: tuple[float, float], runs: tuple[np.ndarray, np.ndarray]
) -> list[Any]:
    """The page, as blocks of gamut/io/report.py."""
    from gamut.io.report import Heading, Table

    names = (found.a, found.b)
    map_ = Heat(
        f"Blue: {found.a} has the lower loss; orange: {found.b}; pale: less than two standard deviations apart; "
        "dots: runs",
        found.N, found.D, found.delta_ND, open_ND=found.winner == 0, marks=runs,
    )  # fmt: skip
    page: list[Any] = [Heading("Who wins where", found.verdict() + ". Hovering shows by how much."), map_]
    page.append(_border(found))
    page += [Heading("At the best split of a budget", f"D/N between {dn_range[0]:g} and {dn_range[1]:g}.")]
    rows = budgets(a, b, dn_range)
    page.append(
        Table(("compute C", *(f"loss, {name}" for name in names), "second above first"), rows)
        if rows else "Neither surface has a compute-optimal point in that range near its table."
    )  # fmt: skip
    page.append(Heading("How far to trust each", "Errors in percent on rows that a fit had not seen."))
    for name, surface in zip(names, (a, b), strict=True):
        page += [f"Careful, {name}: {note}." for note in surface.notes]
        if surface.holdouts:
            columns = list(surface.holdouts[0])
            shown = [[_cell(row[column]) for column in columns] for row in surface.holdouts]
            page.append(Table(columns, shown, caption=name))
        else:
            page.append(f"{name} has too few runs to keep any back.")
    return page


def _border(found: Comparison) -> Any:
    """Tokens at which the lead changes, by size."""
    at = found.border()
    kept = np.isfinite(at)
    if len({*found.winner.ravel().tolist()} - {0}) < 2 or not kept.any():
        return "The lead never changes beyond doubt on this plane."
    series = {"equal": (found.N[kept], at[kept])}
    return Dots("Fewest tokens at which the lead changes, by size", series, x="parameters N", y="tokens D", log="xy")


def _cell(value: Any) -> Any:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else value


def write(
    path: str | Path, a: Surface, b: Surface, dn_range: tuple[float, float], runs: tuple[np.ndarray, np.ndarray]
) -> tuple[Path, Comparison]:
    """Compare and write the report as one HTML file. ``runs``: N and D of both tables.

    Raises:
        ValueError: if the two count parameters or loss differently.
    """
    from gamut.io.report import write_report

    found = compare(a, b)
    lead = f"Two tables of runs, a fit each, over the plane of both and ten times beyond; {a.seen.unit}"
    title = f"{found.a} against {found.b}"
    return write_report(path, title, blocks(found, a, b, dn_range, runs), lead=lead), found
