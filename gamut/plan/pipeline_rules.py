"""List scheduling by a table of rules, and annealing of that table.

The scheduler goes through time: whenever a node is free, it takes the op whose start plus *bias* is least, of those
whose upstream is done and whose *window* (most micro-batches that the stage may hold) has room. Both are tables by op
and micro-batch. A change of a rectangle of the table, some nodes by some micro-batches, moves up to hundreds of ops and
the result is still a sensible schedule; a change reaches only what is scheduled after it, so a candidate starts again
at a snapshot, and is given up as soon as a node can no longer be done in time.

Backwards in time a pipeline is a pipeline too (backwards become forwards), and a schedule read backwards is a schedule
with the same makespan and peak. What the scheduler builds idles late; built backwards it idles early, and with
backwards twice as long as forwards that is much the better of the two.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from gamut.plan.pipeline import FORWARD, Problem
from gamut.plan.pipeline_fused import ways
from gamut.plan.pipeline_kernels import compiled, tables

GAP = 64  # ops between snapshots
LOCKED, LATE = -1.0, -2.0
LATENESS, HELD = 0.1, 1e-3  # weights of the mean lateness of the nodes and of their mean peak, beside the makespan


def mirrored(problem: Problem) -> Problem:
    """The problem backwards in time."""
    return Problem(tuple(replace(c, forward=c.backward, backward=c.forward) for c in problem.chains), problem.send)


def states(problem: Problem) -> tuple[np.ndarray, ...]:
    """What the scheduler fills: ops in order of their start; ends by op and micro-batch; and the snapshots: ops done,
    and (free from, held, work left, peak) of each node. The last snapshot is the end."""
    total, ops, nodes = sum(problem.lengths), len(problem.ops), problem.nodes
    parts, most = (total - 1) // GAP + 2, max(op.count for op in problem.ops)
    return (
        np.full(total, -1, np.int64),
        np.zeros((ops, most)),
        np.zeros((parts, ops), np.int64),
        np.zeros((parts, 4, nodes)),
    )


@compiled
def dispatch(window, bias, room, table, tails, limit, state, part):
    """Schedule from snapshot ``part`` to the end.

    Args:
        room: most memory of a node; forwards wait for it.
        tails: per node, the shortest time from its last op to the end of everything.
        limit: give up when the makespan must be above it.
    Returns:
        makespan; LOCKED if windows and room lock it; LATE if it was given up.
    """
    node, up, lag, time, delta, count, down, release, _, own = table
    order, ends, marks, snaps = state
    done, now = marks[part].copy(), snaps[part].copy()
    clock, held, left, peaks = now[0], now[1], now[2], now[3]
    chosen, begin = np.full(len(clock), -1), np.full(len(clock), math.inf)
    stale, many = np.arange(len(clock)), len(clock)  # nodes whose next op must be chosen anew
    for step in range(part * GAP, len(order)):
        for n in stale[:many]:  # written out here: as a function of its own it takes five times as long
            least, chosen[n], begin[n] = math.inf, -1, math.inf
            for op in own[n]:
                if op < 0:
                    break
                turn, before, ready = done[op], up[op], clock[n]
                if turn == count[op] or (before >= 0 and done[before] <= turn):
                    continue
                if before >= 0:
                    ready = max(ready, ends[before, turn] + lag[op])
                freed = release[op]
                if freed >= 0 and (turn - done[freed] >= window[op, turn] or held[n] + delta[op] > room + 1e-9):
                    continue
                if ready + bias[op, turn] < least:
                    least, chosen[n], begin[n] = ready + bias[op, turn], op, ready
        if step % GAP == 0:
            marks[step // GAP], snaps[step // GAP] = done, now
        first = 0
        for n in range(1, len(clock)):
            if begin[n] < begin[first]:
                first = n
        op = chosen[first]
        if op < 0:
            return LOCKED
        if begin[first] + left[first] + tails[first] > limit:
            return LATE
        clock[first] = begin[first] + time[op]
        order[step], ends[op, done[op]] = op, clock[first]
        done[op] += 1
        left[first] -= time[op]
        held[first] += delta[op]
        peaks[first] = max(peaks[first], held[first])
        stale[0], many = first, 1
        if down[op] >= 0:
            stale[1], many = node[down[op]], 2
    marks[len(marks) - 1], snaps[len(snaps) - 1] = done, now
    return clock.max()


@compiled
def _shake(window, bias, table, marks, part):
    """Change one rectangle of the rules by chance; the last snapshot, ``part`` at most, that it leaves as it is."""
    node, up, _, time, delta, count, _, release, _, _ = table
    op, most = np.random.randint(len(up)), window.shape[1]
    low = high = node[op]
    if np.random.random() < 0.5:
        other = np.random.randint(marks.shape[1])
        low, high = min(low, node[other]), max(high, node[other])
    first, last = 0, most
    if np.random.random() < 0.7:
        span = int(2.0 ** (np.random.random() * math.log2(most + 1)))
        first = np.random.randint(1 - span, count[op])
        first, last = max(first, 0), min(first + span, most)
    by_window = release[op] >= 0 and np.random.random() < 0.4
    step = 1 if np.random.random() < 0.5 else -1
    shift = (np.random.random() - 0.5) * 1.5 * time.max()
    for other in range(len(up)):
        same = delta[other] == delta[op] and time[other] == time[op]  # same model, same direction
        if other != op and not (same and low <= node[other] <= high):
            continue
        for turn in range(first, last):
            if by_window:
                window[other, turn] = max(1, window[other, turn] + step)
            else:
                bias[other, turn] = max(0.0, bias[other, turn] + shift)
        while part > 0:
            seen = marks[part, other]  # untouched: the first changed micro-batch was no candidate before the snapshot
            if seen < first or (seen == first and up[other] >= 0 and marks[part, up[other]] <= first):
                break
            part -= 1
    return part


@compiled
def anneal_rules(window, bias, cap, table, tails, work, target, hot, cold, steps, seed, best, one, two):
    """Anneal rules within memory ``cap`` until the makespan is ``target``.

    Args:
        best: (window, bias), filled. one, two: `states`.
    Returns:
        makespan of the best; infinite if all were locked.
    """
    np.random.seed(seed)
    nodes, last = len(tails), len(one[2]) - 1
    cost = least = shortest = math.inf
    window_new, bias_new = window.copy(), bias.copy()
    for state in (one, two):
        state[2][0], state[3][0], state[3][0, 2] = 0, 0.0, work
    for step in range(steps):
        part, limit = 0, math.inf
        if step:
            window_new[:], bias_new[:], part = window, bias, last - 1
            for _ in range(1 + np.random.randint(3)):
                part = _shake(window_new, bias_new, table, one[2], part)
            limit = cost - hot * (cold / hot) ** (step / steps) * math.log(1.0 - np.random.random())
            if cost == math.inf:
                part = 0
            two[0][:], two[1][:] = one[0], one[1]
            two[2][: part + 1], two[3][: part + 1] = one[2][: part + 1], one[3][: part + 1]
        makespan = dispatch(window_new, bias_new, cap, table, tails, target + max(limit, 0.0) + 1e-9, two, part)
        if makespan < 0.0:
            continue
        late = 0.0
        for n in range(nodes):
            late += max(0.0, two[3][last, 0, n] + tails[n] - target)
        fresh = max(makespan - target, 0.0) + LATENESS * late / nodes + HELD * two[3][last, 3].mean()
        if fresh > limit:
            continue
        cost, one, two = fresh, two, one
        window[:], bias[:] = window_new, bias_new
        if cost < least:
            least, shortest = cost, makespan
            best[0][:], best[1][:] = window, bias
            if makespan <= target:
                break
    return shortest


class Rules:
    """Rules for one problem, read forwards or backwards in time.

    Args:
        draw: the source of all chance.
        run: ``run(name, kernel, args)`` calls a kernel for a slice of time with ``args(steps, seed)``.
    """

    def __init__(self, problem: Problem, draw: np.random.Generator, run: Callable, *, backwards: bool):
        self.backwards, self.draw, self.run = backwards, draw, run
        self.problem = mirrored(problem) if backwards else problem
        self.table, self.work = tables(self.problem), np.array(problem.work, dtype=np.float64)
        tail = ways(self.problem)[1]
        self.tails = np.array([min(tail[i] for i in own.values()) for own in problem.by_letter], dtype=np.float64)
        self.one, self.two = states(self.problem), states(self.problem)
        self.kept: Any = None  # (window, bias), once a schedule was found
        self.makespan = math.inf  # of what is kept

    def rows(self, cap: float, limit: float = math.inf) -> tuple[float, tuple[str, ...]]:
        """Makespan and rows of the rules kept; (-1, ()) if they lock."""
        makespan = self._schedule(self.kept[0], self.kept[1], cap, limit)
        if makespan < 0:
            return makespan, ()
        codes: list[list[int]] = [[] for _ in range(self.problem.nodes)]
        for index in self.one[0]:
            codes[self.problem.ops[index].node].append(int(index))
        rows = self.problem.rows(codes)
        return makespan, tuple(row[::-1].swapcase() for row in rows) if self.backwards else rows

    def _schedule(self, window: np.ndarray, bias: np.ndarray, cap: float, limit: float) -> float:
        self.one[2][0], self.one[3][0], self.one[3][0, 2] = 0, 0.0, self.work
        return dispatch(window, bias, float(cap), self.table, self.tails, float(limit), self.one, 0)

    def begin(self, cap: float, tries: int = 400) -> bool:
        """Keep the best of some random rules; False if all of them lock."""
        self.kept, self.makespan = None, math.inf
        for _ in range(tries):
            window, bias = self._drawn()
            makespan = self._schedule(window, bias, cap, self.makespan)
            if 0 <= makespan < self.makespan:
                self.kept, self.makespan = (window, bias), makespan
        return self.kept is not None

    def _drawn(self) -> tuple[np.ndarray, np.ndarray]:
        """Windows like 1F1B's and biases, one draw per model and direction."""
        ops, drawn = self.problem.ops, {}
        shape = self.one[1].shape
        unit = max(op.time for op in ops)
        window, bias = np.ones(shape, np.int64), np.zeros(shape)
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

    def tune(self, cap: float, target: float, hot: float, cold: float, slices: int) -> float:
        """Anneal what is kept, in slices of time with geometric cooling; the makespan reached."""
        window, bias = (part.copy() for part in self.kept)
        shortest = math.inf
        for top, low in cooling(hot, cold, slices):
            best = window.copy(), bias.copy()
            fixed = (window, bias, float(cap), self.table, self.tails, self.work, float(target), top, low)
            more = (best, self.one, self.two)
            reached = self.run("tune", anneal_rules, partial(_around, fixed, more))
            if reached < shortest:
                shortest, self.kept = reached, best
            if shortest <= target:
                break
        self.makespan = shortest
        return shortest


def _around(first: tuple, last: tuple, steps: int, seed: int) -> tuple:
    return (*first, steps, seed, *last)


def cooling(hot: float, cold: float, slices: int) -> list[tuple[float, float]]:
    """Geometric cooling from hot to cold, cut into slices."""
    edges = [hot * (cold / hot) ** (part / slices) for part in range(slices + 1)]
    return list(itertools.pairwise(edges))
