"""Two recipes over the whole (N, D) plane: who wins where (Farseer section 4, "uses"), and which runs to add next."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gamut.plan.rules import Number
from gamut.plan.surface import Surface


@dataclass(frozen=True)
class Comparison:
    """``delta_ND`` = (loss of a - loss of b) / their mean: below 0, a wins. ``sd_ND``: what bootstraps leave open."""

    a: str
    b: str
    N: np.ndarray
    D: np.ndarray
    delta_ND: np.ndarray
    sd_ND: np.ndarray

    @property
    def winner(self) -> np.ndarray:
        """-1 where a wins, 1 where b does, 0 where the difference is below two standard deviations."""
        return np.where(np.abs(self.delta_ND) <= 2 * self.sd_ND, 0, np.sign(self.delta_ND)).astype(int)

    def border(self) -> np.ndarray:
        """For every N, the first D at which the two are equal; nan where one wins throughout."""
        log_d, found = np.log(self.D), np.full(len(self.N), np.nan)
        for i, row in enumerate(self.delta_ND):
            turns = np.flatnonzero(row[:-1] * row[1:] < 0)
            if len(turns):
                at = turns[0]
                share = row[at] / (row[at] - row[at + 1])
                found[i] = np.exp(log_d[at] + share * (log_d[at + 1] - log_d[at]))
        return found

    def verdict(self) -> str:
        """One sentence."""
        a, b = (float((self.winner == side).mean()) for side in (-1, 1))
        rest = 100 * (1 - a - b)
        return f"{self.a} wins on {100 * a:.0f}% of the plane, {self.b} on {100 * b:.0f}%, undecided on {rest:.0f}%"


def compare(a: Surface, b: Surface, *, N: Any = None, D: Any = None, beyond: Number = 10.0) -> Comparison:
    """The relative difference of two surfaces.

    Args:
        N, D: axes; by default 60 values each, over both tables and ``beyond`` times further.
    Raises:
        ValueError: if the two count parameters or loss differently.
    """
    for what in ("convention", "unit"):
        mine, theirs = getattr(a.seen, what), getattr(b.seen, what)
        if mine != theirs:
            raise ValueError(
                f"cannot compare: {a.seen.name} has {what} {mine!r}, {b.seen.name} {theirs!r}; count one of them again"
            )
    axes: list[np.ndarray] = []
    for given, name in ((N, "N"), (D, "D")):
        spans = (getattr(a.seen, name), getattr(b.seen, name))
        low, high = min(s[0] for s in spans), max(s[1] for s in spans)
        if given is None and not 0 < low <= high < np.inf:
            raise ValueError(f"the surfaces do not say what {name} they were fitted on; give {name}=np.geomspace(...)")
        axes.append(np.geomspace(low, high * beyond, 60) if given is None else np.asarray(given, dtype=float))
    n, d = axes[0][:, None], axes[1][None]
    losses = [np.asarray(np.exp(s._logs(n, d, 1.0, False))) for s in (a, b)]
    sds = [s.spread * s.deviation(n, d) if len(s.parts[0].draws) else np.zeros_like(losses[0]) for s in (a, b)]
    names = (
        (a.seen.name, b.seen.name)
        if a.seen.name != b.seen.name
        else (f"{a.seen.name} ({a.law})", f"{b.seen.name} ({b.law})")
    )
    delta = 2 * (losses[0] - losses[1]) / (losses[0] + losses[1])
    return Comparison(names[0], names[1], axes[0], axes[1], delta, np.hypot(sds[0], sds[1]))


def advise(
    surface: Surface, N: Number, D: Number, *, count: int = 5, limit: Number | None = None
) -> list[dict[str, float]]:
    """Runs that would narrow the interval at (N, D) most: greedy, from the bootstrap's covariances.

    Args:
        limit: FLOPs that each may cost; by default what the largest run of the table cost.
    Returns:
        rows of N, D, C and ``left``: the deviation at (N, D) that remains after this run and those before it, as a
        share.
    Raises:
        ValueError: if the surface has no bootstrap draws.
    """
    if not len(surface.parts[0].draws):
        raise ValueError("advice needs bootstrap draws; fit with draws=100")
    seen = surface.seen
    limit = 6 * seen.N[1] * seen.D[1] if limit is None else limit
    n, d = np.meshgrid(
        np.geomspace(seen.N[0], 2 * seen.N[1], 12), np.geomspace(seen.D[0], 2 * seen.D[1], 12), indexing="ij"
    )
    ratio = d / n
    fits = (6 * n * d <= limit) & (ratio >= seen.ratio[0] / 2) & (ratio <= 2 * seen.ratio[1])
    n, d = n[fits], d[fits]
    logs = surface._logs(np.r_[n, N], np.r_[d, D], 1.0, True)
    middle = np.median(logs, axis=0)
    logs = np.clip(logs - middle, *np.quantile(logs - middle, [0.02, 0.98], axis=0))
    cov = np.cov(logs.T)
    first, noise, found = cov[-1, -1], max(surface.noise, 1e-4) ** 2, []
    taken: list[int] = []
    for _ in range(min(count, len(n))):
        gain = cov[-1, :-1] ** 2 / (np.diag(cov)[:-1] + noise)
        gain[taken] = -1.0  # five different runs
        at = int(np.argmax(gain))
        taken.append(at)
        cov = cov - np.outer(cov[:, at], cov[at]) / (cov[at, at] + noise)
        found.append({"N": float(n[at]), "D": float(d[at]), "C": float(6 * n[at] * d[at]),
                      "left": float(np.sqrt(max(cov[-1, -1], 0) / first))})  # fmt: skip
    return found
