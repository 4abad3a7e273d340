"""Schedules by constraint programming (CP-SAT): proofs for small problems, improvement of large ones.

One interval per op and micro-batch, no overlap on a node, micro-batches of a stage in index order. Memory is a
cumulative constraint over the time from a forward's start to the end of the op that frees it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from gamut.plan.pipeline import FORWARD, Problem, simulate
from gamut.plan.pipeline_fused import ways

UNITS = 1000  # whole numbers per unit of memory


@dataclass(frozen=True)
class Proof:
    """``rows`` is None if there is no schedule, or none was found; then ``status`` tells which.

    status: "optimal", "feasible", "impossible" or "unknown". ``bound``: no schedule is better than this.
    """

    status: str
    rows: tuple[str, ...] | None
    makespan: float
    peak_memory: float
    bound: float
    seconds: float


def solve(
    problem: Problem,
    *,
    seconds: float = 60.0,
    deadline: int | None = None,
    cap: float | None = None,
    least_memory: bool = False,
    start: Iterable[str] | None = None,
    workers: int = 1,
    seed: int = 0,
) -> Proof:
    """The shortest schedule; or, with ``least_memory``, the one within ``deadline`` that needs the least memory.

    Args:
        deadline: latest end, in whole time units; None: no limit.
        cap: most memory of a node; None: no limit.
        start: a schedule to begin from.
    Raises:
        ValueError: times are not whole numbers, or least_memory without a deadline.
    """
    cp_model = _solver()
    if not all(float(x).is_integer() for op in problem.ops for x in (op.time, op.lag)):
        raise ValueError("CP-SAT needs whole times; multiply all of them until they are")
    if least_memory and deadline is None:
        raise ValueError("least_memory needs a deadline: the makespan within which memory is to be least")
    model, horizon = cp_model.CpModel(), int(deadline or sum(problem.work))
    starts = _intervals(model, problem, horizon)
    peak = _memory(model, problem, starts, horizon, cap, least_memory)
    if peak is not None and least_memory:
        model.minimize(peak)
    elif deadline is None:
        makespan = model.new_int_var(0, horizon, "makespan")
        for (index, turn), begin in starts.items():
            if turn == problem.ops[index].count - 1:
                model.add(makespan >= begin + int(problem.ops[index].time))
        model.minimize(makespan)
    if start is not None:
        for _, index, turn, begin, _ in simulate(problem, start).spans:
            model.add_hint(starts[index, turn], int(begin))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds, solver.parameters.num_workers = seconds, workers
    solver.parameters.random_seed = seed
    status = {cp_model.OPTIMAL: "optimal", cp_model.FEASIBLE: "feasible", cp_model.INFEASIBLE: "impossible"}.get(
        solver.solve(model), "unknown"
    )
    if status in ("impossible", "unknown"):
        return Proof(status, None, float("inf"), float("inf"), solver.best_objective_bound, solver.wall_time)
    codes: list[list[tuple[int, int]]] = [[] for _ in range(problem.nodes)]
    for (index, _), begin in starts.items():
        codes[problem.ops[index].node].append((solver.value(begin), index))
    rows = problem.rows([index for _, index in sorted(row)] for row in codes)
    timing = simulate(problem, rows)
    bound = solver.best_objective_bound / (UNITS if least_memory else 1)
    return Proof(status, rows, timing.makespan, timing.peak_memory, bound, solver.wall_time)


def _solver():
    try:
        from ortools.sat.python import cp_model
    except ImportError as error:
        raise ImportError("exact schedules need ortools: pip install gamut[plan]") from error
    return cp_model


def _intervals(model, problem: Problem, horizon: int) -> dict:
    """Start variables by (op, micro-batch), with everything but memory."""
    head, tail = ways(problem)
    starts, intervals = {}, [[] for _ in range(problem.nodes)]
    for index, op in enumerate(problem.ops):
        time = int(op.time)
        for turn in range(op.count):
            low = int(head[index]) + turn * time
            high = horizon - int(tail[index]) - time * (op.count - turn)
            begin = model.new_int_var(low, max(low, high), f"{op.letter}{turn}@{op.node}")
            if high < low:
                model.add_bool_or([])
            starts[index, turn] = begin
            intervals[op.node].append(model.new_fixed_size_interval_var(begin, time, ""))
            if turn:
                model.add(begin >= starts[index, turn - 1] + time)
    for index, op in enumerate(problem.ops):
        if op.up >= 0:
            gap = int(problem.ops[op.up].time + op.lag)
            for turn in range(op.count):
                model.add(starts[index, turn] >= starts[op.up, turn] + gap)
    for row in intervals:
        model.add_no_overlap(row)
    return starts


def _memory(model, problem: Problem, starts: dict, horizon: int, cap: float | None, wanted: bool):
    """Bound what each node holds; the variable for the peak of all nodes, or None if nothing asks for it."""
    if cap is None and not wanted:
        return None
    total = round(UNITS * sum(chain.memory * chain.micro * len(chain.nodes) for chain in problem.chains))
    peak = model.new_int_var(0, total if cap is None else round(UNITS * cap), "peak")
    for node in range(problem.nodes):
        held, needs = [], []
        for index in problem.by_letter[node].values():
            op = problem.ops[index]
            if op.kind != FORWARD:
                continue
            last = index + (2 if problem.chains[op.chain].weight else 1)
            for turn in range(op.count):
                end = starts[last, turn] + int(problem.ops[last].time)
                size = model.new_int_var(0, horizon, "")
                held.append(model.new_interval_var(starts[index, turn], size, end, ""))
                needs.append(round(UNITS * op.delta))
        model.add_cumulative(held, needs, peak)
    return peak
