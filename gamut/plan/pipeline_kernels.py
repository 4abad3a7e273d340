"""The inner loops of the schedule search, compiled by numba where it is installed (without it they run, slowly).

A schedule is ``rows[node, place]``, an index into ``Problem.ops``; row n holds ``lengths[n]`` of them. A problem is the
tuple of arrays that `tables` makes. Times are float64, so sums of whole numbers are exact.
"""

import math

import numpy as np

from gamut.plan.pipeline import FORWARD, Problem


def compiled(function):
    try:
        import numba
    except ImportError:
        return function
    return numba.njit(cache=True)(function)


def tables(problem: Problem) -> tuple[np.ndarray, ...]:
    """(node, up, lag, time, delta, count, down, release, lengths, own) of the ops: ``down`` is the op on another node
    that waits for this one or -1; ``release`` is the op that gives back what a forward took, -1 for what is no forward;
    ``own`` are the ops of each node, in order, then -1."""
    ops = problem.ops
    down, release = np.full(len(ops), -1), np.full(len(ops), -1)
    for index, op in enumerate(ops):
        if op.up >= 0 and ops[op.up].node != op.node:
            down[op.up] = index
        if op.kind == FORWARD:
            release[index] = index + (2 if problem.chains[op.chain].weight else 1)
    whole = [np.array([getattr(op, name) for op in ops], dtype=np.int64) for name in ("node", "up", "count")]
    parts = [np.array([getattr(op, name) for op in ops], dtype=np.float64) for name in ("lag", "time", "delta")]
    own = np.full((problem.nodes, max(map(len, problem.by_letter)) + 1), -1)
    for node, letters in enumerate(problem.by_letter):
        own[node, : len(letters)] = sorted(letters.values())
    return (whole[0], whole[1], *parts, whole[2], down, release, np.array(problem.lengths), own)


def pack(problem: Problem, rows) -> np.ndarray:
    """Rows of letters as one array (nodes, longest row); what lies beyond a row's end is -1."""
    packed = np.full((problem.nodes, max(problem.lengths)), -1, dtype=np.int64)
    for node, code in enumerate(problem.codes(rows)):
        packed[node, : len(code)] = code
    return packed


def buffers(problem: Problem) -> tuple[np.ndarray, ...]:
    """(starts, turns) by node and place, (ends, places) by op and micro-batch: what `evaluate` fills."""
    shape, each = (problem.nodes, max(problem.lengths)), (len(problem.ops), max(op.count for op in problem.ops))
    return np.zeros(shape), np.zeros(shape, np.int64), np.zeros(each), np.zeros(each, np.int64)


@compiled
def evaluate(rows, table, buffer):
    """Makespan of a schedule, -1 if it cannot run to its end. Fills ``buffer`` (see `buffers`)."""
    node, up, lag, time, _, _, down, _, lengths, _ = table
    starts, turns, ends, places = buffer
    nodes = rows.shape[0]
    place, done = np.zeros(nodes, np.int64), np.zeros(len(up), np.int64)
    clock = np.zeros(nodes)
    todo, queued = np.arange(nodes), np.ones(nodes, np.bool_)
    waiting, left = nodes, lengths.sum()
    while waiting:
        waiting -= 1
        n = todo[waiting]
        queued[n] = False
        j, now = place[n], clock[n]
        while j < lengths[n]:
            op = rows[n, j]
            turn, before = done[op], up[op]
            if before >= 0:
                if done[before] <= turn:
                    break
                now = max(now, ends[before, turn] + lag[op])
            starts[n, j], turns[n, j], places[op, turn] = now, turn, j
            now += time[op]
            ends[op, turn] = now
            done[op] = turn + 1
            j += 1
            left -= 1
            if down[op] >= 0:
                other = node[down[op]]
                if not queued[other] and place[other] < lengths[other] and rows[other, place[other]] == down[op]:
                    queued[other] = True
                    todo[waiting] = other
                    waiting += 1
        place[n], clock[n] = j, now
    return clock.max() if left == 0 else -1.0


@compiled
def peak(row, length, delta):
    """Most memory that a node holds."""
    held = most = 0.0
    for j in range(length):
        held += delta[row[j]]
        most = max(most, held)
    return most


@compiled
def _critical(rows, time, lag, up, node, lengths, buffer, makespan, pairs):
    """Follow one critical path back from the end, taking turns by chance. Fills ``pairs`` with (node, place) of
    neighbours on it that could change places; returns how many."""
    starts, turns, ends, places = buffer
    n, ties, found = -1, 0, 0
    for m in range(rows.shape[0]):
        last = lengths[m] - 1
        if last >= 0 and starts[m, last] + time[rows[m, last]] == makespan:
            ties += 1
            if np.random.randint(ties) == 0:
                n = m
    j = lengths[n] - 1
    while True:
        op, turn, start = rows[n, j], turns[n, j], starts[n, j]
        before = up[op]
        by_node = j > 0 and starts[n, j - 1] + time[rows[n, j - 1]] == start
        by_chain = before >= 0 and ends[before, turn] + lag[op] == start
        if by_node:
            other = rows[n, j - 1]
            if other != op and not (before == other and turns[n, j - 1] == turn):
                pairs[found, 0], pairs[found, 1] = n, j - 1
                found += 1
        if by_node and by_chain and np.random.randint(2) == 0:
            by_node = False
        if by_node:
            j -= 1
        elif by_chain:
            n, j = node[before], places[before, turn]
        else:
            return found


@compiled
def _heavy(rows, delta, lengths, cap, pairs):
    """Places where a node holds more than ``cap`` and gives some back right after: swapping the two lowers the peak."""
    found = 0
    for n in range(rows.shape[0]):
        held = 0.0
        for j in range(lengths[n] - 1):
            held += delta[rows[n, j]]
            if held > cap + 1e-9 and delta[rows[n, j]] > 0 and delta[rows[n, j + 1]] < 0:
                pairs[found, 0], pairs[found, 1] = n, j
                found += 1
    return found


@compiled
def anneal(rows, table, cap, target, hot, cold, steps, seed, best, one, two, pairs):
    """Annealing by swaps of neighbours: on a critical path while the makespan is over ``target``, at a peak while a
    node holds more than ``cap``. The cost is what is over the target plus what all nodes together are over the cap.

    Args:
        rows: start; left in the last state. best: filled with the best state.
        one, two: `buffers`; pairs: (sum of lengths, 2) integers.
    Returns:
        cost of ``best``; 0 is a schedule within target and cap.
    """
    np.random.seed(seed)
    node, up, lag, time, delta, _, _, _, lengths, _ = table
    peaks = np.array([peak(rows[n], lengths[n], delta) for n in range(rows.shape[0])])
    now = evaluate(rows, table, one)
    over = np.maximum(peaks - cap, 0.0).sum()
    cost = max(now - target, 0.0) + over
    least = cost
    best[:] = rows
    for step in range(steps):
        if least <= 1e-9:
            break
        heat = hot * (cold / hot) ** (step / steps)
        if over > 1e-9 and (now <= target or np.random.random() < 0.5):
            found = _heavy(rows, delta, lengths, cap, pairs)
        else:
            found = _critical(rows, time, lag, up, node, lengths, one, now, pairs)
        if found == 0:
            continue
        pick = np.random.randint(found)
        n, j = pairs[pick, 0], pairs[pick, 1]
        rows[n, j], rows[n, j + 1] = rows[n, j + 1], rows[n, j]
        after = evaluate(rows, table, two)
        high = peak(rows[n], lengths[n], delta)
        more = over - max(peaks[n] - cap, 0.0) + max(high - cap, 0.0)
        fresh = max(after - target, 0.0) + more
        if after < 0 or (fresh > cost and np.random.random() >= math.exp((cost - fresh) / heat)):
            rows[n, j], rows[n, j + 1] = rows[n, j + 1], rows[n, j]
            continue
        one, two = two, one
        now, over, cost, peaks[n] = after, more, fresh, high
        if cost < least:
            least = cost
            best[:] = rows
    return least
