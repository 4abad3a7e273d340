"""Scaling laws: fit a table of runs, predict the loss of the next one, with an error bar.

from gamut.plan.scaling import ScalingTable, fit

surface = fit(ScalingTable(N=..., D=..., loss=...), law="auto", seed=0)
surface.predict(70e9, 1.4e12), surface.interval(70e9, 1.4e12), surface.optimal(1e24), surface.holdouts

gamut plan scaling runs.csv --target-flops 1e22
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from gamut.plan import shapes
from gamut.plan.auto import DEFAULT, GATE, SPREAD, Rule, fit_rules
from gamut.plan.fitting import (
    LEAST,
    METHODS,
    Prepared,
    centre_of,
    doubts,
    epochs_of,
    fit_theta,
    prepare,
    scaled,
    thinned,
    warn,
)  # fmt: skip
from gamut.plan.holdout import holdouts, largest_sizes, rolling, standard, top_compute, usable
from gamut.plan.laws import LAWS, Runs
from gamut.plan.residuals import Residuals
from gamut.plan.shapes import Shape
from gamut.plan.surface import Part, Seen, Surface
from gamut.plan.tables import ScalingTable, varied

__all__ = ["METHODS", "ScalingTable", "Surface", "compare_laws", "fit"]
NONE = np.zeros((0, 6))  # no draws
LEVELS = {"chinchilla": (0, 1, 2), "kappa": (0, 1, 2), "repeated": (0, 1, 2), "farseer": (3, 6)}  # ln of loss terms
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
    _check(table, law, seed, draws)
    runs, scale = scaled(thinned(table))
    notes = doubts(table) if check else ()
    shape = _shape(runs, rules)
    plain = shape.straightened(runs)
    ready = prepare(plain)
    parts = _parts(plain, law, ready, draws, seed, rules)
    learned = _learned(plain, law, ready, parts)
    if check and learned is not None:
        notes += learned.doubts()
    name = parts[0].law if law == "farseer-piecewise" else law
    noise = 1.4826 * float(np.median(np.abs(_logs(ready, parts, plain) - ready.log_loss)))
    if check:
        warn(tuple(note for note in notes if "convention" not in note), table.name)
    return Surface(
        name, tuple(_lifted(p, scale) for p in parts), centre_of(runs), Seen.of(table), noise,
        SPREAD if law == "auto" else 1.0, compare_laws(runs, rules=rules) if check else (), notes,
        None if name == "repeated" or not varied(runs) else _lifted(Part("kappa", ready.kappa, NONE), scale).theta,
        learned, shape,
    )  # fmt: skip


def _check(table: Any, law: str, seed: Any, draws: Any) -> None:
    """What a caller can get wrong before any arithmetic."""
    if not isinstance(table, ScalingTable):
        raise ValueError(f"fit takes a ScalingTable(N=..., D=..., loss=...), got {type(table).__name__}")
    if law != "auto" and law not in METHODS:
        raise ValueError(f"unknown law {law!r}; laws: auto, {', '.join(METHODS)}")
    for name, value in (("seed", seed), ("draws", draws)):
        if not isinstance(value, (int, np.integer)) or value < 0:
            raise ValueError(f"{name} must be a whole number at or above 0, got {value!r}")
    if len(table) >= LEAST and np.ptp(table.loss) <= 1e-9 * table.loss.max():
        raise ValueError(f"every loss of {table.name} is {table.loss[0]:g}: nothing to fit; map another column")


def _lifted(part: Part, scale: float) -> Part:
    """The part for losses ``scale`` times as large."""
    if scale == 1:
        return part
    up = np.zeros(len(part.theta))
    up[list(LEVELS[part.law])] = np.log(scale)
    return replace(part, theta=part.theta + up, draws=part.draws + up)


def _shape(table: ScalingTable, rules: Sequence[Rule]) -> Shape:
    """The effect of width / depth, where the table declares it: around the average of all rules."""

    def law(few: ScalingTable) -> np.ndarray:
        ready = prepare(few)
        return _logs(ready, fit_rules(few, rules, ready), few)

    return shapes.learned(thinned(table, shapes.ENOUGH), law)


def _learned(table: ScalingTable, law: str, ready: Prepared, parts: Sequence[Part]) -> Residuals | None:
    """What "auto" adds to its laws; a law asked for by name is left as it is."""
    if law != "auto" or (epochs_of(table) > 1).any():
        return None
    return Residuals.learned(table.N, table.D, ready.log_loss - _logs(ready, parts, table), ready.noise)


def _parts(
    table: ScalingTable, law: str, ready: Prepared, draws: int, seed: int, rules: Sequence[Rule]
) -> tuple[Part, ...]:
    if law != "auto":
        return (Part(law.removesuffix("-piecewise"), *fit_theta(table, law, ready, draws, seed)),)
    if (epochs_of(table) > 1).any():
        return (Part("repeated", *fit_theta(table, "repeated", ready, draws, seed)),)
    if _farseer_wins(table, rules):
        return (Part("farseer", *fit_theta(table, "farseer", ready, draws, seed)),)
    parts = fit_rules(table, rules, ready, draws, seed)
    if (share := _kappa_share(table, rules)) < 0.01:
        return parts
    plain = Part("kappa", *fit_theta(table, "kappa", ready, draws, seed), share * len(parts))
    return (*(replace(part, weight=1 - share) for part in parts), plain)


def _kappa_share(table: ScalingTable, rules: Sequence[Rule]) -> float:
    """How far kappa without priors takes over: by half where it errs GATE.plain times as much inside the table."""
    few = thinned(table, GATE.few)
    if not varied(few):
        return 0.0

    def predictors(left: ScalingTable) -> dict[str, Any]:
        ready = prepare(left)
        return {"ours": partial(_predict, ready, fit_rules(left, rules, ready)),
                "kappa": partial(_predict, ready, [Part("kappa", ready.kappa, NONE)])}  # fmt: skip

    splits = [*(top_compute(few, share) for share in GATE.inner), largest_sizes(few)]
    lead = [np.log((row["kappa"] + 0.03) / (row["ours"] + 0.03)) for row in holdouts(few, predictors, splits)]
    return float(1 / (1 + np.exp((np.mean(lead) - np.log(GATE.plain)) / GATE.soft))) if lead else 0.0


def _farseer_wins(table: ScalingTable, rules: Sequence[Rule]) -> bool:
    """On dense tables only, and only where it halves (GATE.ratio) our error on both hold-outs inside the table."""
    if len(table.sizes) < GATE.sizes or len(table) < GATE.rows:
        return False

    def predictors(left: ScalingTable) -> dict[str, Any]:
        ready = prepare(left)
        return {"ours": partial(_predict, ready, fit_rules(left, rules, ready)),
                "farseer": partial(_predict, ready, [Part("farseer", *fit_theta(left, "farseer", ready))])}  # fmt: skip

    few = thinned(table, GATE.most)
    rows = holdouts(few, predictors, standard(few))
    return len(rows) == 2 and all(row["farseer"] < GATE.ratio * row["ours"] for row in rows)


def _logs(ready: Prepared, parts: Sequence[Part], table: ScalingTable) -> np.ndarray:
    runs = Runs.at(table.N, table.D, ready.runs.centre, epochs_of(table))
    logs = [p.weight * LAWS[p.law].terms(p.theta[None], runs)[0][0] for p in parts]
    return np.sum(logs, axis=0) / sum(p.weight for p in parts)


def _predict(ready: Prepared, parts: Sequence[Part], table: ScalingTable) -> np.ndarray:
    return np.exp(_logs(ready, parts, table))


def compare_laws(
    table: ScalingTable, laws: Sequence[str] = SHOWN, *, rules: Sequence[Rule] = DEFAULT, splits: Any = None
) -> tuple[Mapping[str, Any], ...]:
    """Rolling hold-outs of every law: rows of {"held out", "fit on", "test", law: error in percent}.

    A law that cannot be fitted to a part of the table (no grid for the piecewise fit, say) has None there.
    """

    def predictors(left: ScalingTable) -> dict[str, Any]:
        shape = _shape(left, rules)
        plain = shape.straightened(left)
        ready = prepare(plain)
        return {law: partial(_attempt, plain, law, ready, rules, shape) for law in laws}

    return holdouts(table, predictors, rolling(table) if splits is None else list(usable(table, splits)))


def _attempt(
    left: ScalingTable, law: str, ready: Prepared, rules: Sequence[Rule], shape: Shape, kept: ScalingTable
) -> np.ndarray:
    try:
        parts = _parts(left, law, ready, 0, 0, rules)
    except ValueError:
        return np.full(len(kept), np.nan)
    logs, learned = _logs(ready, parts, kept), _learned(left, law, ready, parts)
    beside = 0.0 if learned is None else learned.at(kept.N, kept.D)
    return np.exp(logs + beside + (0.0 if kept.aspect is None else shape.at(kept.aspect)))
