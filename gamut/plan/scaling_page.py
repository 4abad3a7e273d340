"""`gamut plan scaling`: a table of runs in, a one-page report out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gamut.plan.compare import advise
from gamut.plan.fitting import epochs_of, rerun_noise, thinned
from gamut.plan.pictures import Dots
from gamut.plan.rules import all_rules
from gamut.plan.surface import Optimum, Surface
from gamut.plan.tables import ScalingTable

LEVEL, BEST = 0.8, "compute-optimal"
DRAWN = 1500  # runs shown in a picture
HELD_OUT = (
    "Each row hides part of the table, fits every law to the rest (fit on: how many runs) and predicts what was hidden "
    "(test). Numbers are mean errors in percent; a dash is a law that cannot be fitted to what is left."
)


@dataclass(frozen=True)
class Target:
    """What is asked about: the compute-optimal point of a budget, or an (N, D) that was given."""

    N: float
    D: float
    loss: float
    low: float
    high: float
    how: str

    @property
    def flops(self) -> float:
        return 6 * self.N * self.D


def asked(flops: float | None, N: float | None, D: float | None) -> None:
    """Raises ValueError unless a budget or a run was given, as plain counts."""
    for name, value, least in (("flops", flops, 1e9), ("n", N, 1e3), ("d", D, 1e3)):
        if value is not None and not least <= value < math.inf:
            raise ValueError(f"--target-{name} is a plain count of at least {least:g}, got {value:g}; as 1e22 or 7e9")
    if not flops and not (N and D):
        raise ValueError("say what to predict: --target-flops 1e22, or --target-n 1e9 --target-d 2e10")


def count(value: float) -> str:
    """8.5 billion, 196 billion, 1.2 trillion; small ones as they are."""
    for size, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {name}" if value < 1e15 else f"{value:.3g}"
    return f"{value:,.0f}"


def target(
    surface: Surface, flops: float | None, N: float | None, D: float | None, dn_range: tuple[float, float]
) -> Target:
    """The point that a user asked for.

    Raises:
        ValueError: when the budget has no optimum in the range, or nothing was asked for.
    """
    asked(flops, N, D)
    if N and D:
        how = "as given"
    elif flops and N:
        D, how = flops / (6 * N), "N as given, D = C / 6N"
    elif flops and D:
        N, how = flops / (6 * D), "D as given, N = C / 6D"
    else:
        best: Optimum = surface.optimal(float(flops or 0), dn_range)
        N, D, how = best.N, best.D, f"{BEST} for D/N in {dn_range[0]:g} to {dn_range[1]:g}"
    low, high = surface.interval(N, D, LEVEL)
    return Target(float(N), float(D), float(surface.predict(N, D)), float(low), float(high), how)


def summary(table: ScalingTable, surface: Surface, aim: Target) -> list[str]:
    """The lines that the terminal shows."""
    unit = table.unit
    lines = [
        f"{table.name}: {len(table)} runs, {len(table.sizes)} sizes, N {table.convention}, loss in {unit}",
        *(f"  careful: {note}" for note in surface.notes),
        f"law {surface.law}: residual {100 * surface.noise:.2f}% (standard deviation of log loss)",
    ]
    lines += [
        f"  {row['held out']:28s} " + "  ".join(f"{law} {error:.2f}%" for law, error in _errors(row))
        for row in surface.holdouts
    ]
    lines.append(
        f"C = {aim.flops:.3g}: N = {aim.N:.3g}, D = {aim.D:.3g} (D/N {aim.D / aim.N:.3g}; {aim.how}): "
        f"loss {aim.loss:.4f} {unit}, "
        f"{100 * LEVEL:.0f}% interval {aim.low:.4f} to {aim.high:.4f}"
    )
    return lines


def _errors(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    return [(k, v) for k, v in row.items() if isinstance(v, float)]


def blocks(table: ScalingTable, surface: Surface, aim: Target, dn_range: tuple[float, float]) -> list[Any]:
    """The page, as blocks of gamut/io/report.py."""
    from gamut.io.report import Details, Heading, Table

    page: list[Any] = [Heading("The answer", _answer(table, aim))]
    columns = ("parameters N", "tokens D", "tokens per parameter", "compute 6ND", f"loss, {table.unit}",
               f"{100 * LEVEL:.0f}% interval")  # fmt: skip
    place = count(aim.N), count(aim.D), f"{aim.D / aim.N:.3g}", f"{aim.flops:.3g}"
    answer = (*place, f"{aim.loss:.4f}", f"{aim.low:.4f} to {aim.high:.4f}")
    page.append(Table(columns, [answer], caption=f"{aim.how}; law {surface.law}"))
    page.append(_frontier(table, surface, aim, dn_range))
    page += [f"Careful: {note}." for note in surface.notes]
    page += [Heading("How far to trust it", HELD_OUT)]
    if surface.holdouts:
        names = list(surface.holdouts[0])
        page.append(Table(names, [[_cell(row[name]) for name in names] for row in surface.holdouts]))
    else:
        page.append("Too few runs to keep any back: nothing here says how far the fit can be trusted.")
    page += [
        Heading("The fit"),
        Table(list(_constants(surface)), [list(_constants(surface).values())], caption=_formula(surface)),
    ]
    page += [_isosizes(table, surface), _residuals(table, surface)]
    page += [Heading("How to split compute between size and tokens"), _ratios(table, surface, aim, dn_range)]
    page += [Heading("Five runs that would narrow the interval most", _advice_text(surface)), _advice(surface, aim)]
    rules = [
        (r.rule, _digits(r.lr), *_batch(r.batch, aim.D, r.note), _digits(r.excess))
        for r in all_rules(aim.N, aim.D, aim.loss)
    ]
    columns = ("rule", "peak learning rate", "batch, tokens", "", "published excess loss, per mille")
    page += [Heading("Learning rate and batch by published rules"), Table(columns, rules)]
    noise = rerun_noise(table)
    page.append(Details("About the table", [
        f"{table.name}: N {table.N.min():.3g} to {table.N.max():.3g} ({table.convention}), "
        f"D {table.D.min():.3g} to {table.D.max():.3g}, "
        f"D/N {np.min(table.D / table.N):.3g} to {np.max(table.D / table.N):.3g}. {table.source}",
        f"Repeated runs differ by {100 * noise:.3f}%." if math.isfinite(noise) else "No run was repeated.",
    ]))  # fmt: skip
    return page


def _answer(table: ScalingTable, aim: Target) -> str:
    """Two or three sentences."""
    size, tokens = f"{count(aim.N)} parameters", f"{count(aim.D)} tokens"
    if aim.how.startswith(BEST):
        first = f"The best use of {aim.flops:.3g} FLOPs is a model of {size} trained on {tokens}; expect it to reach"
    else:
        first = f"Expect a model of {size} trained on {tokens} to reach"
    beyond = aim.flops / table.compute.max()
    return (
        f"{first} a loss of {aim.loss:.3f} {table.unit}. {10 * LEVEL:.0f} of 10 such runs should end between "
        f"{aim.low:.3f} and {aim.high:.3f}."
        + (f" It takes {beyond:.3g} times the compute of the table's largest run." if beyond > 1.01 else "")
    )


def _frontier(table: ScalingTable, surface: Surface, aim: Target, dn_range: tuple[float, float]) -> Dots:
    """Every run by compute, the best loss of each budget with its interval, and the prediction."""
    shown = thinned(table, DRAWN)
    budgets, best = np.geomspace(table.compute.min(), max(3 * table.compute.max(), 3 * aim.flops), 40), []
    for C in budgets:
        try:
            point = surface.optimal(float(C), dn_range)
        except ValueError:
            continue
        low, high = surface.interval(point.N, point.D, LEVEL)
        best.append((C, point.loss, float(low), float(high)))
    series: dict[str, tuple] = {"runs of the table": (shown.compute, shown.loss)}
    lines: tuple[str, ...] = ()
    if best:
        C, middle, low, high = np.array(best).T
        edges = (f"{100 * LEVEL:.0f}% interval, low", f"{100 * LEVEL:.0f}% interval, high")
        lines = ("best at each budget", *edges)
        series |= {lines[0]: (C, middle), edges[0]: (C, low), edges[1]: (C, high)}
    series["the prediction"] = (np.array([aim.flops]), np.array([aim.loss]))
    return Dots(
        "Loss by compute: runs, and the best that each budget buys", series, x="compute 6ND, FLOPs",
        y=f"loss, {table.unit}", lines=lines, band=lines[1:], marked=("the prediction",), height=340,
    )  # fmt: skip


def _cell(value: Any) -> Any:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else value


def _digits(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def _batch(value: float, D: float, note: str) -> tuple[str, str]:
    return ("-", "batch as printed exceeds the whole run") if value > D else (_digits(value), note)


def _constants(surface: Surface) -> dict[str, str]:
    return {name: f"{value:.4g}" for name, value in surface.constants().items()}


def _formula(surface: Surface) -> str:
    from gamut.plan.laws import LAWS

    formula = LAWS[surface.parts[0].law].formula
    if len(surface.parts) == 1:
        return f"loss = {formula}"
    return f"mean of {len(surface.parts)} fits in ln loss (they differ in prior and weights); the first: {formula}"


def _shape_effect(table: ScalingTable, surface: Surface) -> np.ndarray:
    return np.zeros(len(table)) if table.aspect is None else surface.shape.at(table.aspect)


def _isosizes(table: ScalingTable, surface: Surface) -> Dots:
    """Loss by tokens for up to six sizes: dots measured, lines fitted."""
    table = thinned(table, DRAWN)
    sizes = table.sizes
    sizes = sizes[np.unique(np.linspace(0, len(sizes) - 1, 6).round().astype(int))]
    series: dict[str, tuple] = {}
    for N in sizes:
        rows = (np.abs(np.log(table.N / N)) < 2e-3) & (epochs_of(table) <= 1)
        series[f"N = {count(N)}"] = (table.D[rows], table.loss[rows])
    D = np.geomspace(table.D.min(), table.D.max(), 60)
    shapes = _shape_effect(table, surface)
    beside = [np.median(shapes[np.abs(np.log(table.N / N)) < 2e-3]) for N in sizes]
    with_lines = {
        f"fit {name}": (D, np.exp(surface._logs(N, D, 1.0, False) + more))
        for name, N, more in zip(list(series), sizes, beside, strict=True)
    }
    series = {
        k: v for name in list(series) for k, v in ((name, series[name]), (f"fit {name}", with_lines[f"fit {name}"]))
    }
    return Dots(
        f"Loss by tokens, {len(sizes)} of {len(table.sizes)} sizes: dots measured, lines fitted",
        series,
        x="tokens D",
        y=table.unit,
        lines=tuple(with_lines),
    )


def _residuals(table: ScalingTable, surface: Surface) -> Dots:
    table = thinned(table, DRAWN)
    logs = surface._logs(table.N, table.D, epochs_of(table), False) + _shape_effect(table, surface)
    off = 100 * (table.loss / np.exp(logs) - 1)
    return Dots("Residuals: measured above fitted, percent", {"run": (table.compute, off)}, x="compute, FLOPs", y="%")


def _ratios(table: ScalingTable, surface: Surface, aim: Target, dn_range: tuple[float, float]) -> Any:
    """Best D/N against compute, beside what the table holds."""
    found = []
    for C in np.geomspace(table.compute.min(), max(10 * table.compute.max(), 3 * aim.flops), 25):
        try:
            best = surface.optimal(float(C), dn_range)
        except ValueError:
            continue
        found.append((C, best.D / best.N))
    shown = thinned(table, DRAWN)
    series = {"runs of the table": (shown.compute, shown.D / shown.N)}
    if not found:
        return f"No compute-optimal point for D/N in {dn_range[0]:g} to {dn_range[1]:g} at any budget near the table."
    series["best D/N"] = tuple(np.array(found).T)
    return Dots(
        "Tokens per parameter that are best, by compute",
        series,
        x="compute, FLOPs",
        y="D/N",
        log="xy",
        lines=("best D/N",),
    )


def _advice_text(surface: Surface) -> str:
    return (
        "Chosen one after another from where the fits to resampled tables disagree; each costs at most what the "
        f"table's largest run could cost, {6 * surface.seen.N[1] * surface.seen.D[1]:.2g} FLOPs. Last column: how "
        "wide the interval above still is, after this run and those before it."
    )


def _advice(surface: Surface, aim: Target) -> Any:
    from gamut.io.report import Table

    rows = [
        (count(r["N"]), count(r["D"]), f"{r['D'] / r['N']:.3g}", f"{r['C']:.3g}", f"{100 * r['left']:.0f}%")
        for r in advise(surface, aim.N, aim.D)
    ]
    return Table(("parameters N", "tokens D", "D/N", "FLOPs", "interval left"), rows)


def write(path: str | Path, table: ScalingTable, surface: Surface, aim: Target, dn_range: tuple[float, float]) -> Path:
    """The report as one HTML file."""
    from gamut.io.report import write_report

    lead = f"Scaling laws fitted to {len(table)} runs, {len(table.sizes)} sizes: {table.name}"
    return write_report(
        path, f"What {aim.flops:.3g} FLOPs of training buy", blocks(table, surface, aim, dn_range), lead=lead
    )
