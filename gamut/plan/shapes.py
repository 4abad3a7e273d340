"""Width over depth as a declared feature: a bowl in ln(aspect), the same at every N and D.

A table that says how wide and deep its models were is fitted as if all had the usual aspect; a prediction adds the
bowl back. Gemstones' shapes from 3 to 320 differ by up to 7% of loss at equal N and D, which a law of N and D can only
call noise.

Source: ours. That the loss is flat around a best aspect and rises on both sides: arXiv 2001.08361 section 3.1, and
2506.10972 Figure 9.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from gamut.plan.tables import ScalingTable

PRIOR = (0.02, 0.01)  # deviations of the bowl's slope and bend around 0
ROUNDS = 4  # of law and bowl in turn
ENOUGH = 240  # rows that settle it


@dataclass(frozen=True)
class Shape:
    """ln loss changes by slope s + bend s^2, s = ln(aspect / usual), s kept inside what the table held."""

    usual: float = 1.0
    low: float = 1.0
    high: float = 1.0
    slope: float = 0.0
    bend: float = 0.0

    def at(self, aspect: np.ndarray) -> np.ndarray:
        """What to add to ln loss.

        Raises:
            ValueError: for an aspect that is not above 0.
        """
        aspect = np.asarray(aspect, dtype=np.float64)
        if not (np.isfinite(aspect) & (aspect > 0)).all():
            raise ValueError(f"aspect is width / depth, finite and above 0, got {np.ravel(aspect)[:5]}")
        s = np.log(np.clip(aspect, self.low, self.high) / self.usual)
        return self.slope * s + self.bend * s * s

    def straightened(self, table: ScalingTable) -> ScalingTable:
        """The table as if every run had the usual aspect."""
        return table if table.aspect is None else replace(table, loss=table.loss * np.exp(-self.at(table.aspect)))


def learned(table: ScalingTable, law: Callable[[ScalingTable], np.ndarray]) -> Shape:
    """The bowl of a table with ``aspect``; nothing where it has none.

    Args:
        law: of a table: fitted ln losses of its rows.
    """
    if table.aspect is None or len(table.sizes) < 3:
        return Shape()
    _, size = np.unique(np.round(np.stack([np.log(table.N), np.log(table.aspect)]), 3), axis=1, return_inverse=True)
    size = size.ravel()
    rows = np.bincount(size)
    aspects = np.exp(np.bincount(size, np.log(table.aspect)) / rows)
    shape = Shape(float(np.median(aspects)), float(aspects.min()), float(aspects.max()))
    s = np.log(aspects / shape.usual)
    columns = np.stack([s, s * s], 1)
    for _ in range(ROUNDS):
        left = np.log(table.loss) - law(shape.straightened(table))
        slope, bend = _bowl(columns, np.bincount(size, left) / rows)
        shape = replace(shape, slope=slope, bend=bend)
    return shape


def _bowl(columns: np.ndarray, left: np.ndarray) -> tuple[float, float]:
    """Slope and bend by Huber regression of the models' mean residuals, with PRIOR."""
    weights, bowl = np.ones(len(left)), np.zeros(2)
    for _ in range(20):
        off = left - columns @ bowl
        scale = max(1.4826 * float(np.median(np.abs(off))), 5e-4)
        weights = 1 / np.maximum(1.0, np.abs(off) / scale)
        held = np.diag((scale / np.array(PRIOR)) ** 2)
        bowl = np.linalg.solve((columns * weights[:, None]).T @ columns + held, (columns * weights[:, None]).T @ left)
    return float(bowl[0]), float(bowl[1])
