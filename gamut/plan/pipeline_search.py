"""Search for short schedules, and for short ones that need little memory.

Two moves of very different size. `tune` changes the rules of a list scheduler: how many micro-batches each stage may hold
and which op goes first; a change of one number moves hundreds of ops and the result is always a sensible schedule. `anneal`
swaps two neighbours that lie on a critical path (only such swaps can shorten a schedule) or at a peak of memory. The
paper's annealing swaps any two neighbours (`RLHFuse, algorithms 1-3`) and took 768 cores.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gamut.plan.pipeline import FORWARD, Problem, simulate
from gamut.plan.pipeline_fused import fillers, greedy, lower_bound, serial

SLICE = 2.0  # seconds of one call of a kernel: how often the search looks at the clock


@dataclass
class Found:
    """The best schedule so far and how it came about."""

    rows: tuple[str, ...]
    makespan: float
    peak_memory: float
    by: str
    seconds: float
    trace: list[dict[str, Any]] = field(default_factory=list)


class Search:
    """A search that can be stopped at any time. ``best`` is shortest, then smallest in memory.

    Args:
        problem: what to schedule.
        seed: of everything drawn by chance.
        goal: stop shortening here; the lower bound if None.
        start: schedules known beforehand.
        clock: seconds spent; CPU time by default, so that a busy machine changes nothing.
    """

    def __init__(self, problem: Problem, *, seed: int = 0, goal: float | None = None, start: tuple = (),
                 clock: Callable[[], float] = time.process_time):  # fmt: skip
        from gamut.plan import pipeline_kernels as kernels

        self.problem, self.clock, self.kernels = problem, clock, kernels
        self.bound = lower_bound(problem)
        if all(float(op.time).is_integer() and float(op.lag).is_integer() for op in problem.ops):
            self.bound = math.ceil(self.bound)
        self.goal = self.bound if goal is None else goal
        self.draw = np.random.default_rng(seed)
        self.table, self.began, self.best = kernels.tables(problem), clock(), None
        self.one, self.two = kernels.buffers(problem), kernels.buffers(problem)
        self.pairs = np.zeros((sum(problem.lengths), 2), np.int64)
        self.speed: dict[str, float] = {}
        self.pool: list[np.ndarray] = []
        for rows in start:
            self.offer(rows, "given")
        for name, make in (("serial", serial), ("greedy", greedy), *fillers.items()):
            self.offer(make(problem), name)

    def offer(self, rows: tuple[str, ...] | np.ndarray, by: str) -> bool:
        """Take a schedule if it is better than the best; the exact evaluator decides."""
        if isinstance(rows, np.ndarray):
            rows = self.problem.rows(row[:n] for row, n in zip(rows, self.problem.lengths, strict=True))
        timing = simulate(self.problem, rows)
        here = (timing.makespan, round(timing.peak_memory, 6))
        if self.best and here >= (self.best.makespan, round(self.best.peak_memory, 6)):
            return False
        spent, trace = self.clock() - self.began, self.best.trace if self.best else []
        trace.append({"makespan": here[0], "peak_memory": here[1], "by": by, "seconds": round(spent, 2)})
        self.best = Found(tuple(rows), *here, by, spent, trace)
        return True

    def _steps(self, name: str, default: int) -> int:
        return max(100, int(SLICE * self.speed.get(name, default / SLICE)))

    def _timed(self, name: str, steps: int, call: Callable[[], float]) -> float:
        began = self.clock()
        result = call()
        spent = self.clock() - began
        if name in self.speed or spent < SLICE:  # a first call may hold the compiler
            self.speed[name] = steps / max(spent, 1e-3)
        else:
            self.speed[name] = steps / SLICE
        return result

    def tune(self, cap: float, slices: int = 4) -> float:
        """Rules of the list scheduler, from random ones; ``cap``: memory to stay within. Returns the cost reached."""
        kernels, ops, nodes = self.kernels, self.problem.ops, self.problem.nodes
        unit = max(op.time for op in ops)
        rows, ends, peaks = self._empty()
        tries, best = [], (math.inf, None, None)
        for _ in range(24):
            window, bias = self._rules(unit)
            makespan = kernels.dispatch(window, bias, self.table, rows, ends, peaks)
            if makespan >= 0:
                tries.append((max(makespan - self.goal, 0) + np.maximum(peaks - cap, 0).sum(), len(tries), window, bias))
        if not tries:
            return math.inf
        _, _, window, bias = min(tries)
        hot = 0.15 * unit
        for part in range(slices):
            steps = self._steps("tune", 2000)
            top, low = (hot * 0.1 ** (part / slices), hot * 0.1 ** ((part + 1) / slices))
            kept = window.copy(), bias.copy()
            cost = self._timed("tune", steps, lambda: kernels.tune(
                window, bias, self.table, cap, self.goal, top, low, steps, int(self.draw.integers(1 << 31)),
                *kept, rows, ends, peaks))  # fmt: skip
            if cost < best[0]:
                best = (cost, *kept)
                kernels.dispatch(*kept, self.table, rows, ends, peaks)
                self.offer(rows, f"tune, cap {cap:g}")
            if cost < 0.5:
                break
        kernels.dispatch(best[1], best[2], self.table, rows, ends, peaks)
        self.pool = [*self.pool, rows.copy()][-8:]
        return best[0]

    def _empty(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows = np.full((self.problem.nodes, max(self.problem.lengths)), -1, np.int64)
        return rows, np.zeros_like(self.one[2]), np.zeros(self.problem.nodes)

    def _rules(self, unit: float) -> tuple[np.ndarray, np.ndarray]:
        """Windows around 1F1B's and biases, one draw per model and direction."""
        ops, drawn = self.problem.ops, {}
        window, bias = np.ones(len(ops), np.int64), np.zeros(len(ops))
        late = self.draw.integers(2)
        for i, op in enumerate(ops):
            chain = self.problem.chains[op.chain]
            key = (chain.model, chain.forward, op.kind)
            if key not in drawn:
                drawn[key] = (self.draw.integers(-1, 8), self.draw.uniform(0.6, 1.4), self.draw.uniform(0, 0.25))
            more, slope, first = drawn[key]
            if op.kind == FORWARD:
                window[i] = max(1, int((len(chain.nodes) - op.stage) * slope + more))
            bias[i] = unit * (first + (0.25 if late and op.kind == FORWARD else 0))
        return window, bias

    def anneal(self, rows: np.ndarray, cap: float, hot: float, slices: int = 4) -> float:
        """Swaps of neighbours from ``rows``. Returns the cost reached; 0 is within goal and ``cap``."""
        rows, best = rows.copy(), rows.copy()
        cost, cold = math.inf, 0.03 * hot
        for part in range(slices):
            steps = self._steps("anneal", 20000)
            top, low = hot * (cold / hot) ** (part / slices), hot * (cold / hot) ** ((part + 1) / slices)
            cost = min(cost, self._timed("anneal", steps, lambda: self.kernels.anneal(
                rows, self.table, cap, self.goal, top, low, steps, int(self.draw.integers(1 << 31)), best,
                self.one, self.two, self.pairs)))  # fmt: skip
            self.offer(best, f"anneal, cap {cap:g}")
            if cost <= 1e-9:
                break
        return cost
