"""The compiled search: its evaluator against the exact one, what it reaches in seconds, and proofs by CP-SAT."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gamut.plan.pipeline import Chain, Problem, simulate
from gamut.plan.pipeline_fused import INSTANCES, PUBLISHED, Fused, greedy, least_memory, lower_bound, serial

SMALL = Fused("a/b", 4, 2, 4, 2, 2, 2, 1.0, 1.0)
KEPT = Path(__file__).parent.parent / "benchmarks/results/fused_schedules.json"
numba = pytest.importorskip("numba", reason="the search without numba is slow: pip install gamut[plan]")


@pytest.fixture(scope="module")
def searched():
    from gamut.plan.pipeline_search import Search

    found = Search(INSTANCES[2].problem, seed=1)
    found.run(20.0, memory_goal=15.60)  # CPU seconds at most; it stops when bound and memory are reached
    return found


def test_compiled_evaluator_is_the_exact_one():
    """Makespan, every start and every peak of serial, greedy and random schedules; -1 where the exact one refuses."""
    from gamut.plan import pipeline_kernels as kernels

    rng, refused = np.random.default_rng(0), 0
    for problem in (INSTANCES[5].problem, Problem((Chain((0, 1, 0, 1), 3, 1, 2), Chain((1, 0), 2, 2, 3)), send=0.5)):
        table, buffer = kernels.tables(problem), kernels.buffers(problem)
        for start in (serial(problem), greedy(problem)):
            rows = kernels.pack(problem, start)
            for _ in range(30):
                node = rng.integers(problem.nodes)
                at = rng.integers(problem.lengths[node] - 1)
                rows[node, [at, at + 1]] = rows[node, [at + 1, at]]
                makespan = kernels.evaluate(rows, table, buffer)
                letters = problem.rows(row[:n] for row, n in zip(rows, problem.lengths, strict=True))
                if makespan < 0:
                    refused += 1
                    with pytest.raises(ValueError, match=r"deadlock|before the"):
                        simulate(problem, letters)
                    rows[node, [at, at + 1]] = rows[node, [at + 1, at]]
                    continue
                timing = simulate(problem, letters)
                assert makespan == timing.makespan
                peaks = [kernels.peak(row, n, table[4]) for row, n in zip(rows, problem.lengths, strict=True)]
                assert peaks == pytest.approx(timing.node_peaks)
                starts = [buffer[0][n, j] for n in range(problem.nodes) for j in range(problem.lengths[n])]
                assert starts == [span[3] for span in timing.spans]
    assert refused


PROBLEMS = st.builds(
    lambda nodes, chunks, micro, times, memory, send: Problem(
        (
            Chain(tuple(range(nodes)) * chunks, micro[0], times[0], times[1], 0.0, memory[0]),
            Chain(tuple(range(nodes))[::-1], micro[1], times[2], times[3], 0.0, memory[1]),
        ),
        send,
    ),
    st.integers(2, 4),
    st.integers(1, 2),
    st.tuples(*[st.integers(1, 5)] * 2),
    st.tuples(*[st.integers(1, 4)] * 4),
    st.tuples(*[st.sampled_from((0.5, 1.0, 1.75))] * 2),
    st.sampled_from((0, 0.5, 2)),
)


@settings(max_examples=40, deadline=None)
@given(PROBLEMS, st.randoms(use_true_random=False))
def test_random_moves_are_judged_alike_by_both_evaluators(problem, random):
    """Interleaved chunks, costs of sending, any times: what one refuses so does the other, and nothing is under a
    bound, be it of time or of memory."""
    from gamut.plan import pipeline_kernels as kernels

    table, buffer = kernels.tables(problem), kernels.buffers(problem)
    rows = kernels.pack(problem, greedy(problem, yielding=random.random() < 0.5))
    for _ in range(12):
        node = random.randrange(problem.nodes)
        at, to = (random.randrange(problem.lengths[node]) for _ in range(2))
        before = rows[node].copy()
        rows[node, : problem.lengths[node]] = np.insert(np.delete(before[: problem.lengths[node]], at), to, before[at])
        makespan = kernels.evaluate(rows, table, buffer)
        letters = problem.rows(row[:n] for row, n in zip(rows, problem.lengths, strict=True))
        if makespan < 0:
            with pytest.raises(ValueError, match=r"deadlock|before the"):
                simulate(problem, letters)
            rows[node] = before
            continue
        timing = simulate(problem, letters)
        assert makespan == timing.makespan >= lower_bound(problem) - 1e-9
        peaks = [kernels.peak(row, n, table[4]) for row, n in zip(rows, problem.lengths, strict=True)]
        assert peaks == pytest.approx(timing.node_peaks)
        assert timing.peak_memory >= least_memory(problem, timing.makespan) - 1e-9


@settings(max_examples=25, deadline=None)
@given(PROBLEMS, st.booleans(), st.integers(0, 99), st.floats(0.7, 1.5))
def test_rules_schedule_any_problem_within_their_cap(problem, backwards, seed, share):
    """Rules tuned at a cap that may be too small: locked, or a valid schedule within it, over both bounds."""
    from gamut.plan.pipeline_rules import Rules

    cap = share * simulate(problem, serial(problem)).peak_memory
    one = Rules(problem, np.random.default_rng(seed), lambda name, kernel, args: kernel(*args(100, seed)),
                backwards=backwards)  # fmt: skip
    if not one.begin(cap, 20):
        return
    one.tune(cap, lower_bound(problem), 1.0, 0.1, 1)
    makespan, rows = one.rows(cap)
    timing = simulate(problem, rows)
    assert lower_bound(problem) - 1e-9 <= timing.makespan <= makespan + 1e-9
    assert least_memory(problem, timing.makespan) - 1e-9 <= timing.peak_memory <= cap + 1e-9


@pytest.mark.parametrize("send", [0, 1])
def test_search_takes_any_problem(send):
    """Interleaved chunks against a plain pipeline, with and without a cost of sending: shorter than greedy, then
    smaller than the first schedule of that length."""
    from gamut.plan.pipeline_search import Search

    problem = Problem((Chain((0, 1, 2, 3) * 2, 8, 1, 2), Chain((3, 2, 1, 0), 8, 2, 4, memory=2.0)), send)
    search = Search(problem, seed=0)
    found = search.run(1.5)
    timing = simulate(problem, found.rows)
    assert lower_bound(problem) <= timing.makespan == found.makespan < simulate(problem, greedy(problem)).makespan
    assert least_memory(problem, timing.makespan) <= timing.peak_memory == pytest.approx(found.peak_memory)
    assert found.peak_memory <= search.shortest.peak_memory


def test_search_reaches_the_bound_in_the_least_memory(searched):
    """Instance 2: the paper's makespan and memory, 225 and 15.60 (greedy: 239 and 23.60), within a second or so."""
    assert searched.best.makespan == 225 and searched.best.peak_memory == 15.60
    timing = simulate(searched.problem, searched.best.rows)
    assert (timing.makespan, timing.peak_memory) == (searched.best.makespan, pytest.approx(searched.best.peak_memory))
    assert searched.shortest.makespan == 225
    assert [line["makespan"] for line in searched.best.trace] == sorted(
        (line["makespan"] for line in searched.best.trace), reverse=True
    )


def test_rules_read_backwards_give_schedules(searched):
    """Random rules, forwards and backwards in time: what the compiled scheduler says is what the evaluator says."""
    from gamut.plan.pipeline_rules import Rules, mirrored

    fresh = np.random.default_rng(3)
    problems = (
        INSTANCES[1].problem,
        INSTANCES[5].problem,
        Problem((Chain((0, 1, 0, 1), 3, 1, 2), Chain((1, 0), 2, 2, 3)), send=0.5),
    )
    for problem in problems:
        assert mirrored(mirrored(problem)) == problem
        for backwards in (False, True):
            side = Rules(problem, fresh, lambda name, kernel, args: kernel(*args(200, 1)), backwards=backwards)
            for cap in (1e9, 24.0, 20.0):
                assert side.begin(cap, 20)
                before = side.makespan
                side.tune(cap, lower_bound(problem), 1.0, 0.1, 1)
                makespan, rows = side.rows(cap)
                timing = simulate(problem, rows)
                assert timing.makespan <= makespan == side.makespan <= before
                assert timing.peak_memory <= cap + 1e-9
    side.kept = (np.ones_like(side.kept[0]), side.kept[1])
    assert side.rows(0.5) == (-1.0, ()), "rules that may hold nothing are locked"


def test_search_within_the_memory_of_the_serial_schedule():
    from gamut.plan.pipeline_search import Search

    one = INSTANCES[5]
    found = Search(one.problem, room=one.serial_memory).run(2.0, memory_goal=one.serial_memory)
    assert found.makespan <= 231 and found.peak_memory <= 15.60
    with pytest.raises(ValueError, match=r"serial schedule: allowed 15\.6 or more, got 9"):
        Search(one.problem, room=9.0)


def test_tries_of_fixed_steps_repeat(searched):
    """A try is a function of its seed, whatever the machine: the same schedule twice, another for another seed."""
    from gamut.plan.pipeline_search import Search

    made = []
    for seed in (3, 3, 4):
        search = Search(INSTANCES[4].problem, room=20.0, goal=366)
        assert search.repeat(20.0, seed, 300, 0.05) == (search.best.makespan <= 366)
        made.append(search.best.rows)
    assert made[0] == made[1] != made[2]


def test_search_takes_what_is_known_and_refuses_no_time(searched):
    from gamut.plan.pipeline_search import Search, search

    again = Search(searched.problem, start=(searched.best.rows,))
    assert again.best.rows == searched.best.rows and again.best.by == "given"
    with pytest.raises(ValueError, match="seconds > 0, got 0"):
        search(SMALL.problem, 0)


def test_solver_proves_a_small_optimum():
    pytest.importorskip("ortools", reason="pip install gamut[plan]")
    from gamut.plan.pipeline_exact import solve

    proof = solve(SMALL.problem, seconds=20)
    assert proof.status == "optimal" and proof.makespan == proof.bound == simulate(SMALL.problem, proof.rows).makespan
    assert solve(SMALL.problem, seconds=20, deadline=int(proof.makespan) - 1).status == "impossible"
    least = solve(SMALL.problem, seconds=20, deadline=int(proof.makespan), least_memory=True, start=proof.rows)
    assert least.makespan <= proof.makespan and least.peak_memory <= proof.peak_memory
    with pytest.raises(ValueError, match="whole times"):
        solve(Problem((Chain((0,), 1, 0.5, 1),)))
    with pytest.raises(ValueError, match="needs a deadline"):
        solve(SMALL.problem, least_memory=True)


def test_kept_schedules_are_what_they_say():
    """Every schedule in the results: valid, as short and as small as stated, never under the bound."""
    kept = json.loads(KEPT.read_text())["instances"]
    assert kept, "no schedules kept: python -m benchmarks.pipeline"
    for entry in kept:
        one = INSTANCES[entry["id"]]
        assert entry["lower_bound"] == one.bound
        for kind in ("latency_best", "memory_best"):
            timing = simulate(one.problem, entry[kind]["nodes"])
            assert timing.makespan == entry[kind]["makespan"] >= one.bound
            assert timing.peak_memory == pytest.approx(entry[kind]["peak_memory"]) and timing.peak_memory >= (
                one.least_memory if timing.makespan == one.bound else 0
            )
            assert {"command", "seed", "cpu_seconds"} <= set(entry[kind])


BEHIND = {1: 16.0, 8: 26.96}  # memory of ours, above the published


def test_kept_schedules_are_as_good_as_published():
    """RLHFuse's Table 3, found with 768 cores: all at their bounds (9 is published at 613), in no more memory but for
    two, in less on seven of the eight where there is less to be had."""
    best = {entry["id"]: entry["memory_best"] for entry in json.loads(KEPT.read_text())["instances"]}
    less = set()
    for index, (makespan, memory) in enumerate(PUBLISHED):
        assert best[index]["makespan"] == INSTANCES[index].bound <= makespan
        assert best[index]["peak_memory"] <= BEHIND.get(index, memory) + 1e-9
        if best[index]["peak_memory"] < memory - 1e-9:
            less.add(index)
    assert less >= {0, 3, 4, 6, 7, 9, 10}
