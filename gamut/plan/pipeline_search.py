"""Search for short schedules, and for short ones that need little memory.

Two moves of very different size. `tune` changes the rules of a list scheduler: how many micro-batches each stage may
hold and which op goes first; a change of one number moves hundreds of ops and the result is always a sensible schedule.
`anneal` swaps two neighbours that lie on a critical path (only such swaps can shorten a schedule) or at a peak of
memory. The paper's annealing (RLHFuse, algorithms 1-3) swaps any two neighbours; its search took 768 cores.
"""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from gamut.plan.pipeline import FORWARD, Chain, Problem, simulate
from gamut.plan.pipeline_fused import fillers, greedy, lower_bound, serial

SLICE = 2.0  # seconds of one call of a kernel: how often the search looks at the clock
FIRST = {"tune": 1500, "anneal": 10_000}  # steps a second before the speed is known
FASTEST = 200_000


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

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int = 0,
        goal: float | None = None,
        start: tuple = (),
        clock: Callable[[], float] = time.process_time,
    ):
        from gamut.plan import pipeline_kernels as kernels

        self.problem, self.clock, self.kernels = problem, clock, kernels
        self.bound = lower_bound(problem)
        if all(float(op.time).is_integer() and float(op.lag).is_integer() for op in problem.ops):
            self.bound = math.ceil(self.bound)
        self.goal = float(self.bound if goal is None else goal)
        self.draw = np.random.default_rng(seed)
        self.table, self.began = kernels.tables(problem), clock()
        self.best: Found | None = None
        self.shortest: Found | None = None  # the first that was as short as the best
        self.one, self.two = kernels.buffers(problem), kernels.buffers(problem)
        self.pairs = np.zeros((sum(problem.lengths), 2), np.int64)
        self.speed: dict[str, float] = {}
        self.rules: tuple[tuple[float, float], np.ndarray, np.ndarray] | None = (
            None  # the best so far: cost, windows, biases
        )
        self.serial_peak = simulate(problem, serial(problem)).peak_memory
        self._compile()
        self.began = clock()
        for rows in start:
            self.offer(rows, "given")
        for name, make in (("serial", serial), ("greedy", greedy), *fillers.items()):
            self.offer(make(problem), name)

    def _compile(self) -> None:
        """Have the kernels compiled before the clock runs: 15 s of CPU time once, then kept on disk by numba."""
        problem = Problem((Chain((0, 1), 2, 1, 2), Chain((1, 0), 2, 1, 2)))
        rows = self.kernels.pack(problem, greedy(problem))
        table, buffers = self.kernels.tables(problem), [self.kernels.buffers(problem) for _ in range(2)]
        rules = np.ones(len(problem.ops), np.int64), np.zeros(len(problem.ops))
        more = (*(one.copy() for one in rules), rows.copy(), np.zeros_like(buffers[0][2]), np.zeros(problem.nodes))
        self.kernels.tune(*rules, 9.0, table, 1.0, 1.0, 1.0, 0.1, 1, 0, *more)
        self.kernels.anneal(rows, table, 1.0, 1.0, 1.0, 0.1, 1, 0, rows.copy(), *buffers, np.zeros((16, 2), np.int64))

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
        found = Found(tuple(rows), *here, by, spent, trace)
        if self.best is None or here[0] < self.best.makespan:
            self.shortest = found
        self.best = found
        return True

    def _run(self, name: str, kernel: Callable, args: Callable[[int, int], tuple]) -> float:
        """Call a kernel for about SLICE seconds; ``args(steps, seed)`` gives its arguments."""
        steps = max(50, int(SLICE * self.speed.get(name, FIRST[name])))
        began = self.clock()
        cost = kernel(*args(steps, int(self.draw.integers(1 << 31))))
        spent, known = self.clock() - began, self.speed.get(name, FIRST[name])
        self.speed[name] = steps / spent if spent > SLICE / 4 else min(2 * known, FASTEST)  # it may have ended early
        return cost

    def tune(self, cap: float, slices: int = 4, *, again: bool = False, strict: bool = True) -> np.ndarray | None:
        """Anneal the rules of the list scheduler within memory ``cap``; the rows they give.

        The rules begin at random, or with ``again`` at the best that were found. ``strict``: the scheduler itself keeps
        to the cap, node by node, and rules that lock it count for nothing; else what is over the cap is a cost.
        """
        room = cap if strict else math.inf
        found = (self.rules[1].copy(), self.rules[2].copy()) if again and self.rules else self._drawn(cap, room)
        if found is None:
            return None
        window, bias = found
        rows, ends, peaks = self._empty()
        least, best_window, best_bias = math.inf, window.copy(), bias.copy()
        unit = max(op.time for op in self.problem.ops)
        for hot, cold in _cooling((0.06 if again else 0.2) * unit, 0.008 * unit, slices):
            kept = window.copy(), bias.copy()
            cost = self._run(
                "tune",
                self.kernels.tune,
                partial(
                    _around, (window, bias, room, self.table, cap, self.goal, hot, cold), (*kept, rows, ends, peaks)
                ),
            )
            if cost < least:
                least, (best_window, best_bias) = cost, kept
            if cost < 0.5:
                break
        makespan = self.kernels.dispatch(best_window, best_bias, room, self.table, rows, ends, peaks)
        if makespan < 0:
            return None
        rank = (max(makespan, self.goal), float(peaks.max()))
        if self.rules is None or rank < self.rules[0]:
            self.rules = (rank, best_window, best_bias)
        self.offer(rows, f"tune within memory {cap:g}")
        return rows

    def _drawn(self, cap: float, room: float) -> tuple[np.ndarray, np.ndarray] | None:
        """The best of some random rules; None if none of them ends."""
        rows, ends, peaks = self._empty()
        least, best = math.inf, None
        for _ in range(24):
            window, bias = self._rules()
            makespan = self.kernels.dispatch(window, bias, room, self.table, rows, ends, peaks)
            cost = max(makespan - self.goal, 0.0) + np.maximum(peaks - cap, 0.0).sum()
            if makespan >= 0 and cost < least:
                least, best = cost, (window, bias)
        return best

    def _empty(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows = np.full((self.problem.nodes, max(self.problem.lengths)), -1, np.int64)
        return rows, np.zeros_like(self.one[2]), np.zeros(self.problem.nodes)

    def _rules(self) -> tuple[np.ndarray, np.ndarray]:
        """Windows like 1F1B's and biases, one draw per model and direction."""
        ops, drawn, unit = self.problem.ops, {}, max(op.time for op in self.problem.ops)
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

    def anneal(self, rows: np.ndarray, cap: float, hot: float, slices: int = 4) -> bool:
        """Anneal by swaps of neighbours from ``rows``; whether goal and ``cap`` were both met."""
        rows, best = rows.copy(), rows.copy()
        for top, low in _cooling(hot, 0.03 * hot, slices):
            cost = self._run(
                "anneal",
                self.kernels.anneal,
                partial(_around, (rows, self.table, cap, self.goal, top, low), (best, self.one, self.two, self.pairs)),
            )
            self.offer(best, f"anneal within memory {cap:g}")
            if cost <= 1e-9:
                return True
        return False

    def run(self, seconds: float, *, memory_goal: float = 0.0, say: Callable[[str], None] = lambda line: None) -> Found:
        """Shorten until the goal is met, then lower the memory at that makespan, until time or ``memory_goal``.

        Each round tunes the scheduler's rules within a memory cap and anneals what comes out; the cap tightens with
        every success and loosens a little for a round that failed.
        """
        step = min(op.delta for op in self.problem.ops if op.delta > 0)
        floor = max(chain.memory for chain in self.problem.chains)
        failures = 0
        while self.clock() - self.began < seconds:
            short = self.best.makespan <= self.goal
            if short and self.best.peak_memory <= max(memory_goal, floor):
                break
            if short:
                cap = self.best.peak_memory - 1e-6 - step * (int(self.draw.integers(0, 3)) if failures % 2 else 0)
            else:
                cap = self.serial_peak * float(self.draw.choice([1.0, 1.25, 1.5, 2.0]))
            before = (self.best.makespan, self.best.peak_memory)
            rows = self.tune(cap, slices=2 ** (1 + failures % 4), again=failures % 3 == 2, strict=failures % 5 < 3)
            if rows is not None:
                self.anneal(rows, cap, float(self.draw.choice([0.3, 0.7, 1.5])), slices=3)
            if short and failures % 2 == 0:
                self.anneal(self.kernels.pack(self.problem, self.best.rows), cap, 0.7, slices=2)
            better = (self.best.makespan, self.best.peak_memory) < before
            failures = 0 if better else failures + 1
            if better:
                say(
                    f"{self.clock() - self.began:7.1f} s   makespan {self.best.makespan:g} (bound {self.bound:g})   "
                    f"memory {self.best.peak_memory:g}   by {self.best.by}"
                )
        return self.best


def _cooling(hot: float, cold: float, slices: int) -> list[tuple[float, float]]:
    """Geometric cooling from hot to cold, cut into slices."""
    edges = [hot * (cold / hot) ** (part / slices) for part in range(slices + 1)]
    return list(itertools.pairwise(edges))


def _around(first: tuple, last: tuple, steps: int, seed: int) -> tuple:
    return (*first, steps, seed, *last)


def search(problem: Problem, seconds: float = 10.0, **options: Any) -> Found:
    """The best schedule within ``seconds`` of CPU time; see `Search` for the options.

    Raises:
        ValueError: ``seconds`` is not positive.
    """
    if seconds <= 0:
        raise ValueError(f"a search needs seconds > 0, got {seconds:g}")
    return Search(problem, **options).run(seconds)
