"""Search for short schedules, and for short ones that need little memory.

Two moves of very different size. `Rules.tune` anneals the rules of a list scheduler that runs forwards or backwards in
time; `anneal` swaps two neighbours that lie on a critical path (only such swaps can shorten a schedule) or at a peak of
memory. The paper's annealing (RLHFuse, algorithms 1-3) swaps any two neighbours; its search took 768 cores.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gamut.plan.pipeline import Chain, Problem, simulate
from gamut.plan.pipeline_fused import fillers, greedy, least_memory, lower_bound, serial

SLICE = 0.4  # seconds of one call of a kernel: how often the search looks at the clock
ROOM = (2.0, 3.0, 1.5)  # memory allowed while the goal is not met, in peaks of the serial schedule
FIRST, FASTEST = 2000, 400_000  # steps a second before the speed of a kernel is known, and at most


@dataclass
class Found:
    """The best schedule so far and how it came about; ``trace`` has a line for each that was the best before."""

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
        better: called with every new best.
        room: most memory of a node; a schedule that needs more does not count. The serial schedule's at least.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int = 0,
        goal: float | None = None,
        start: tuple = (),
        clock: Callable[[], float] = time.process_time,
        better: Callable[[Found], None] = lambda found: None,
        room: float = math.inf,
    ):
        from gamut.plan import pipeline_kernels as kernels
        from gamut.plan.pipeline_rules import Rules

        self.problem, self.clock, self.kernels, self.better = problem, clock, kernels, better
        self.bound = lower_bound(problem)
        if all(float(op.time).is_integer() and float(op.lag).is_integer() for op in problem.ops):
            self.bound = math.ceil(self.bound)
        self.goal = float(self.bound if goal is None else goal)
        self.draw = np.random.default_rng(seed)
        self.best: Any = None  # Found, from the first offer on
        self.shortest: Found | None = None  # the first that was as short as the best
        self.good: tuple[Any, Any] | None = None  # the rules of the best, and whose they are
        self.table, self.buffers = kernels.tables(problem), (kernels.buffers(problem), kernels.buffers(problem))
        self.pairs = np.zeros((sum(problem.lengths), 2), np.int64)
        self.speed: dict[str, float] = {}
        self.levels = {True: 0.93, False: 0.97}  # how far below the best the memory is tried, new rules and kept
        self.unit = max(op.time for op in problem.ops)
        ways = (False,) if any(chain.weight for chain in problem.chains) else (True, False)
        self.rules = [Rules(problem, self.draw, self._run, backwards=way) for way in ways]
        self.serial_peak, self.room = simulate(problem, serial(problem)).peak_memory, room
        if room < self.serial_peak - 1e-6:
            raise ValueError(
                f"memory must do for the serial schedule: allowed {self.serial_peak:g} or more, got {room:g}"
            )
        self._compile()
        self.began = clock()
        for rows in start:
            self.offer(rows, "given")
        for name, make in (("serial", serial), ("greedy", greedy), *fillers.items()):
            self.offer(make(problem), name)

    def _compile(self) -> None:
        """Have the kernels compiled before the clock runs: 15 s of CPU time once, then kept on disk by numba."""
        from gamut.plan.pipeline_rules import Rules

        problem = Problem((Chain((0, 1), 2, 1, 2), Chain((1, 0), 2, 1, 2)))
        kernels = self.kernels
        rows = kernels.pack(problem, greedy(problem))
        table, buffers = kernels.tables(problem), [kernels.buffers(problem) for _ in range(2)]
        pairs = np.zeros((16, 2), np.int64)
        kernels.anneal(rows, table, 1.0, 1.0, 1.0, 0.1, 1, 0, rows.copy(), *buffers, pairs)
        rules = Rules(problem, np.random.default_rng(0), lambda name, kernel, args: kernel(*args(2, 0)), backwards=True)
        rules.begin(9.0, 1)
        rules.tune(9.0, 1.0, 1.0, 0.1, 1)

    def offer(self, rows: tuple[str, ...], by: str) -> bool:
        """Take a schedule if it is better than the best; the exact evaluator decides."""
        timing = simulate(self.problem, rows)
        here = (timing.makespan, round(timing.peak_memory, 6))
        if here[1] > self.room + 1e-6 or (self.best and here >= (self.best.makespan, self.best.peak_memory)):
            return False
        spent, trace = self.clock() - self.began, self.best.trace if self.best else []
        trace.append({"makespan": here[0], "peak_memory": here[1], "by": by, "seconds": round(spent, 2)})
        found = Found(tuple(rows), *here, by, spent, trace)
        if self.best is None or here[0] < self.best.makespan:
            self.shortest = found
        self.best = found
        self.better(found)
        return True

    def _run(self, name: str, kernel: Callable, args: Callable[[int, int], tuple]) -> float:
        """Call a kernel for about SLICE seconds; ``args(steps, seed)`` gives its arguments."""
        known = self.speed.get(name, FIRST)
        steps = max(50, int(SLICE * known))
        began = self.clock()
        cost = kernel(*args(steps, int(self.draw.integers(1 << 31))))
        spent = self.clock() - began
        if spent > 0.02 * SLICE:  # less than that: it met its goal at once and says nothing of the speed
            self.speed[name] = min(2 * known, steps / spent, FASTEST)
        return cost

    def anneal(self, cap: float, hot: float, slices: int = 2) -> None:
        """Anneal by swaps of neighbours from the best schedule, within memory ``cap``."""
        from gamut.plan.pipeline_rules import cooling

        rows = self.kernels.pack(self.problem, self.best.rows)
        best = rows.copy()
        for top, low in cooling(hot, 0.03 * hot, slices):
            fixed = (rows, self.table, cap, self.goal, top, low)
            cost = self._run(
                "anneal", self.kernels.anneal, lambda *a, f=fixed: (*f, *a, best, *self.buffers, self.pairs)
            )
            letters = self.problem.rows(row[:n] for row, n in zip(best, self.problem.lengths, strict=True))
            self.offer(letters, "swaps of neighbours")
            if cost <= 1e-9:
                break

    def run(self, seconds: float, *, memory_goal: float = 0.0) -> Found:
        """Shorten until the goal is met, then lower the memory at that makespan, until time or ``memory_goal``.

        A goal that is not met in half of the time gives way to the best makespan, unless ``room`` limits the memory.
        """
        least, failures = max(memory_goal, least_memory(self.problem, self.goal)), 0
        while (spent := self.clock() - self.began) < seconds:
            if self.best.makespan > self.goal and spent > seconds / 2 and self.room == math.inf:
                self.goal, failures = self.best.makespan, 0
            before = self.best
            if before.makespan > self.goal and self.room < math.inf:
                self._within(self.room, failures)
            elif before.makespan > self.goal:
                self._shorten(failures)
            elif before.peak_memory <= least + 1e-6:
                break
            else:
                self._lower(least, failures)
            failures = 0 if self.best is not before else failures + 1
        return self.best

    def _shorten(self, failures: int) -> None:
        """Tune the rules of the best schedule four times, then new ones twice; longer and longer."""
        cap = self.serial_peak * ROOM[failures % len(ROOM)]
        turn, slices = failures % 6, 2 ** min(failures // 3, 4)
        if self.good is None or turn >= 4:
            side = self.rules[failures // 6 % len(self.rules)]
            self._tune(side, cap, self._heat(), slices, fresh=turn != 5 or side.kept is None)
        else:
            side, side.kept = self.good
            self._tune(side, cap, (0.03, 0.06, 0.12, 0.25)[turn], slices)
        if turn == 5:
            self.anneal(self.best.peak_memory, 0.7)

    def repeat(self, cap: float, seed: int, steps: int, hot: float) -> bool:
        """One try that is the same on every machine: new rules within memory ``cap``, annealed for so many steps from
        ``hot`` longest ops. Whether the goal was met."""
        from gamut.plan.pipeline_rules import Rules

        def run(name: str, kernel: Callable, args: Callable) -> float:
            return kernel(*args(steps, seed))

        side = Rules(self.problem, np.random.default_rng(seed), run, backwards=len(self.rules) > 1)
        return self._tune(side, cap, hot, 1, fresh=True) <= self.goal

    def _lower(self, least: float, failures: int) -> None:
        """Try for the goal within less memory. How far below the best a turn aims (1: just below, 0: at ``least``) is
        lowered by success and raised by failure, for new rules and for kept ones."""
        fresh = self._is_fresh(failures)
        level, before = self.levels[fresh], self.best
        self._within(least + level * (before.peak_memory - 1e-6 - least), failures)
        self.levels[fresh] = max(0.3, 1 - (1 - level) * (1.5 if self.best is not before else 0.7))

    def _is_fresh(self, failures: int) -> bool:
        return self.good is None or failures % 2 == 0

    def _within(self, cap: float, failures: int) -> None:
        """By turns with new rules and with those of the best schedule; what gets shorter is tuned on."""
        fresh, before = self._is_fresh(failures), self.best
        if fresh:
            side = self.rules[0] if failures % 12 < 10 else self.rules[-1]
        else:
            assert self.good is not None
            side, side.kept = self.good
        reached, slices = math.inf, (3 if fresh else 1) + min(failures // 12, 3)
        hot = 10 ** self.draw.uniform(-1.7, -1.0) if fresh else self._heat()
        for again in range(4):
            shorter = self._tune(side, cap, hot, slices, fresh=fresh and not again)
            if self.best is not before or shorter >= reached:
                break
            reached = shorter

    def _heat(self) -> float:
        """How hot annealing begins, in longest ops. Cool for most: within little memory heat loses what it has."""
        return 10 ** self.draw.uniform(-2.3, -0.9)

    def _tune(self, side: Any, cap: float, hot: float, slices: int, *, fresh: bool = False) -> float:
        """Anneal the rules that a side keeps, or new ones, towards the goal; the makespan reached, which is offered."""
        if fresh and not side.begin(cap):
            return math.inf
        side.tune(cap, self.goal, hot * self.unit, min(hot, 0.01) * self.unit, slices)
        makespan, rows = side.rows(cap)
        way = "backwards" if side.backwards else "forwards"
        if makespan >= 0 and self.offer(rows, f"rules {way} in time"):
            self.good = (side, side.kept)
        return makespan if makespan >= 0 else math.inf


def search(problem: Problem, seconds: float = 10.0, **options: Any) -> Found:
    """The best schedule within ``seconds`` of CPU time; see `Search` for the options.

    Raises:
        ValueError: ``seconds`` is not positive.
    """
    if seconds <= 0:
        raise ValueError(f"a search needs seconds > 0, got {seconds:g}")
    return Search(problem, **options).run(seconds)
