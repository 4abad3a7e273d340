"""Fitting one law to a table, with bootstrap draws; and the checks that say whether the table can pin it down."""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gamut.plan.laws import LAWS, Runs
from gamut.plan.piecewise import piecewise_theta
from gamut.plan.solve import Prior, chinchilla_starts, minimise, starts
from gamut.plan.tables import ScalingTable, varied

HUBER = 1e-3  # on log losses: arXiv 2203.15556 D.3
POOLED = (
    0.01  # standard deviation of log loss between runs of equal N, D; reruns differ by 0.0003 (OLMo) to 0.013 (tiny)
)
LEAST = 5  # rows
FEW_SIZES = 8  # below this Farseer's nine parameters overfit (fact sheet scaling_baseline)
# Farseer's joint fit leans on these (slopes by ln N of ln A and of the data term; powers): fact sheet scaling_baseline
RIDGE = Prior(
    np.array([0, 0, 0.12, 0, 0, -0.1, 0, 0, 0.15]),
    np.array([np.inf, 0.1, 0.15, np.inf, 0.1, 0.15, np.inf, np.inf, 0.2]),
)
METHODS = (*LAWS, "farseer-piecewise")
MOST = 1000  # rows that are fitted: a law is a smooth function of two numbers, and more rows move it less than its form
USUAL = (0.05, 50.0)  # median losses that the laws' bounds are made for; others are scaled into it


@dataclass(frozen=True)
class Prepared:
    """A table as the solver wants it: places, log losses, weights, and the noise that kappa leaves."""

    runs: Runs
    log_loss: np.ndarray
    weights: np.ndarray
    chinchilla: np.ndarray
    kappa: np.ndarray
    noise: float


def centre_of(table: ScalingTable) -> tuple[float, float]:
    """ln of the geometric means of N and D."""
    return float(np.log(table.N).mean()), float(np.log(table.D).mean())


def epochs_of(table: ScalingTable) -> np.ndarray:
    return np.ones(len(table)) if table.unique is None else np.maximum(table.D / table.unique, 1.0)


def row_weights(table: ScalingTable) -> np.ndarray:
    """1, or where the table knows its noise: less for rows noisier than the median one, up to 4 for quieter ones."""
    if table.noise is None:
        return np.ones(len(table))
    usual = max(float(np.median(table.noise)), 1e-6)
    return 1 / np.maximum(table.noise / usual, 0.5) ** 2


def prepare(table: ScalingTable) -> Prepared:
    """Fits Chinchilla and kappa: everything else starts from them.

    Raises:
        ValueError: with fewer than 5 rows, or with one N and one D throughout.
    """
    if len(table) < LEAST or (len(table.sizes) < 2 and len(np.unique(table.D)) < 2):
        raise ValueError(_counted(table) + f"; a law needs {LEAST} rows, and two sizes or two token counts, at least")
    runs = Runs.at(table.N, table.D, centre_of(table), epochs_of(table))
    y, weights = np.log(table.loss), row_weights(table)
    best = []
    for law in (LAWS["chinchilla"], LAWS["kappa"]):
        first = starts(law, best[0], runs) if best else chinchilla_starts(runs, y)
        theta, cost = minimise(law, runs, y, first, scale=HUBER, weights=weights)
        best.append(theta[np.argmin(cost)])
    residual = LAWS["kappa"].terms(best[1][None], runs)[0][0] - y
    return Prepared(runs, y, weights, best[0], best[1], max(1.4826 * float(np.median(np.abs(residual))), 5e-4))


def _counted(table: ScalingTable) -> str:
    tokens = len(np.unique(table.D))
    return f"{table.name} has {len(table)} rows, {len(table.sizes)} sizes N and {tokens} token counts D"


def thinned(table: ScalingTable, most: int = MOST) -> ScalingTable:
    """At most so many rows, evenly over compute; which they are does not depend on the order of the rows."""
    if len(table) <= most:
        return table
    order = np.lexsort((table.loss, table.N, table.compute))
    return table.take(order[np.linspace(0, len(table) - 1, most).round().astype(int)])


def scaled(table: ScalingTable) -> tuple[ScalingTable, float]:
    """The table with losses near 1 where they are far from it, and the factor that was taken out."""
    usual = float(np.median(table.loss))
    if USUAL[0] <= usual <= USUAL[1]:
        return table, 1.0
    return replace(table, loss=table.loss / usual), usual


def resampled(table: ScalingTable, draws: int, seed: int) -> np.ndarray:
    """Bootstrap weights (draws, M). Runs of one size are alike: whole sizes are drawn where there are enough."""
    rng = np.random.default_rng(seed)
    sizes, group = np.unique(np.round(np.log(table.N), 3), return_inverse=True)
    if len(sizes) < FEW_SIZES:
        group = np.arange(len(table))
    count = int(group.max()) + 1
    return rng.multinomial(count, np.full(count, 1 / count), size=draws)[:, group].astype(float)


def fit_theta(
    table: ScalingTable, method: str, ready: Prepared, draws: int = 0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Parameters (P,) and bootstrap draws (draws, P) of one law.

    Args:
        method: chinchilla, kappa and repeated by Huber regression of log losses; farseer by the joint fit with a ridge
            (fact sheet); farseer-piecewise by the paper's differences (no bootstrap: resampling destroys its grid).
    """
    if not varied(table):
        raise ValueError(
            _counted(table) + f"; law {method!r} needs two of each; law='auto' leans on what other tables taught"
        )
    if method == "farseer-piecewise":
        return piecewise_theta(table, ready.runs.centre), np.zeros((0, 9))
    law = LAWS[method]
    options: dict[str, Any] = {"scale": HUBER}
    if method == "farseer":
        options = {"scale": max(_half_mad(ready), 2e-4), "prior": RIDGE}
    if method == "repeated" and not (epochs_of(table) > 1).any():
        raise ValueError(
            f"{table.name} repeats no data, so the repeated-data law has nothing to fit; "
            "give unique=tokens, or law='auto'"
        )
    first = {"chinchilla": ready.chinchilla[None], "kappa": ready.kappa[None]}.get(method)
    first = starts(law, ready.chinchilla, ready.runs) if first is None else first
    theta, cost = minimise(law, ready.runs, ready.log_loss, first, weights=ready.weights, **options)
    best = theta[np.argmin(cost)]
    if not draws:
        return best, np.zeros((0, len(best)))
    weights = resampled(table, draws, seed) * ready.weights
    drawn, _ = minimise(
        law, ready.runs, ready.log_loss, np.tile(best, (draws, 1)), weights=weights, steps=60, **options
    )
    return best, drawn


def _half_mad(ready: Prepared) -> float:
    residual = LAWS["chinchilla"].terms(ready.chinchilla[None], ready.runs)[0][0] - ready.log_loss
    return 0.7413 * float(np.median(np.abs(residual - np.median(residual))))


def doubts(table: ScalingTable) -> tuple[str, ...]:
    """Why this table may not identify a law of N and D; empty when nothing is wrong."""
    return tuple(note for note in (*_weak(table), *_odd(table)) if note)


def _weak(table: ScalingTable) -> list[str]:
    """What the runs do not cover."""
    found, sizes, tokens = [], len(table.sizes), len(np.unique(table.D))
    for count, name, other in ((sizes, "N", "size"), (tokens, "D", "token count")):
        if count < 2:
            found.append(f"every run has the same {other}, so the effect of {name} is taken from other tables")
    if 2 <= sizes < FEW_SIZES:
        found.append(
            f"only {sizes} model sizes: with fewer than {FEW_SIZES} the size exponent is weak and Farseer overfits"
        )
    log_c, log_ratio = np.log(table.compute), np.log(table.D / table.N)
    slope = np.polyfit(log_c, log_ratio, 1) if np.ptp(log_c) > 0 else np.array([0.0, log_ratio.mean()])
    spread = float(np.std(log_ratio - np.polyval(slope, log_c)))
    if spread < 0.35 and sizes > 1 and tokens > 1:
        found.append(
            f"N and D are nearly collinear: at equal compute D/N varies by a factor of {np.exp(spread):.2f} "
            "(standard deviation), so the split between size and data terms is a guess; add runs at other D/N"
        )
    if np.ptp(log_c) < np.log(10):
        found.append(f"compute spans a factor of {np.exp(np.ptp(log_c)):.1f} only; extrapolation has no lever")
    return found


def _odd(table: ScalingTable) -> list[str]:
    """What looks like a slip: units, columns, runs that repeat data."""
    found, usual = [], float(np.median(table.loss))
    if table.convention == "unstated":
        found.append("the N convention is not stated; compare with other tables only after counting again")
    if table.N.max() < 1e5:
        found.append(f"the largest N is {table.N.max():g}: if these are millions, 6 N D and every budget are wrong")
    if np.median(table.D / table.N) < 0.5:
        found.append("most runs saw fewer tokens than they have parameters; are the columns N and D swapped?")
    if not USUAL[0] <= usual <= USUAL[1]:
        found.append(f"the median loss is {usual:.3g}, unlike {table.unit}; a perplexity is fitted better as its log")
    ranks = [np.argsort(np.argsort(v)) for v in (table.compute, table.loss)]
    if len(table) > FEW_SIZES and np.corrcoef(ranks[0], ranks[1])[0, 1] > 0:
        found.append("the loss does not fall with compute; is the column a loss, and are all runs of one recipe?")
    if (again := rerun_noise(table)) > POOLED:
        said = "several recipes or data sets in one table have no common law; fit each alone"
        found.append(f"runs of equal N and D differ by {100 * again:.1f}%: {said}")
    if (most := epochs_of(table).max()) > 1:
        found.append(f"runs read their data up to {most:.3g} times; predict is for fresh data unless epochs is given")
    return found


def rerun_noise(table: ScalingTable) -> float:
    """Standard deviation of log loss between runs of equal N, D (and equal unique tokens); nan without any."""
    key = np.stack([table.N, table.D, table.N if table.unique is None else table.unique], 1)
    _, group, count = np.unique(key, axis=0, return_inverse=True, return_counts=True)
    group = group.ravel()
    if not (count > 1).any():
        return float("nan")
    logs = np.log(table.loss)
    means = np.bincount(group, logs) / count
    return float(np.sqrt(((logs - means[group]) ** 2).sum() / (count - 1).sum()))


def warn(notes: tuple[str, ...], name: str) -> None:
    for note in notes:
        warnings.warn(f"{name}: {note}", stacklevel=3)
