"""Farseer's own fit: differences in D, multi-round (arXiv 2506.10972, section 3 and Algorithms 1-2).

Differences cancel everything that does not depend on D, so the data term is fitted alone, then the floor. It multiplies
noise: below about 0.1% from run to run it is as good as the joint fit, at 0.5% it is 2 to 30 times worse.
"""

from dataclasses import dataclass

import numpy as np

from gamut.plan.laws import farseer_theta
from gamut.plan.tables import ScalingTable

RATIOS = (2**0.5, 2.0, 4.0)
NEAR = 0.005  # a pair of token counts whose ratio is this close to one of RATIOS counts as one
ROUNDS = 3


@dataclass(frozen=True)
class _Pairs:
    """R = L(N, D) - L(N, ratio D) for every size and pair; ``size`` numbers the rows' sizes."""

    ratio: float
    N: np.ndarray
    size: np.ndarray
    D: np.ndarray
    R: np.ndarray


def _pairs(table: ScalingTable) -> _Pairs:
    """The ratio with the most pairs, and its pairs.

    Raises:
        ValueError: if fewer than four sizes have three pairs.
    """
    sizes = np.unique(table.N)
    best = _Pairs(0.0, sizes, *(np.zeros(0),) * 3)
    for ratio in RATIOS:
        size, D, R = [], [], []
        for i, N in enumerate(sizes):
            rows = np.flatnonzero(table.N == N)
            d, loss = table.D[rows], table.loss[rows]
            first, second = np.nonzero(np.abs(d[None] / d[:, None] / ratio - 1) < NEAR)
            falls = loss[first] > loss[second]
            first, second = first[falls], second[falls]
            if len(np.unique(d[first])) >= 3:
                size += [i] * len(first)
                D += d[first].tolist()
                R += (loss[first] - loss[second]).tolist()
        if len(R) > len(best.R):
            best = _Pairs(ratio, sizes, np.array(size), np.array(D), np.array(R))
    if len(np.unique(best.size)) < 4:
        raise ValueError(
            f"{table.name}: the piecewise fit needs four sizes with three token counts D whose ratio D, rD is "
            f"r = {', '.join(f'{r:.3g}' for r in RATIOS)}; use law='farseer', which needs no grid"
        )
    kept, size = np.unique(best.size, return_inverse=True)
    return _Pairs(best.ratio, best.N[kept], size, best.D, best.R)


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Slope, intercept and squared residual of the least-squares line."""
    slope, intercept = np.polyfit(x, y, 1)
    return float(slope), float(intercept), float(((slope * x + intercept - y) ** 2).sum())


def _stretched(N: np.ndarray, log_y: np.ndarray, powers: np.ndarray) -> list[tuple[float, float, float, float]]:
    """(power, a, b, squared residual) of ln y = a N^power + b for each power."""
    found = []
    for power in powers:
        a, b, misfit = _line(N**power, log_y)
        found.append((float(power), a, b, misfit))
    return found


def piecewise(table: ScalingTable) -> dict[str, float]:
    """The paper's nine constants from a table on a geometric grid of token counts.

    Raises:
        ValueError: if the table has no such grid, or its differences give no decreasing data term.
    """
    pairs = _pairs(table)
    log_a, log_b = _per_size(pairs)
    rising, falling = np.linspace(0.005, 0.6, 120), -np.linspace(0.005, 0.6, 120)
    of_a = min(_stretched(pairs.N, log_a, rising), key=lambda row: row[3])
    of_b = min(_stretched(pairs.N, log_b, falling), key=lambda row: row[3])
    for _ in range(ROUNDS):
        of_a = min(_stretched(pairs.N, log_a, rising), key=lambda row: _misfit(pairs, row, of_b))
        of_b = min(_stretched(pairs.N, log_b, falling), key=lambda row: _misfit(pairs, of_a, row))
    power, scale = (np.exp(a * table.N**p + b) for p, a, b, _ in (of_a, of_b))
    floor = table.loss - scale * table.D**-power
    sizes, size = np.unique(table.N, return_inverse=True)
    means = np.bincount(size, floor) / np.bincount(size)
    if not (means > 0).all():
        raise ValueError(f"{table.name}: the piecewise fit leaves a floor below 0; use law='farseer'")
    of_g = min(_stretched(sizes, np.log(means), rising), key=lambda row: row[3])
    return {f"{name}{i}": row[j] for i, row in enumerate((of_a, of_b, of_g), 1) for name, j in (("a", 1), ("b", 2))} | {
        "alpha": of_a[0], "beta": of_b[0], "gamma": of_g[0],
    }  # fmt: skip


def _per_size(pairs: _Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Stage 1: ln A and ln B of every size, from the line of ln R by ln D."""
    lines = [_line(np.log(pairs.D[pairs.size == i]), np.log(pairs.R[pairs.size == i])) for i in range(len(pairs.N))]
    powers = np.maximum([-slope for slope, _, _ in lines], 1e-3)
    return np.log(powers), np.array([b for _, b, _ in lines]) - np.log1p(-(pairs.ratio**-powers))


def _misfit(pairs: _Pairs, of_a: tuple, of_b: tuple) -> float:
    """Stage 2c: squared residual of all differences."""
    power, scale = (np.exp(a * pairs.N[pairs.size] ** p + b) for p, a, b, _ in (of_a, of_b))
    return float(((pairs.R - scale * (1 - pairs.ratio**-power) * pairs.D**-power) ** 2).sum())


def piecewise_theta(table: ScalingTable, centre: tuple[float, float]) -> np.ndarray:
    """`piecewise`, as parameters of the law in plan/laws.py."""
    return farseer_theta(piecewise(table), centre)
