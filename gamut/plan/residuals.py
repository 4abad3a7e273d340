"""What a law leaves: residuals that runs of one size share, and those of runs near by.

Runs of one size are one architecture, often one run read at several token counts: its shape, its learning rate and its
luck stay with it. A law of N and D cannot know them, but a longer run of the same size repeats them. Both corrections
are as strong as they would have been right inside the table: size by size on rows of more tokens than those averaged,
and near by on sizes that were left out. Far from every run both are nothing, and the law is all there is.

Source: ours; benchmarks/results/scaling_notes.md has the measurements.
"""

from dataclasses import dataclass

import numpy as np

SAME = 1e-3  # sizes this close in ln N are one
REACH = 0.7  # in ln N and ln D, of the correction near by
BEYOND = 0.2  # in ln N, of the same past the table's least and largest size: it interpolates, the law extrapolates
DOUBT = 0.3  # in rows: what stands against the rows near by
OUTLIER = 5.0  # noise deviations beyond which a residual counts no more
ROWS = 2048  # predicted at once


@dataclass(frozen=True)
class Residuals:
    """ln(measured / law) of the table's rows, and how much of it is believed (0 to 1) near by and for one size.

    Args:
        near: of each row, what the correction near by averages. own: of each row, what is left of it after that.
    """

    log_N: np.ndarray
    log_D: np.ndarray
    near: np.ndarray
    own: np.ndarray
    near_share: float
    own_share: float

    @classmethod
    def learned(cls, N: np.ndarray, D: np.ndarray, left: np.ndarray, noise: float) -> "Residuals":
        """From residuals ``left`` of the log loss; ``noise``: their usual deviation."""
        x, y = np.log(N), np.log(D)
        limit = OUTLIER * max(noise, 1e-3)
        cut = np.clip(left, -limit, limit)
        same = np.abs(x[:, None] - x) < SAME
        near_share = _share(_smoothed(_closeness(x, y, x, y) * ~same, cut), cut, noise)
        own = left - near_share * _smoothed(_closeness(x, y, x, y), cut)
        earlier = same & (y[None] < y[:, None])
        kept = np.clip(own, -limit, limit)
        own_share = _share(_mean(earlier, kept), kept, noise, 1 / same.sum(1))
        return cls(x, y, cut, own, near_share, own_share)

    def doubts(self) -> tuple[str, ...]:
        """A note where sizes differ in more than N and D."""
        sizes = np.unique(np.round(self.log_N, 3), return_inverse=True)[1]
        spread = float(np.std(np.bincount(sizes, self.own) / np.bincount(sizes)))
        if self.own_share < 0.5 or spread < 3e-3 or sizes.max() < 2:
            return ()
        return (
            f"runs of one size miss the law together, by {100 * spread:.1f}% (standard deviation between sizes): "
            "shape, learning rate or recipe differ, and a size that is not in the table may miss it as much",
        )

    def at(self, N: np.ndarray, D: np.ndarray) -> np.ndarray:
        """What to add to the law's ln loss at (Q,) places."""
        x, y = np.log(N), np.log(D)
        return np.concatenate(
            [np.zeros(0), *(self._some(x[i : i + ROWS], y[i : i + ROWS]) for i in range(0, len(x), ROWS))]
        )

    def _some(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        past = np.maximum(x - self.log_N.max(), self.log_N.min() - x)
        inside = np.exp(-((np.maximum(past, 0) / BEYOND) ** 2) / 2)
        near = inside * _smoothed(_closeness(x, y, self.log_N, self.log_D), self.near)
        own = _mean(np.abs(x[:, None] - self.log_N) < SAME, self.own)
        return self.near_share * near + self.own_share * own


def _closeness(x: np.ndarray, y: np.ndarray, at_x: np.ndarray, at_y: np.ndarray) -> np.ndarray:
    return np.exp(-(((x[:, None] - at_x) / REACH) ** 2 + ((y[:, None] - at_y) / REACH) ** 2) / 2)


def _smoothed(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    return weights @ values / (weights.sum(1) + DOUBT)


def _mean(chosen: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mean of the chosen values of each row; 0 where there is none."""
    return chosen @ values / np.maximum(chosen.sum(1), 1)


def _share(guess: np.ndarray, truth: np.ndarray, noise: float, weights: np.ndarray | float = 1.0) -> float:
    """The share of a guess that fits the truth best, in 0 to 1; one guess as large as the noise counts against it."""
    return float(np.clip((weights * guess * truth).sum() / ((weights * guess**2).sum() + noise**2), 0, 1))
