"""Scaling laws as functions of centred logarithms, with every derivative that fitting and planning need.

S parameter sets at once · M runs · P parameters · x = ln(N / N0) · y = ln(D / D0)

A law returns log losses (S, M), their derivatives by the parameters (S, M, P), and by x and y (S, M). Working in ln(N
/ N0), ln(D / D0) with N0, D0 the table's geometric means is what makes joint fits of nine parameters well conditioned.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Terms = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Runs:
    """Where the runs lie: ``centre`` = (ln N0, ln D0); epochs = tokens seen / different tokens, 1 unless read again."""

    x: np.ndarray
    y: np.ndarray
    centre: tuple[float, float]
    epochs: np.ndarray | float = 1.0

    @classmethod
    def at(cls, N: np.ndarray, D: np.ndarray, centre: tuple[float, float], epochs: np.ndarray | float = 1.0) -> "Runs":
        return cls(np.log(N) - centre[0], np.log(D) - centre[1], centre, epochs)


@dataclass(frozen=True)
class Law:
    """A law's function, and the box in which its parameters make sense.

    ``published`` turns parameters (P,) and the centre into the constants that papers print.
    """

    name: str
    formula: str
    parameters: tuple[str, ...]
    terms: Callable[[np.ndarray, Runs], Terms]
    low: tuple[float, ...]
    high: tuple[float, ...]
    published: Callable[[np.ndarray, tuple[float, float]], dict[str, float]]
    source: str


def _split(theta: np.ndarray) -> list[np.ndarray]:
    return [theta[:, i, None] for i in range(theta.shape[1])]


def _add(p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ln(e^p + e^q) and the share of e^q in it."""
    total = np.logaddexp(p, q)
    return total, np.exp(q - total)


def chinchilla_terms(theta: np.ndarray, runs: Runs) -> Terms:
    """L = E + A N^-alpha + B D^-beta; theta = ln E, ln of the two terms at (N0, D0), alpha, beta."""
    e, a, b, alpha, beta = _split(theta)
    u, of_d = _add(a - alpha * runs.x, b - beta * runs.y)
    total, part = _add(e, u)
    n_part, d_part = part * (1 - of_d), part * of_d
    jac = np.stack([1 - part, n_part, d_part, -runs.x * n_part, -runs.y * d_part], -1)
    return total, jac, -alpha * n_part, -beta * d_part


def kappa_terms(theta: np.ndarray, runs: Runs) -> Terms:
    """L = E + (P^(1/k) + Q^(1/k))^k with P = A N^-alpha, Q = B D^-beta; theta = Chinchilla's five, then ln k.

    The kappa law L = E + (A' N^-a + B' D^-b)^k with alpha = k a, beta = k b, so that A, B, alpha and beta mean the
    same at every k. k = 1 is Chinchilla, k -> 0 the larger of two bottlenecks, E = 0 and beta = k is Kaplan's form.
    """
    e, a, b, alpha, beta, log_k = _split(theta)
    k = np.exp(log_k)
    n, d = (a - alpha * runs.x) / k, (b - beta * runs.y) / k
    u, of_d = _add(n, d)
    total, part = _add(e, k * u)
    n_part, d_part = part * (1 - of_d), part * of_d
    by_k = part * k * (u - (1 - of_d) * n - of_d * d)
    jac = np.stack([1 - part, n_part, d_part, -runs.x * n_part, -runs.y * d_part, by_k], -1)
    return total, jac, -alpha * n_part, -beta * d_part


def box_cox(p: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(e^(p x) - 1) / p and its derivatives by p and by x; series where p x is small."""
    z = p * x
    small = np.abs(z) < 1e-4
    safe = np.where(small, 1.0, z)
    grown = np.expm1(safe)
    value = x * np.where(small, 1 + z / 2 + z * z / 6, grown / safe)
    by_p = x * x * np.where(small, 0.5 + z / 3 + z * z / 8, (safe * (grown + 1) - grown) / safe**2)
    return value, by_p, np.exp(z)


def farseer_terms(theta: np.ndarray, runs: Runs) -> Terms:
    """L = G(N) + B(N) D^-A(N); ln of A, B and G are level + slope * box_cox(power, x): exactly the paper's Eq. 3.

    theta = level, slope and power for ln A; level and slope at D0 of the whole data term, and the power of ln B;
    level, slope and power for ln G. Slopes are by ln N at N0. The data term at D0 is what a table pins down; B alone,
    at D = 1, is not.
    """
    a0, sa, pa, t0, st, pb, g0, sg, pg = _split(theta)
    (ka, dka, exa), (kb, dkb, exb), (kg, dkg, exg) = (box_cox(p, runs.x) for p in (pa, pb, pg))
    far = runs.centre[1]
    here, power = np.exp(a0), np.exp(a0 + sa * ka)
    sb = st + here * sa * far
    log_d = runs.y + far
    total, part = _add(g0 + sg * kg, t0 + here * far + sb * kb - power * log_d)
    floor = 1 - part
    jac = np.stack([
        part * (here * far * (1 + sa * kb) - power * log_d), part * (here * far * kb - power * ka * log_d),
        -part * power * sa * dka * log_d, part + 0 * kb, part * kb, part * sb * dkb,
        floor, floor * kg, floor * sg * dkg,
    ], -1)  # fmt: skip
    return total, jac, part * (sb * exb - power * sa * exa * log_d) + floor * sg * exg, -part * power


def repeated_terms(theta: np.ndarray, runs: Runs) -> Terms:
    """Chinchilla on effective N' and D': what is read again, and parameters beyond what fresh data can use, count less.

    D' = U (1 + R_D (1 - exp(-(epochs - 1) / R_D))), U different tokens; N' likewise with R_N beyond N_opt(U), the
    size that is compute-optimal for U tokens. theta = Chinchilla's five, then ln R_D and ln R_N. Derivatives by
    central differences.
    """

    def value(theta: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        e, a, b, alpha, beta, rd, rn = _split(theta)
        fresh = y - np.log(runs.epochs)
        with np.errstate(over="ignore"):
            y_used = fresh + np.log1p(_worn(runs.epochs - 1, np.exp(rd)))
            best = (a - b + np.log(alpha / beta) + beta * fresh) / alpha
            x_used = np.minimum(x, best) + np.log1p(_worn(np.expm1(np.maximum(x - best, 0)), np.exp(rn)))
        return np.logaddexp(e, np.logaddexp(a - alpha * x_used, b - beta * y_used))

    x, y, h = runs.x, runs.y, 1e-5
    jac = np.stack([(value(theta + h * unit, x, y) - value(theta - h * unit, x, y)) / (2 * h)
                    for unit in np.eye(theta.shape[1])], -1)  # fmt: skip
    by_x = (value(theta, x + h, y) - value(theta, x - h, y)) / (2 * h)
    with_epochs = (value(theta, x, y + h) - value(theta, x, y - h)) / (2 * h)
    return value(theta, x, y), jac, by_x, with_epochs


def _worn(again: np.ndarray | float, half: np.ndarray) -> np.ndarray:
    return half * -np.expm1(-again / half)


def _chinchilla_constants(theta: np.ndarray, centre: tuple[float, float]) -> dict[str, float]:
    e, a, b, alpha, beta = map(float, theta[:5])
    return {"E": math.exp(e), "A": math.exp(a + alpha * centre[0]), "B": math.exp(b + beta * centre[1]),
            "alpha": alpha, "beta": beta}  # fmt: skip


def _kappa_constants(theta: np.ndarray, centre: tuple[float, float]) -> dict[str, float]:
    five = _chinchilla_constants(theta, centre)
    k = math.exp(theta[5])
    inner = {"A": five["A"] ** (1 / k), "B": five["B"] ** (1 / k), "alpha": five["alpha"] / k, "beta": five["beta"] / k}
    return {"E": five["E"], **inner, "kappa": k}


def _repeated_constants(theta: np.ndarray, centre: tuple[float, float]) -> dict[str, float]:
    return {**_chinchilla_constants(theta, centre), "R_D": math.exp(theta[5]), "R_N": math.exp(theta[6])}


def farseer_constants(theta: np.ndarray, centre: tuple[float, float]) -> dict[str, float]:
    """The paper's nine, raw N and D: a = slope / power * N0^-power, b = level - slope / power."""
    a0, sa, pa, t0, st, pb, g0, sg, pg = map(float, theta)
    here = math.exp(a0)
    found = {}
    for i, (level, slope, power) in enumerate(
        ((a0, sa, pa), (t0 + here * centre[1], st + here * sa * centre[1], pb), (g0, sg, pg)), 1
    ):
        power = power or 1e-12
        found |= {f"a{i}": slope / power * math.exp(-power * centre[0]), f"b{i}": level - slope / power,
                  ("alpha", "beta", "gamma")[i - 1]: power}  # fmt: skip
    return found


def farseer_theta(constants: Mapping[str, float | int], centre: tuple[float, float]) -> np.ndarray:
    """Back from the paper's nine to parameters at a centre."""
    rows = []
    for i, name in enumerate(("alpha", "beta", "gamma"), 1):
        power, grown = constants[name], constants[f"a{i}"] * math.exp(constants[name] * centre[0])
        rows.append([constants[f"b{i}"] + grown, power * grown, power])
    here = math.exp(rows[0][0])
    rows[1][0] -= here * centre[1]
    rows[1][1] -= here * rows[0][1] * centre[1]
    return np.array(rows).ravel()


_FIVE = ("ln E", "ln A", "ln B", "alpha", "beta")
_FIVE_LOW, _FIVE_HIGH = (-9.0, -14.0, -14.0, 0.01, 0.01), (4.0, 5.0, 5.0, 2.5, 2.5)
LAWS = {
    law.name: law
    for law in (
        Law("chinchilla", "E + A N^-alpha + B D^-beta", _FIVE, chinchilla_terms, _FIVE_LOW, _FIVE_HIGH,
            _chinchilla_constants, "arXiv 2203.15556 Eq. 10; fit as in arXiv 2404.10102"),
        Law("kappa", "E + (A N^-alpha + B D^-beta)^kappa", (*_FIVE, "ln kappa"), kappa_terms, (*_FIVE_LOW, -2.5),
            (*_FIVE_HIGH, 0.7), _kappa_constants, "yigitokar/scaling-laws-as-production-functions; parameters ours"),
        Law("farseer", "exp(a3 N^gamma + b3) + exp(a2 N^beta + b2) D^-exp(a1 N^alpha + b1)",
            ("A", "A slope", "A power", "T", "T slope", "B power", "G", "G slope", "G power"), farseer_terms,
            (-4.0, -1.0, 0.005, -9.0, -1.5, -1.0, -6.0, -1.0, 0.005), (1.0, 0.0, 1.0, 4.0, 1.0, -0.005, 4.0, 0.0, 1.0),
            farseer_constants, "arXiv 2506.10972 Eq. 3, with the sign constraints of section 2"),
        Law("repeated", "Chinchilla on N', D' with R_N, R_D", (*_FIVE, "ln R_D", "ln R_N"), repeated_terms,
            (*_FIVE_LOW, -1.0, -1.0), (*_FIVE_HIGH, 7.0, 7.0), _repeated_constants, "arXiv 2305.16264"),
    )
}  # fmt: skip
