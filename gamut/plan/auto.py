"""law="auto": kappa laws that lean on what other tables taught, fitted hardest where the table reaches furthest.

Three things beat the laws as published, measured by leaving every table out in turn (benchmarks/scaling.py):
a Gaussian prior on the five numbers that few runs cannot pin down (exponents, kappa, floor); weights (C / C_max)^p,
for it is the frontier that is extrapolated; and absolute rather than squared residuals. Several such fits are
averaged in ln L. plan/residuals.py then adds what runs of one size share.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gamut.plan.fitting import Prepared, resampled
from gamut.plan.laws import LAWS
from gamut.plan.solve import Prior, minimise
from gamut.plan.surface import Part
from gamut.plan.tables import ScalingTable

UNSEEN = (float(np.log(0.2)), 0.5)  # ln(share of the loss) of the N or D term where every run has one N, or one D
STARTS = (0.3, 1.0)  # between kappa's fit and the prior's mean


@dataclass(frozen=True)
class Rule:
    """One kappa fit: priors as (mean, standard deviation).

    Args:
        frontier: p of the weights (C / C_max)^p. threshold: where squares become absolute values, in noise deviations.
        floor: ln(E / lowest loss of the table); kappa: ln kappa; alpha and beta as in plan/laws.py.
    """

    frontier: float
    threshold: float
    floor: tuple[float, float]
    alpha: tuple[float, float]
    beta: tuple[float, float]
    kappa: tuple[float, float]

    def prior(self, log_lowest: float) -> Prior:
        mean = [log_lowest + self.floor[0], 0, 0, self.alpha[0], self.beta[0], self.kappa[0]]
        sd = [self.floor[1], np.inf, np.inf, self.alpha[1], self.beta[1], self.kappa[1]]
        return Prior(np.array(mean), np.array(sd))


def frontier_weights(table: ScalingTable, power: float) -> np.ndarray:
    """(C / C_max)^power, mean 1."""
    logs = power * np.log(table.compute)
    weights = np.exp(logs - logs.max())
    return weights / weights.mean()


def fit_rules(
    table: ScalingTable, rules: Sequence[Rule], ready: Prepared, draws: int = 0, seed: int = 0
) -> tuple[Part, ...]:
    """One part per rule, of equal weight. Draws resample the runs and move the prior's mean by its own deviation."""
    lowest = float(ready.log_loss.min())
    priors = [rule.prior(lowest) for rule in rules]
    mean, sd = np.stack([p.mean for p in priors]), np.stack([p.sd for p in priors])
    for at, column in ((1, table.N), (2, table.D)):
        if np.ptp(np.log(column)) < 1e-3:
            mean[:, at], sd[:, at] = lowest + UNSEEN[0], UNSEEN[1]
    held = np.isfinite(sd)
    weights = np.stack([frontier_weights(table, rule.frontier) * ready.weights for rule in rules])
    bends = np.array([rule.threshold for rule in rules])
    between = [np.where(held, share * mean + (1 - share) * ready.kappa, ready.kappa) for share in STARTS]
    theta, cost = minimise(
        LAWS["kappa"], ready.runs, ready.log_loss, np.concatenate(between), scale=ready.noise, steps=50,
        threshold=np.tile(bends, 2), weights=np.tile(weights, (2, 1)),
        prior=Prior(np.tile(mean, (2, 1)), np.tile(sd, (2, 1))),
    )  # fmt: skip
    best = theta.reshape(2, len(rules), -1)[np.argmin(cost.reshape(2, -1), axis=0), np.arange(len(rules))]
    if not draws:
        return tuple(Part("kappa", row, np.zeros((0, len(row)))) for row in best)
    again = resampled(table, draws, seed)
    moves = np.random.default_rng(seed + 1).standard_normal((draws, best.shape[1]))
    parts = []
    for i, row in enumerate(best):
        moved = mean[i] + np.where(held[i], moves * np.where(held[i], sd[i], 0), 0)
        drawn, _ = minimise(
            LAWS["kappa"], ready.runs, ready.log_loss, np.tile(row, (draws, 1)), scale=ready.noise, steps=30,
            threshold=bends[i], weights=again * weights[i], prior=Prior(moved, np.tile(sd[i], (draws, 1))),
        )  # fmt: skip
        parts.append(Part("kappa", row, drawn))
    return tuple(parts)


@dataclass(frozen=True)
class Gate:
    """When laws without priors replace the average, or take a share.

    Args:
        sizes, rows, ratio: Farseer, on tables this dense where it errs less than ``ratio`` times as much; most: rows
            that it is tried on.
        plain, soft: kappa has half the weight where it errs ``plain`` times as much inside the table, in the mean of
            logs over ``inner`` shares of compute and the largest sizes kept back; ``soft`` in ln of that ratio. few:
            rows that it is tried on.
    """

    sizes: int = 12
    rows: int = 60
    ratio: float = 0.5
    most: int = 400
    plain: float = 0.45
    soft: float = 0.1
    inner: tuple[float, ...] = (0.15, 0.3, 0.45)
    few: int = 150


GATE = Gate()
SPREAD = (
    2.3  # on the bootstrap's deviation: with it 80% intervals held 80% of the rows of the 22 hold-outs, without it 52%
)
DEFAULT = (  # the six of the pool in benchmarks/scaling.py with the least error over all eleven tables
    Rule(0.4, 0.1, (-0.334, 0.301), (0.206, 0.085), (0.204, 0.092), (-0.631, 0.61)),
    Rule(0.7, 0.3, (-0.277, 0.148), (0.215, 0.061), (0.242, 0.023), (-0.393, 0.494)),
    Rule(0.7, 1.0, (-0.442, 0.235), (0.251, 0.023), (0.204, 0.064), (-1.035, 0.667)),
    Rule(0.2, 0.3, (-0.23, 0.533), (0.272, 0.063), (0.271, 0.066), (-0.83, 0.214)),
    Rule(0.7, 1.0, (-0.267, 0.159), (0.23, 0.03), (0.295, 0.056), (-1.03, 0.456)),
    Rule(0.0, 0.1, (-0.448, 0.261), (0.334, 0.093), (0.224, 0.07), (-0.739, 0.33)),
)
