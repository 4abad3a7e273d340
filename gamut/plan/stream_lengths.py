"""Output lengths to simulate with: histograms and traces from files, samples drawn from them."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# StreamRL (arXiv 2504.15930), Figure 7 right: 30 bins of 635.5 tokens from 830, density x 1e-5, read off the chart
FIG7 = (
    19.75,
    26.75,
    19.17,
    18.44,
    12.21,
    9.81,
    8.82,
    4.85,
    5.37,
    3.45,
    2.55,
    3.58,
    2.58,
    0.86,
    1.31,
    0.70,
    1.18,
    0.54,
    2.11,
    1.56,
    1.66,
    3.16,
    1.02,
    1.47,
    1.43,
    1.79,
    1.50,
    1.82,
    1.18,
    1.50,
)


@dataclass(frozen=True)
class Lengths:
    """A distribution of output lengths in tokens: uniform inside each bin. A trace has bins of no width."""

    low: np.ndarray
    high: np.ndarray
    weight: np.ndarray

    def __post_init__(self):
        for name in ("low", "high", "weight"):
            if not np.isfinite(getattr(self, name)).all():
                raise ValueError(f"lengths must be finite numbers; column {name} has others")
        if not len(self.low) or (self.low < 0).any() or (self.high < self.low).any() or (self.weight < 0).any():
            raise ValueError("lengths need 0 <= start <= end and weights >= 0 in every bin")
        if not self.weight.sum() > 0:
            raise ValueError("lengths need a bin with weight > 0")

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """``count`` whole lengths >= 1."""
        bins = rng.choice(len(self.weight), size=count, p=self.weight / self.weight.sum())
        drawn = self.low[bins] + rng.random(count) * (self.high - self.low)[bins]
        return np.maximum(1, np.round(drawn)).astype(np.int64)

    def scaled(self, factor: float) -> "Lengths":
        """All lengths times ``factor``."""
        return Lengths(self.low * factor, self.high * factor, self.weight)

    @property
    def mean(self) -> float:
        return float((self.weight * (self.low + self.high) / 2).sum() / self.weight.sum())

    @property
    def longest(self) -> float:
        return float(self.high[self.weight > 0].max())

    def quantile(self, share: float) -> float:
        """Length below which ``share`` (0 to 1) of the samples lie."""
        order = np.argsort(self.high)
        below = np.cumsum(self.weight[order]) / self.weight.sum()
        at = min(int(np.searchsorted(below, share)), len(order) - 1)
        before = below[at - 1] if at else 0.0
        inside = (share - before) / max(below[at] - before, 1e-12)
        low, high = self.low[order[at]], self.high[order[at]]
        return float(low + np.clip(inside, 0, 1) * (high - low))


def figure7(longest: str = "20k") -> Lengths:
    """The paper's three sets; "10k" and "5k" are the "20k" lengths times 1/2 and 1/4."""
    factors = {"20k": 1.0, "10k": 0.5, "5k": 0.25}
    if longest not in factors:
        raise ValueError(f"unknown length set '{longest}'; allowed: {', '.join(factors)}")
    edges = 830 + 635.5 * np.arange(len(FIG7) + 1)
    return Lengths(edges[:-1], edges[1:], np.array(FIG7)).scaled(factors[longest])


def read_lengths(path: str | Path) -> Lengths:
    """A CSV histogram (columns start, end, weight, whatever their names) or a trace (one length a line, or one column).

    Raises:
        ValueError: other columns, or what is no number, with its line.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"no such file of lengths: {path}")
    with open(path, newline="") as file:
        lines = [row for row in csv.reader(file) if row]
    try:
        [float(cell) for cell in lines[0]]
    except (ValueError, IndexError):
        lines = lines[1:]
    if not lines or len({len(row) for row in lines}) != 1 or len(lines[0]) not in (1, 3):
        raise ValueError(
            f"{path} needs 3 columns (start, end, weight) or 1 (length), and lines below its header; "
            f"got {sorted({len(row) for row in lines})} columns"
        )
    numbers = []
    for at, row in enumerate(lines, start=1):
        try:
            numbers.append([float(cell) for cell in row])
        except ValueError as error:
            raise ValueError(f"{path}, data line {at}: {error}") from error
    table = np.array(numbers)
    if table.shape[1] == 1:
        return Lengths(table[:, 0], table[:, 0], np.ones(len(table)))
    return Lengths(table[:, 0], table[:, 1], table[:, 2])
