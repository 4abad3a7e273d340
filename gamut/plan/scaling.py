"""Scaling laws: fit a table of runs, predict the loss of the next one, with an error bar.

from gamut.plan.scaling import ScalingTable, fit

surface = fit(ScalingTable(N=..., D=..., loss=...), law="auto", seed=0)
surface.predict(70e9, 1.4e12), surface.interval(70e9, 1.4e12), surface.optimal(1e24), surface.holdouts

gamut plan scaling runs.csv --target-flops 1e22
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gamut.plan.auto import DEFAULT, GATE, SPREAD, Rule, fit_rules
from gamut.plan.fitting import METHODS, Prepared, centre_of, doubts, epochs_of, fit_theta, prepare, warn
from gamut.plan.holdout import holdouts, rolling, standard, usable
from gamut.plan.laws import LAWS, Runs
from gamut.plan.surface import DN_RANGE, Part, Seen, Surface
from gamut.plan.tables import ScalingTable

__all__ = ["METHODS", "ScalingTable", "Surface", "compare_laws", "fit"]
SHOWN = ("chinchilla", "kappa", "farseer", "farseer-piecewise", "auto")


def fit(
    table: ScalingTable,
    law: str = "auto",
    *,
    seed: int = 0,
    draws: int = 100,
    check: bool = True,
    rules: Sequence[Rule] = DEFAULT,
) -> Surface:
    """Fit a law to a table of runs.

    Args:
        law: auto (the best predictor we know: see plan/auto.py), chinchilla, kappa, farseer (joint fit),
            farseer-piecewise (the paper's, for tables on a geometric grid of token counts) or repeated (with
            ``unique`` tokens).
        seed: of the bootstrap; equal seeds give equal surfaces.
        draws: bootstrap draws behind `Surface.interval`; 0 for none.
        check: compute the hold-outs of every law, and warn where the table cannot identify one.
    Raises:
        ValueError: for an unknown law, a table that is too small, or one that the law cannot be fitted to.
    """
    if law != "auto" and law not in METHODS:
        raise ValueError(f"unknown law {law!r}; laws: auto, {', '.join(METHODS)}")
    notes = doubts(table) if check else ()
    ready = prepare(table)
    parts = _parts(table, law, ready, draws, seed, rules)
    name = parts[0].law if law == "farseer-piecewise" else law
    logs = sum(p.weight * LAWS[p.law].terms(p.theta[None], ready.runs)[0][0] for p in parts) / sum(
        p.weight for p in parts
    )
    noise = 1.4826 * float(np.median(np.abs(logs - ready.log_loss)))
    if check:
        warn(tuple(note for note in notes if "convention" not in note), table.name)
    return Surface(
        name, parts, centre_of(table), Seen.of(table), noise, SPREAD if law == "auto" else 1.0,
        compare_laws(table, rules=rules) if check else (), notes, None if name == "repeated" else ready.kappa,
    )  # fmt: skip


def _parts(
    table: ScalingTable, law: str, ready: Prepared, draws: int, seed: int, rules: Sequence[Rule]
) -> tuple[Part, ...]:
    if law != "auto":
        return (Part(law.removesuffix("-piecewise"), *fit_theta(table, law, ready, draws, seed)),)
    if (epochs_of(table) > 1).any():
        return (Part("repeated", *fit_theta(table, "repeated", ready, draws, seed)),)
    if _farseer_wins(table, rules):
        return (Part("farseer", *fit_theta(table, "farseer", ready, draws, seed)),)
    return fit_rules(table, rules, ready, draws, seed)


def _farseer_wins(table: ScalingTable, rules: Sequence[Rule]) -> bool:
    """On dense tables only, and only where it halves (GATE.ratio) our error on both hold-outs inside the table."""
    if len(table.sizes) < GATE.sizes or len(table) < GATE.rows:
        return False

    def predictors(left: ScalingTable) -> dict[str, Any]:
        ready = prepare(left)
        return {"ours": partial(_predict, ready, fit_rules(left, rules, ready)),
                "farseer": partial(_predict, ready, [Part("farseer", *fit_theta(left, "farseer", ready))])}  # fmt: skip

    rows = holdouts(table, predictors, standard(table))
    return len(rows) == 2 and all(row["farseer"] < GATE.ratio * row["ours"] for row in rows)


def _predict(ready: Prepared, parts: Sequence[Part], table: ScalingTable) -> np.ndarray:
    runs = Runs.at(table.N, table.D, ready.runs.centre, epochs_of(table))
    logs = sum(p.weight * LAWS[p.law].terms(p.theta[None], runs)[0][0] for p in parts) / sum(p.weight for p in parts)
    return np.exp(logs)


def compare_laws(
    table: ScalingTable, laws: Sequence[str] = SHOWN, *, rules: Sequence[Rule] = DEFAULT, splits: Any = None
) -> tuple[Mapping[str, Any], ...]:
    """Rolling hold-outs of every law: rows of {"held out", "fit on", "test", law: error in percent}.

    A law that cannot be fitted to a part of the table (no grid for the piecewise fit, say) has None there.
    """

    def predictors(left: ScalingTable) -> dict[str, Any]:
        ready = prepare(left)
        return {law: partial(_attempt, left, law, ready, rules) for law in laws}

    return holdouts(table, predictors, rolling(table) if splits is None else list(usable(table, splits)))


def _attempt(left: ScalingTable, law: str, ready: Prepared, rules: Sequence[Rule], kept: ScalingTable) -> np.ndarray:
    try:
        return _predict(ready, _parts(left, law, ready, 0, 0, rules), kept)
    except ValueError:
        return np.full(len(kept), np.nan)


def main(
    table: Path,
    /,
    *,
    against: Path | None = None,
    target_flops: float | None = None,
    target_n: float | None = None,
    target_d: float | None = None,
    law: str = "auto",
    n: str = "",
    d: str = "",
    flops: str = "",
    loss: str = "",
    unique: str = "",
    convention: str = "unstated",
    unit: str = "nats/token",
    dn_range: tuple[float, float] = DN_RANGE,
    seed: int = 0,
    out: Path = Path("scaling.html"),
    json: Path | None = None,
) -> None:
    """Fit scaling laws to a table of runs; predict the next run with an error bar; write a one-page report.

    Args:
        table: CSV or Parquet, a row per run.
        against: a second table with the same columns: a map of which recipe wins where, in place of a prediction.
        target_flops: training compute to plan for, C = 6 N D.
        target_n: parameters to predict for; with target_d or target_flops.
        target_d: tokens to predict for.
        law: auto, chinchilla, kappa, farseer, farseer-piecewise or repeated.
        n: column of parameters, if its name is not an obvious one.
        d: column of tokens.
        flops: column of training FLOPs, in place of tokens: D = C / 6N.
        loss: column of losses.
        unique: column of different tokens, for runs that repeat data.
        convention: non-embedding, total, no input embedding, matmul or unstated.
        unit: nats/token, bits/token, bits/character or bits/byte.
        dn_range: tokens per parameter between which the best point is sought.
        out: where the report goes.
        json: where the surface goes, with every digit.
    """
    from gamut.plan.scaling_page import summary, target, write

    roles = {"N": n, "D": d, "flops": flops, "loss": loss, "unique": unique}
    columns: dict[str, Any] = {role: name for role, name in roles.items() if name}
    runs = ScalingTable.read(table, convention=convention, unit=unit, **columns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the notes are printed and stand on the page
        surface = fit(runs, law, seed=seed)
        if against is not None:
            others = ScalingTable.read(against, convention=convention, unit=unit, **columns)
            return _against((runs, others), (surface, fit(others, law, seed=seed)), out, dn_range)
        aim = target(surface, target_flops, target_n, target_d, dn_range)
    print("\n".join(summary(runs, surface, aim)))
    if json:
        print(surface.save(json))
    print(write(out, runs, surface, aim, dn_range))


def _against(
    tables: tuple[ScalingTable, ScalingTable],
    surfaces: tuple[Surface, Surface],
    out: Path,
    dn_range: tuple[float, float],
) -> None:
    from gamut.plan import compare_page

    runs = np.concatenate([table.N for table in tables]), np.concatenate([table.D for table in tables])
    path, found = compare_page.write(out, *surfaces, dn_range, runs)
    print("\n".join([*compare_page.summary(found, *surfaces), str(path)]))
