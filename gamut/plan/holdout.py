"""Hold-outs: what each law would have said about runs that it had not seen. Always computed, always shown."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gamut.plan.tables import ScalingTable, varied

STAGES = (0.5, 0.65, 0.8)  # rolling: fit up to this share of the rows by compute, predict the rest
LEAST = 8  # rows to fit


@dataclass(frozen=True)
class Split:
    """``test`` masks the rows that are kept back."""

    name: str
    test: np.ndarray


def top_compute(table: ScalingTable, share: float = 0.15) -> Split:
    """The rows of most 6ND."""
    count = max(1, round(share * len(table)))
    test = np.zeros(len(table), dtype=bool)
    test[np.argsort(table.compute, kind="stable")[len(table) - count :]] = True
    return Split(f"top {100 * share:.0f}% of compute", test)


def largest_sizes(table: ScalingTable, share: float = 0.2) -> Split:
    """The largest fifth of the values of N."""
    values = np.unique(table.N)
    count = max(1, round(share * len(values)))
    return Split(f"largest {100 * share:.0f}% of sizes", table.N >= values[-count])


def standard(table: ScalingTable) -> list[Split]:
    """The two by which laws are compared: top 15% of compute, largest fifth of the sizes."""
    return [top_compute(table), largest_sizes(table)]


def rolling(table: ScalingTable) -> list[Split]:
    """The two standard ones, then ever more of the compute kept back."""
    later = [Split(f"after the first {100 * s:.0f}%", top_compute(table, 1 - s).test) for s in reversed(STAGES)]
    return [*standard(table), *later]


def usable(table: ScalingTable, splits: Sequence[Split]) -> Iterator[Split]:
    """Those that leave enough to fit: rows, and two sizes and two token counts if the whole table has them."""
    for split in splits:
        if (~split.test).sum() >= LEAST and split.test.any() and (varied(table.take(~split.test)) or not varied(table)):
            yield split


def percent(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Mean of |predicted / measured - 1|, in percent."""
    return float(100 * np.mean(np.abs(predicted / measured - 1)))


def holdouts(
    table: ScalingTable, predictors: Callable[[ScalingTable], Mapping[str, Callable]], splits: Sequence[Split]
) -> tuple[dict[str, Any], ...]:
    """One row per hold-out: its name, rows to fit and to test, and each law's error in percent.

    Args:
        predictors: of a table without the rows kept back: name -> f(table of those rows) -> losses.
    """
    rows = []
    for split in usable(table, splits):
        left, kept = table.take(~split.test), table.take(split.test)
        errors = {name: percent(predict(kept), kept.loss) for name, predict in predictors(left).items()}
        errors = {name: error if np.isfinite(error) else None for name, error in errors.items()}
        rows.append({"held out": split.name, "fit on": len(left), "test": len(kept), **errors})
    return tuple(rows)
