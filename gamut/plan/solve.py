"""Robust least squares on log losses: many starts and many resamples at once, Gaussian priors, bounds.

Minimises  sum_i w_i huber_k((ln L_i - law) / scale)  +  1/2 sum_p ((theta_p - mean_p) / sd_p)^2  by damped
Gauss-Newton with Huber weights renewed at every step. Arrays carry S problems; each keeps its own damping and stops
by itself.
"""

from dataclasses import dataclass

import numpy as np

from gamut.plan.laws import Law, Runs

STEPS = 300


@dataclass(frozen=True)
class Prior:
    """Independent Gaussians, (P,) or (S, P); sd = inf leaves a parameter free."""

    mean: np.ndarray
    sd: np.ndarray


def minimise(
    law: Law,
    runs: Runs,
    target: np.ndarray,
    start: np.ndarray,
    *,
    scale: float = 1e-3,
    threshold: float | np.ndarray = 1.0,
    weights: np.ndarray | float = 1.0,
    prior: Prior | None = None,
    steps: int = STEPS,
    low: np.ndarray | None = None,
    high: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Best parameters (S, P) and costs (S,) from the starts (S, P).

    Args:
        target: log losses (M,), or (S, M).
        scale: residual of one standard deviation. threshold: where squares turn into absolute values, in scales; one,
            or (S,).
        weights: (M,) or (S, M).
    """
    low, high = np.asarray(law.low if low is None else low), np.asarray(law.high if high is None else high)
    theta = np.clip(start, low, high)
    precision = np.zeros((1, theta.shape[1])) if prior is None else np.atleast_2d(prior.sd) ** -2.0
    mean = np.zeros((1, theta.shape[1])) if prior is None else np.atleast_2d(prior.mean)
    target, weights, bends = np.atleast_2d(target), np.atleast_2d(weights), np.reshape(threshold, (-1, 1))

    def cost(at: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        value, jac, _, _ = law.terms(at, runs)
        z = (value - _rows(target, rows)) / scale
        size, bend = np.abs(z), _rows(bends, rows)
        bent = np.where(size < bend, 0.5 * z * z, bend * (size - 0.5 * bend))
        held = (_rows(precision, rows) * (at - _rows(mean, rows)) ** 2).sum(1)
        total = (_rows(weights, rows) * bent).sum(1) + 0.5 * held
        return np.where(np.isfinite(total), total, np.inf), z, jac

    live = np.arange(len(theta))
    costs, z, jac = cost(theta, live)
    damp, quiet = np.full(len(theta), 1e-3), np.zeros(len(theta), dtype=int)
    for _ in range(steps):
        bend = _rows(weights, live) * np.minimum(1.0, _rows(bends, live) / np.maximum(np.abs(z), 1e-300))
        held = _rows(precision, live)
        slope = np.einsum("smp,sm->sp", jac, bend * z) / scale + held * (theta[live] - _rows(mean, live))
        curve = np.matmul((jac * bend[:, :, None]).transpose(0, 2, 1), jac) / scale**2
        curve += held[:, :, None] * np.eye(theta.shape[1])
        step = _step(curve, slope, damp[live], theta[live], low, high)
        trial = np.clip(theta[live] + step, low, high)
        new_costs, new_z, new_jac = cost(trial, live)
        better = new_costs < costs[live]
        gain = np.where(better, (costs[live] - new_costs) / np.maximum(new_costs, 1e-12), 0.0)
        damp[live] = np.clip(np.where(better, damp[live] / 4, damp[live] * 5), 1e-12, 1e12)
        quiet[live] = np.where(better & (gain > 1e-9), 0, quiet[live] + 1)
        theta[live[better]], costs[live[better]] = trial[better], new_costs[better]
        z[better], jac[better] = new_z[better], new_jac[better]
        going = quiet[live] < 8
        if not going.any():
            break
        live, z, jac = live[going], z[going], jac[going]
    return theta, costs


def _rows(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return values if len(values) == 1 else values[rows]


def _step(curve, slope, damp, theta, low, high) -> np.ndarray:
    """A damped Newton step; parameters that lean on a bound stay where they are."""
    stuck = ((theta <= low) & (slope > 0)) | ((theta >= high) & (slope < 0))
    slope = np.where(stuck, 0.0, slope)
    curve = np.where(stuck[:, :, None] | stuck[:, None, :], 0.0, curve)
    diagonal = np.einsum("spp->sp", curve)
    lift = damp[:, None] * np.maximum(diagonal, 1e-8) + 1e-9
    curve[:, np.arange(theta.shape[1]), np.arange(theta.shape[1])] = diagonal + lift + stuck
    return -np.linalg.solve(curve, slope[:, :, None])[:, :, 0]


def chinchilla_starts(runs: Runs, log_loss: np.ndarray, count: int = 12) -> np.ndarray:
    """Chinchilla parameters (count, 5): for pairs of exponents, the linear three by least squares; the best few."""
    loss = np.exp(log_loss)
    rates = np.geomspace(0.05, 1.2, 14)
    alpha, beta = (grid.ravel() for grid in np.meshgrid(rates, rates, indexing="ij"))
    columns = np.stack(
        [np.ones((len(alpha), len(loss))), np.exp(-alpha[:, None] * runs.x), np.exp(-beta[:, None] * runs.y)], -1
    )
    scaled = columns / loss[:, None]
    normal = scaled.transpose(0, 2, 1) @ scaled + 1e-10 * np.eye(3)
    linear = np.linalg.solve(normal, scaled.sum(1)[:, :, None])[:, :, 0]
    linear = np.maximum(linear, 1e-3 * loss.min())
    misfit = np.abs((columns * linear[:, None]).sum(-1) / loss - 1).mean(1)
    best = np.argsort(misfit, kind="stable")[:count]
    return np.concatenate([np.log(linear[best]), alpha[best, None], beta[best, None]], 1)


def starts(law: Law, five: np.ndarray, runs: Runs) -> np.ndarray:
    """Starts for a richer law from fitted Chinchilla parameters (5,)."""
    e, a, b, alpha, beta = five
    if law.name == "kappa":
        grid = [(k, f) for k in (0.2, 0.35, 0.55, 0.8, 1.2) for f in (1.0, 0.5)]
        floor = np.exp(e) + np.exp(a) + np.exp(b)
        terms = np.log(np.exp([a, b]) + 1e-3 * floor)
        return np.array([[e + np.log(f), *(terms + np.log(2 - f)), alpha, beta, np.log(k)] for k, f in grid])
    if law.name == "repeated":
        return np.array([[*five, np.log(rd), np.log(rn)] for rd in (3, 15) for rn in (3, 15, 1000)])
    if law.name == "farseer":
        level = np.logaddexp(e, a)
        slope = -alpha * np.exp(a - level)
        return np.array([[np.log(beta), sa, 0.12, b, st, -0.1, level, slope, pg]
                         for sa in (-0.01, -0.12) for st in (-0.05, -0.3) for pg in (0.05, 0.2)])  # fmt: skip
    return five[None]
