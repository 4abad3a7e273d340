"""A fitted surface L(N, D): predictions with intervals, slopes, compute-optimal points, curves of equal loss, JSON."""

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gamut.plan.laws import LAWS, Runs
from gamut.plan.residuals import Residuals
from gamut.plan.rules import Number
from gamut.plan.shapes import Shape
from gamut.plan.tables import LEAST_COUNT, ScalingTable

DN_RANGE = (
    2.0,
    1e4,
)  # tokens per parameter; outside it laws are guesses, and Farseer's has a second valley (fact sheet 1)
Values = np.ndarray | np.floating  # scalars in, a scalar out
FAR = 10.0  # Farseer beyond the table's D/N by more than this factor is warned of
APART = 0.10  # so is any prediction further than this from kappa's


def _floats(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a number or an array of numbers, got {value!r}: {error}") from None


@dataclass(frozen=True)
class Part:
    """One fitted law: parameters (P,), and those of every bootstrap draw (B, P)."""

    law: str
    theta: np.ndarray
    draws: np.ndarray
    weight: float = 1.0


@dataclass(frozen=True)
class Seen:
    """What the table spanned."""

    name: str
    rows: int
    sizes: int
    convention: str
    unit: str
    N: tuple[float, float]
    D: tuple[float, float]
    ratio: tuple[float, float]

    @classmethod
    def of(cls, table: ScalingTable) -> "Seen":
        spans = [(float(c.min()), float(c.max())) for c in (table.N, table.D, table.D / table.N)]
        return cls(table.name, len(table), len(table.sizes), table.convention, table.unit, *spans)


@dataclass(frozen=True)
class Optimum:
    """The best split of a compute budget: C = 6 N D."""

    C: float
    N: float
    D: float
    loss: float


@dataclass(frozen=True)
class Surface:
    """ln L is the weighted mean of the parts' (one part, unless the law was "auto").

    Args:
        noise: standard deviation of a run's log loss around the law. spread: factor on the bootstrap's width, by which
            hold-outs can widen it (benchmarks/scaling.py measures the coverage).
        holdouts: one row per hold-out: what was kept back, rows, and each law's error in percent.
        notes: warnings of the fit. reference: kappa on the same table, to warn by.
        residuals: what runs of a size, and those near by, have shown beside the law; `predict` and `interval` add it,
            everything that moves over N and D (`optimal`, `gradient`, `iso_loss`) follows the law alone.
        shape: the effect of width / depth, of a table that declared them; 0 at its usual aspect.
    """

    law: str
    parts: tuple[Part, ...]
    centre: tuple[float, float]
    seen: Seen
    noise: float
    spread: float = 1.0
    holdouts: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    reference: np.ndarray | None = field(default=None, compare=False)
    residuals: Residuals | None = field(default=None, compare=False)
    shape: Shape = field(default_factory=Shape)

    def _logs(self, N: Any, D: Any, epochs: Any, draws: bool) -> Values:
        runs, shape = self._runs(N, D, epochs)
        total = sum(part.weight for part in self.parts)
        thetas = [part.draws if draws else part.theta[None] for part in self.parts]
        terms = (p.weight / total * LAWS[p.law].terms(t, runs)[0] for p, t in zip(self.parts, thetas, strict=True))
        logs = np.asarray(sum(terms))
        return logs.reshape(-1, *shape) if draws else logs.reshape(shape)

    def _expected(self, N: Any, D: Any, epochs: Any = 1.0, aspect: Any = None) -> Values:
        """ln loss of a run: the law's, its shape's, and what the table's own runs have shown beside both."""
        logs = self._logs(N, D, epochs, False)
        if aspect is not None:
            logs = logs + self.shape.at(_floats("aspect", aspect))
        if self.residuals is None:
            return logs
        runs, shape = self._runs(N, D)
        beside = self.residuals.at(np.exp(runs.x + self.centre[0]), np.exp(runs.y + self.centre[1]))
        return logs + beside.reshape(shape)

    def _runs(self, N: Any, D: Any, epochs: Any = 1.0) -> tuple[Runs, tuple[int, ...]]:
        given = {name: _floats(name, value) for name, value in (("N", N), ("D", D), ("epochs", epochs))}
        try:
            N, D, epochs = np.broadcast_arrays(*given.values())
        except ValueError:
            shapes = ", ".join(f"{name} {value.shape}" for name, value in given.items())
            raise ValueError(f"N and D must have one shape, or one of them be a single number; got {shapes}") from None
        for name, values, least in (("N", N, 0), ("D", D, 0), ("epochs", epochs, 1 - 1e-9)):
            if not (np.isfinite(values) & (values > 0) & (values >= least)).all():
                raise ValueError(
                    f"{name} must be finite and {'at least 1' if least else 'above 0'}, got {np.ravel(values)[:5]}"
                )
            seen = getattr(self.seen, name, (0.0, 0.0))
            if values.size and values.min() < LEAST_COUNT < 100 * LEAST_COUNT <= seen[0]:
                raise ValueError(
                    f"{name} = {values.min():g}, but the table's {name} begin at {seen[0]:.3g}: plain counts are "
                    "allowed; for 7 billion write 7e9"
                )
        return Runs.at(N.ravel(), D.ravel(), self.centre, epochs.ravel()), N.shape

    def predict(self, N: Any, D: Any, epochs: Any = 1.0, *, aspect: Any = None) -> Values:
        """Losses in the table's unit for parameters N (counted like the table's) and tokens D; arrays broadcast.

        ``aspect`` is width / depth, for tables that declared theirs; else the usual one of the table.
        Warns where the answer is more than 10% from kappa's, and where Farseer leaves the table's D/N tenfold behind.
        Raises:
            ValueError: for N or D that are not above 0, or plainly in another unit than the table's.
        """
        logs = self._expected(N, D, epochs, aspect)
        if self.reference is not None:
            runs, shape = self._runs(N, D, epochs)
            apart = np.abs(np.expm1(logs - LAWS["kappa"].terms(self.reference[None], runs)[0].reshape(shape)))
            if (apart > APART).any():
                warnings.warn(
                    f"{self.law} is up to {100 * apart.max():.0f}% from kappa here; trust neither far out", stacklevel=2
                )
        ratio = np.asarray(D, dtype=np.float64) / np.asarray(N, dtype=np.float64)
        low, high = self.seen.ratio
        if any(part.law == "farseer" for part in self.parts) and ((ratio > FAR * high) | (ratio < low / FAR)).any():
            warnings.warn(
                f"Farseer at D/N outside {low / FAR:.3g} to {FAR * high:.3g}, ten times beyond the table", stacklevel=2
            )
        return np.exp(logs)

    def interval(self, N: Any, D: Any, level: Number = 0.8, *, aspect: Any = None) -> tuple[Values, Values]:
        """Low and high end between which a new run's loss lies with probability ``level``: bootstrap over runs, and
        noise.

        Raises:
            ValueError: if level is not in (0, 1), or the fit drew no bootstrap.
        """
        from scipy.special import ndtri

        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level}; 0.8 is usual")
        if not len(self.parts[0].draws):
            raise ValueError("this surface has no bootstrap draws; fit with draws=100")
        middle = self._expected(N, D, aspect=aspect)
        half = ndtri(0.5 + level / 2) * np.hypot(self.spread * self.deviation(N, D), self.noise)
        return np.exp(middle - half), np.exp(middle + half)

    def deviation(self, N: Any, D: Any) -> Values:
        """Standard deviation of ln L over the bootstrap, from its quartiles: a few wild draws do not count."""
        logs = self._logs(N, D, 1.0, True)
        high, low = np.quantile(logs, [0.84, 0.16], axis=0)
        return (high - low) / 2

    def gradient(self, N: Any, D: Any) -> tuple[Values, Values]:
        """dL/dN and dL/dD."""
        runs, shape = self._runs(N, D)
        loss, total = np.exp(self._logs(N, D, 1.0, False)), sum(part.weight for part in self.parts)
        slopes = [0.0, 0.0]
        for part in self.parts:
            found = LAWS[part.law].terms(part.theta[None], runs)[2:]
            slopes = [s + part.weight / total * f.reshape(shape) for s, f in zip(slopes, found, strict=True)]
        return loss * slopes[0] / np.asarray(N, np.float64), loss * slopes[1] / np.asarray(D, np.float64)

    def optimal(self, C: Number, dn_range: tuple[Number, Number] = DN_RANGE) -> Optimum:
        """The N and D with 6 N D = C and the least loss, for D/N inside ``dn_range``.

        Raises:
            ValueError: when the loss has no minimum inside the range: it falls towards one end, which is named.
        """
        low, high = map(float, dn_range)
        if not (0 < low < high and C > 0 and math.isfinite(C)):
            raise ValueError(f"need C > 0 and 0 < low < high for D/N, got C={C:g}, D/N {low:g} to {high:g}")
        grid = np.linspace(math.log(low), math.log(high), 600)
        logs = self._on_budget(C, grid)
        inner = np.flatnonzero((logs[1:-1] <= logs[:-2]) & (logs[1:-1] < logs[2:])) + 1
        if not len(inner):
            end = f"{low:g} (more parameters)" if logs[0] < logs[-1] else f"{high:g} (more tokens)"
            raise ValueError(
                f"no compute-optimal point at C = {C:.3g} FLOPs for D/N in {low:g} to {high:g}: the {self.law} surface "
                f"keeps falling towards D/N = {end}; the table does not say more, or allow a wider dn_range"
            )
        at = inner[np.argmin(logs[inner])]
        left, right = grid[at - 1], grid[at + 1]
        for _ in range(80):
            a, b = left + 0.382 * (right - left), right - 0.382 * (right - left)
            left, right = (left, b) if np.diff(self._on_budget(C, np.array([a, b])))[0] > 0 else (a, right)
        ratio = math.exp((left + right) / 2)
        N = math.sqrt(C / 6 / ratio)
        return Optimum(float(C), N, N * ratio, float(np.exp(self._logs(N, N * ratio, 1.0, False))))

    def _on_budget(self, C: Number, log_ratio: np.ndarray) -> np.ndarray:
        N = np.sqrt(C / 6 / np.exp(log_ratio))
        return np.asarray(self._logs(N, N * np.exp(log_ratio), 1.0, False))

    def iso_loss(self, loss: Number, N: Any) -> np.ndarray:
        """Tokens that each size N needs to reach ``loss``; nan where it cannot within D/N = 1e-2 to 1e6."""
        N = np.atleast_1d(np.asarray(N, dtype=np.float64))
        left, right = np.full(len(N), math.log(1e-2)), np.full(len(N), math.log(1e6))
        want = math.log(loss)
        reach = (self._logs(N, N * np.exp(right), 1.0, False) <= want) & (
            self._logs(N, N * np.exp(left), 1.0, False) >= want
        )
        for _ in range(70):
            middle = (left + right) / 2
            above = self._logs(N, N * np.exp(middle), 1.0, False) > want
            left, right = np.where(above, middle, left), np.where(above, right, middle)
        return np.where(reach, N * np.exp((left + right) / 2), np.nan)

    def falls(self, N: Any, D: Any) -> bool:
        """Whether the loss falls with N and with D at all these points; Farseer's form does not promise it."""
        by_n, by_d = self.gradient(N, D)
        return bool((by_n < 0).all() and (by_d < 0).all())

    def constants(self) -> dict[str, float]:
        """The constants as the paper prints them; of "auto", those of its first part."""
        return LAWS[self.parts[0].law].published(self.parts[0].theta, self.centre)

    def to_json(self) -> str:
        """Every digit of every number."""
        parts = [{**asdict(p), "theta": p.theta.tolist(), "draws": p.draws.tolist()} for p in self.parts]
        reference = None if self.reference is None else self.reference.tolist()
        learned = self.residuals and {name: np.asarray(v).tolist() for name, v in vars(self.residuals).items()}
        found = {**asdict(self), "parts": parts, "reference": reference, "residuals": learned}
        return json.dumps({**found, "format": "gamut scaling surface 1"})

    @classmethod
    def from_json(cls, text: str) -> "Surface":
        """Back from `to_json`.

        Raises:
            ValueError: for JSON that is no surface of ours.
        """
        found = json.loads(text)
        if not isinstance(found, dict) or found.pop("format", None) != "gamut scaling surface 1":
            raise ValueError(
                "this JSON is no scaling surface; it is written by Surface.to_json or gamut plan scaling --json"
            )
        parts = tuple(
            Part(p["law"], np.array(p["theta"]), np.array(p["draws"]).reshape(-1, len(p["theta"])), p["weight"])
            for p in found.pop("parts")
        )
        seen: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in found.pop("seen").items()}
        reference = found.pop("reference")
        if learned := found.pop("residuals", None):
            kept: dict[str, Any] = {k: np.array(v) if isinstance(v, list) else v for k, v in learned.items()}
            learned = Residuals(**kept)
        shape = Shape(**found.pop("shape", {}))
        rest: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in found.items()}
        return cls(
            parts=parts, seen=Seen(**seen), reference=None if reference is None else np.array(reference),
            residuals=learned, shape=shape, **rest,
        )  # fmt: skip

    def save(self, path: str | Path) -> Path:
        from gamut.io.files import atomic_write

        return atomic_write(path, self.to_json())


def published(law: str, constants: Mapping[str, Number], *, name: str = "", unit: str = "nats/token") -> Surface:
    """A surface from printed constants: Chinchilla's E, A, B, alpha, beta (and kappa), or Farseer's nine.

    >>> round(float(published("chinchilla", CHINCHILLA).predict(70e9, 1.4e12)), 3)
    1.937
    """
    from gamut.plan.laws import farseer_theta

    centre = (0.0, 0.0)
    if law == "farseer":
        theta = farseer_theta(constants, centre)
    else:
        k = constants.get("kappa", 1.0)
        theta = [math.log(constants["E"]), k * math.log(constants["A"]), k * math.log(constants["B"]),
                 k * constants["alpha"], k * constants["beta"], math.log(k)]  # fmt: skip
        theta = np.array(theta[:5] if law == "chinchilla" else theta)
    seen = Seen(name or law, 0, 0, "unstated", unit, (0.0, math.inf), (0.0, math.inf), (0.0, math.inf))
    return Surface(law, (Part(law, theta, np.zeros((0, len(theta)))),), centre, seen, 0.0)


CHINCHILLA = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}  # arXiv 2404.10102
FARSEER = {  # arXiv 2506.10972 Eq. 15, de-rounded from its figures: the printed digits miss them by 3-6% (fact sheet 1)
    "a1": -0.12373, "alpha": 0.1235, "b1": 0.4245, "a2": 88.015, "beta": -0.0995, "b2": -6.2865,
    "a3": -0.0215, "gamma": 0.168876, "b3": -0.090502,
}  # fmt: skip
