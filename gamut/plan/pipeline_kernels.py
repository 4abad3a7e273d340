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
def dispatch(window, bias, room, table, rows, ends, peaks):
    """List scheduling: always the op that can start first, ops of small ``bias`` (time units) before others.

    Args:
        window: per forward op, most micro-batches that its stage may hold.
        room: most memory that a node may hold; forwards wait for it.
        rows, ends, peaks: filled; ``peaks`` by node.
    Returns:
        makespan, or -1 if windows and room lock it.
    """
    node, up, lag, time, delta, count, down, release, lengths, own = table
    nodes = rows.shape[0]
    done, length = np.zeros(len(up), np.int64), np.zeros(nodes, np.int64)
    clock, held = np.zeros(nodes), np.zeros(nodes)
    chosen, begin = np.full(nodes, -1), np.zeros(nodes)
    peaks[:] = 0.0
    changed = -1
    for _ in range(lengths.sum() + 1):
        for n in range(nodes):
            if changed >= 0 and n != node[changed] and (down[changed] < 0 or n != node[down[changed]]):
                continue
            least, chosen[n] = math.inf, -1
            for op in own[n]:
                if op < 0:
                    break
                if done[op] == count[op]:
                    continue
                ready, before, turn = clock[n], up[op], done[op]
                if before >= 0:
                    if done[before] <= turn:
                        continue
                    ready = max(ready, ends[before, turn] + lag[op])
                if release[op] >= 0 and (turn - done[release[op]] >= window[op] or held[n] + delta[op] > room + 1e-9):
                    continue
                if ready + bias[op] < least:
                    least, chosen[n], begin[n] = ready + bias[op], op, ready
        first = -1
        for n in range(nodes):
            if chosen[n] >= 0 and (first < 0 or begin[n] < begin[first]):
                first = n
        if first < 0:
            break
        changed = chosen[first]
        rows[first, length[first]] = changed
        length[first] += 1
        clock[first] = begin[first] + time[changed]
        ends[changed, done[changed]] = clock[first]
        done[changed] += 1
        held[first] += delta[changed]
        peaks[first] = max(peaks[first], held[first])
    return clock.max() if length.sum() == lengths.sum() else -1.0


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


@compiled
def tune(window, bias, room, table, cap, target, hot, cold, steps, seed, best_window, best_bias, rows, ends, peaks):
    """Annealing over the windows and biases of `dispatch`; the cost is that of `anneal`, with a little for the mean
    peak.

    Returns:
        cost of (``best_window``, ``best_bias``), which are filled; ``rows`` is left in some other state.
    """
    np.random.seed(seed)
    node, up, _, time, delta, _, _, release, _, _ = table
    ops, nodes, unit = len(up), rows.shape[0], time.max()
    cost = least = math.inf
    window_new, bias_new = window.copy(), bias.copy()
    for step in range(steps):
        heat = hot * (cold / hot) ** (step / steps)
        makespan = dispatch(window_new, bias_new, room, table, rows, ends, peaks)
        fresh = math.inf
        if makespan >= 0:
            fresh = max(makespan - target, 0.0) + np.maximum(peaks - cap, 0.0).sum() + 1e-3 * peaks.mean()
        if step == 0 or fresh <= cost or np.random.random() < math.exp((cost - fresh) / heat):
            cost = fresh
            window[:], bias[:] = window_new, bias_new
            if cost < least:
                least = cost
                best_window[:], best_bias[:] = window, bias
        window_new[:], bias_new[:] = window, bias
        for _ in range(1 + np.random.randint(3)):
            op = np.random.randint(ops)
            low, high = node[op], node[op]
            if np.random.random() < 0.5:  # a whole stretch of nodes at once
                low, high = min(low, np.random.randint(nodes)), max(high, np.random.randint(nodes))
            by_window = release[op] >= 0 and np.random.random() < 0.5
            shift = (1.0 if np.random.random() < 0.5 else -1.0) if by_window else (np.random.random() - 0.5) * unit
            for other in range(ops):
                same = delta[other] == delta[op] and time[other] == time[op]  # same model, same direction
                if other == op or (same and low <= node[other] <= high):
                    if by_window:
                        window_new[other] = max(1, window_new[other] + int(shift))
                    else:
                        bias_new[other] = max(0.0, bias_new[other] + shift)
    return least
