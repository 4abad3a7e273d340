"""Schedules of pipelines: the exact evaluator, the published numbers, closed forms, export and pictures."""

import json
import os
import re
from collections import deque
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gamut.plan.fusion import Cluster, fused_problem, migrations
from gamut.plan.pipeline import Chain, Problem, simulate
from gamut.plan.pipeline_classic import (
    CLASSICS,
    chimera,
    dualpipe,
    gpipe,
    idle,
    interleaved,
    plain,
    zero_bubble,
    zero_bubble_v,
)
from gamut.plan.pipeline_command import compare, main, parse_models
from gamut.plan.pipeline_export import instructions, load, save
from gamut.plan.pipeline_fused import INSTANCES, Fused, fill_gaps, greedy, lower_bound, serial
from gamut.plan.timeline import draw

# RLHFuse's released search (FlexFusion/FlexFusion), instances 0 to 11
SERIAL = (813, 477, 309, 819, 483, 315, 708, 420, 276, 711, 423, 279)
GREEDY = (741, 425, 239, 755, 419, 225, 632, 366, 214, 651, 363, 219)
GREEDY_MEMORY = (42.90, 33.30, 23.60, 42.90, 31.25, 23.60, 75.44, 58.48, 42.24, 75.44, 52.48, 41.24)
BOUND = (708, 372, 225, 702, 366, 225, 618, 330, 186, 606, 318, 186)
FILLED = (713, 393, 229, 727, 391, 225, 618, 338, 210, 627, 339, 186)
FILLED_BY_END = (729, 401, 237, 719, 385, 225, 632, 354, 210, 620, 332, 192)


@pytest.mark.parametrize("index", range(12))
def test_published_columns(index):
    """Serial, greedy time and memory, bound: every number of the table, exactly."""
    one = INSTANCES[index]
    assert (one.serial, one.bound) == (SERIAL[index], BOUND[index])
    timing = simulate(one.problem, greedy(one.problem))
    assert (timing.makespan, timing.peak_memory) == (GREEDY[index], pytest.approx(GREEDY_MEMORY[index], abs=1e-9))
    assert simulate(one.problem, fill_gaps(one.problem)).makespan == FILLED[index]
    assert simulate(one.problem, fill_gaps(one.problem, soonest_end=True)).makespan == FILLED_BY_END[index]


def test_serial_schedule_and_formula():
    """The formula puts a barrier between the models; without it the second model starts in the first one's drain."""
    for one in INSTANCES:
        timing = simulate(one.problem, serial(one.problem))
        assert one.bound <= timing.makespan < one.serial
        assert timing.peak_memory == pytest.approx(one.serial_memory)


def test_published_schedules():
    """The 17 schedules released with the paper, if the data folder is there."""
    path = Path(os.environ.get("GAMUT_DATA", "../shared/data")) / "fused_pipeline/published_schedules.json"
    if not path.exists():
        pytest.skip("needs $GAMUT_DATA/fused_pipeline")
    found = 0
    for entry in json.loads(path.read_text())["instances"]:
        for kind in {"latency_best", "memory_best"} & set(entry):
            timing = simulate(INSTANCES[entry["id"]].problem, entry[kind]["nodes"])
            assert timing.makespan == entry[kind]["makespan"]
            assert timing.peak_memory == pytest.approx(entry[kind]["peak_memory"], abs=1e-6)
            found += 1
    assert found == 17


def test_two_stages_by_hand():
    """F takes 1, B 2, one unit of sending: 0-1 F at node 0, 2-3 F at node 1, B 3-5, back at node 0 from 6 to 8."""
    problem = Problem((Chain((0, 1), 1, 1, 2, memory=3.0),), send=1.0)
    timing = simulate(problem, ("Ff", "Ff"))
    assert timing.spans == ((0, 0, 0, 0.0, 1.0), (0, 1, 0, 6.0, 8.0), (1, 2, 0, 2.0, 3.0), (1, 3, 0, 3.0, 5.0))
    assert (timing.makespan, timing.peak_memory, timing.work) == (8.0, 3.0, (3.0, 3.0))
    assert timing.bubble == pytest.approx(1 - 6 / 16)
    assert lower_bound(problem) == 8.0


def test_what_cannot_run_says_why():
    problem = Problem((Chain((0, 1), 2, 1, 2), Chain((1, 0), 2, 1, 2)))
    good = ("FFGgGgff", "GGFfFfgg")
    assert simulate(problem, good).makespan > 0
    with pytest.raises(ValueError, match="2 nodes, the schedule has 1 rows"):
        simulate(problem, good[:1])
    with pytest.raises(ValueError, match="node 1 must run 'f' 2 times, its row has 1; letters of this node: FGfg"):
        simulate(problem, (good[0], "GGFfFgg"))
    with pytest.raises(ValueError, match="node 0 must run 'H' 0 times"):
        simulate(problem, ("FFGgGgffH", good[1]))
    with pytest.raises(ValueError, match="node 0 asks for 'g' of micro-batch 0 at position 2, before the 'G' of it"):
        simulate(problem, ("FFgGGgff", good[1]))
    with pytest.raises(
        ValueError, match="deadlock: node 0 waits for 'G' 0 of node 1; node 1 waits for 'F' 0 of node 0"
    ):
        simulate(problem, ("GgFFGgff", "FfGGFfgg"))


def test_wrong_problems_say_why():
    with pytest.raises(ValueError, match="micro-batches >= 1; got"):
        Chain((0, 1), 0, 1, 2)
    for forward, said in ((0, "0"), (-2, "-2"), (float("nan"), "nan"), (float("inf"), "inf")):
        with pytest.raises(ValueError, match=rf"forward > 0, .*; critic has {said}, 2, 0, 1"):
            Chain((0, 1), 1, forward, 2, model="critic")
    with pytest.raises(ValueError, match="at least one chain"):
        Problem(())
    with pytest.raises(ValueError, match="send must be >= 0 and finite, got -1"):
        Problem((Chain((0,), 1, 1, 1),), send=-1)
    with pytest.raises(ValueError, match="27 lanes"):
        Problem((Chain((0,) * 27, 1, 1, 1),))
    with pytest.raises(ValueError, match="must divide the large one's; got 3 and 8"):
        Fused("a/b", 8, 3, 8, 8, 1, 1, 1.0, 1.0)


@pytest.mark.parametrize("nodes, micro", [(2, 4), (4, 8), (4, 12), (8, 16)])
def test_bubbles_of_classic_schedules_equal_the_closed_forms(nodes, micro):
    cases = [
        gpipe(nodes, micro, 3, 5),
        plain(nodes, micro, 3, 5),
        interleaved(nodes, micro, 4, 8),
        interleaved(nodes, micro, 3, 6, chunks=3),
        zero_bubble(nodes, micro),
        zero_bubble(nodes, micro, 3, 3, 2),
        zero_bubble(nodes, micro, twice=True),
        zero_bubble(nodes, micro, 3, 3, 1, twice=True),
        chimera(nodes),
        chimera(nodes, 1, 2),
    ]
    for case in cases:
        timing = simulate(case.problem, case.rows)
        assert idle(timing) == pytest.approx(case.bubble)
        assert timing.peak_memory == pytest.approx(case.held)


@pytest.mark.parametrize("times", [(1, 1, 1), (2, 2, 1), (3, 3, 2)])
@pytest.mark.parametrize("nodes, micro", [(2, 4), (4, 8), (6, 16), (8, 24)])
def test_bubbles_of_schedules_in_both_directions(nodes, micro, times):
    """ZB-V idles (P - 1)(b - w) on its worst node. DualPipe is (P/2 - 1)(f + b - w) longer than the work of a node, and
    never longer than the paper's (P/2 - 1)(F&B + B - 3 W)."""
    f, b, w = times
    case = zero_bubble_v(nodes, micro, *times)
    timing = simulate(case.problem, case.rows)
    assert (idle(timing), timing.peak_memory) == pytest.approx((case.bubble, nodes))
    case = dualpipe(nodes, micro, *times)
    timing = simulate(case.problem, case.rows)
    assert (timing.makespan - timing.work[0], timing.peak_memory) == pytest.approx((case.bubble, nodes + 1))
    assert case.bubble <= (nodes / 2 - 1) * ((f + b + w) + (b + w) - 3 * w)


@pytest.mark.parametrize("send", [0, 0.5, 3])
@pytest.mark.parametrize("nodes, micro", [(2, 5), (4, 3), (4, 8), (6, 13), (8, 16)])
def test_bubbles_with_a_cost_of_sending(nodes, micro, send):
    """A round trip of messages is lost once by GPipe, again and again by 1F1B."""
    for f, b in ((1, 2), (3, 5), (5, 3)):
        for case in (gpipe(nodes, micro, f, b, send=send), plain(nodes, micro, f, b, send=send)):
            assert idle(simulate(case.problem, case.rows)) == pytest.approx(case.bubble)


@pytest.mark.parametrize("name", sorted(CLASSICS))
def test_sending_never_shortens(name):
    """Any schedule of the literature at a higher cost of sending ends later or at the same time, and stays valid."""
    case = CLASSICS[name](4) if name == "chimera" else CLASSICS[name](4, 8)
    ends = [simulate(Problem(case.problem.chains, send), case.rows).makespan for send in (0, 0.5, 1, 4)]
    assert ends == sorted(ends) and ends[-1] > ends[0]


def test_classic_schedules_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match=r"ZB-V on 4 nodes needs .* at least 7 micro-batches, got 6"):
        zero_bubble_v(4, 6)
    with pytest.raises(ValueError, match="DualPipe needs even numbers of nodes and micro-batches, got 4 and 9"):
        dualpipe(4, 9)
    with pytest.raises(ValueError, match=r"DualPipe on 4 nodes needs .* at least 8 micro-batches, got 6"):
        dualpipe(4, 6)
    with pytest.raises(ValueError, match=r"interleaved 1F1B needs .* multiples of 4; got 4 nodes, 10 micro-batches"):
        interleaved(4, 10)
    with pytest.raises(ValueError, match="ZB-H2 on 4 nodes needs nodes >= 2 and at least 7 micro-batches, got 6"):
        zero_bubble(4, 6, twice=True)
    with pytest.raises(ValueError, match="even number of nodes, got 3"):
        chimera(3)


PROBLEMS = st.builds(
    lambda nodes, micro, times, send, split: Problem(
        (
            Chain(tuple(range(nodes)), micro, times[0], times[1], float(split)),
            Chain(tuple(range(nodes))[::-1], micro, 1, times[2]),
        ),
        send,
    ),
    st.integers(2, 4),
    st.integers(1, 4),
    st.tuples(*[st.integers(1, 4)] * 3),
    st.integers(0, 2),
    st.booleans(),
)


@settings(max_examples=40, deadline=None)
@given(PROBLEMS, st.randoms(use_true_random=False))
def test_random_moves_keep_what_must_hold(problem, random):
    """Schedules under random moves: either refused, or every op waits for its upstream and no two overlap on a node."""
    if problem.chains[0].weight:
        rows = tuple(_legal(problem))
    else:
        rows = greedy(problem)
    for _ in range(10):
        node, codes = random.randrange(problem.nodes), [list(row) for row in rows]
        place = random.randrange(len(codes[node]) - 1)
        codes[node][place], codes[node][place + 1] = codes[node][place + 1], codes[node][place]
        try:
            timing = simulate(problem, map("".join, codes))
        except ValueError as error:
            assert re.search("deadlock|before the", str(error))
            continue
        rows = tuple(map("".join, codes))
        ends = {(index, turn): end for _, index, turn, _, end in timing.spans}
        assert len(ends) == sum(problem.lengths)
        before = dict.fromkeys(range(problem.nodes), 0.0)
        for node, index, turn, start, end in timing.spans:
            op = problem.ops[index]
            ready = ends[op.up, turn] + op.lag if op.up >= 0 else 0.0
            assert start == max(before[node], ready) and end == start + op.time
            before[node] = end
        assert timing.makespan >= lower_bound(problem) - 1e-9


def _legal(problem):
    """One micro-batch after the other, weight gradients last: always a schedule."""
    for letters in problem.by_letter:
        first = [one for one in letters if not one.isdigit()]
        own = [one for one in first if one in "Ff"]
        other = [one for one in first if one not in "Ff"]
        micro = problem.chains[0].micro
        yield "".join(sorted(own)) * micro + "".join(sorted(other)) * micro + "0" * micro


def _execute(problem, lists):
    """Run instruction lists with one queue per pair of ranks; returns the order of computations of each rank."""
    queues, place, done = {}, [0] * len(lists), [[] for _ in lists]
    moved = True
    while moved:
        moved = False
        for rank, steps in enumerate(lists):
            while place[rank] < len(steps):
                step = steps[place[rank]]
                label = (step.do[-1], step.chain, step.stage, step.micro)
                if step.do.startswith("SEND"):
                    queues.setdefault((rank, step.peer), deque()).append(label)
                elif step.do.startswith("RECV"):
                    queue = queues.get((step.peer, rank))
                    if not queue:
                        break
                    assert queue.popleft() == label, "the two ends see messages in different orders"
                else:
                    done[rank].append(label)
                place[rank] += 1
                moved = True
    assert all(at == len(steps) for at, steps in zip(place, lists, strict=True)), "ranks wait for one another"
    assert not any(queues.values())
    return done


@pytest.mark.parametrize("index", [2, 5, 8])
def test_instruction_lists_run_to_their_end(index):
    problem = INSTANCES[index].problem
    rows = greedy(problem)
    done = _execute(problem, instructions(problem, rows))
    letters = [
        [problem.ops[i].letter for _, i, *_ in simulate(problem, rows).spans if problem.ops[i].node == n]
        for n in range(problem.nodes)
    ]
    assert ["".join(one) for one in letters] == list(rows)
    assert [len(one) for one in done] == list(problem.lengths)


def test_instruction_lists_of_interleaved_and_split_schedules():
    for case in (interleaved(4, 8), CLASSICS["zb-h2"](4, 8), zero_bubble_v(4, 8), dualpipe(4, 8)):
        done = _execute(case.problem, instructions(case.problem, case.rows))
        assert [len(one) for one in done] == list(case.problem.lengths)


def test_schedule_files(tmp_path):
    problem = parse_models("a:4:4:2:4:1,b:2:2:1:2:1", 1.0)
    rows = greedy(problem)
    again, same = load(save(tmp_path / "s.json", problem, rows))
    assert (again, same) == (problem, rows)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is no schedule .*--save FILE writes one"):
        load(tmp_path / "bad.json")


def test_plans_from_the_command_line():
    one, blocks = fused_problem(Cluster())
    assert blocks == 2
    assert (one.stages0, one.stages1, one.micro0, one.micro1) == (16, 8, 32, 16)
    assert one.forward0 == one.forward1 and (one.memory0, one.memory1) == (1.64, 2.0)  # as instance 7
    with pytest.raises(ValueError, match="a model is NAME:STAGES"):
        parse_models("a:4", 0.0)
    with pytest.raises(ValueError, match="allowed: divisors of the first model's 4"):
        parse_models("a:4:4:2:4:1,b:3:2:1:2:1", 0.0)
    with pytest.raises(ValueError, match="unknown model '7B'; allowed: 13B, 33B, 65B"):
        fused_problem(Cluster(actor="7B"))
    with pytest.raises(ValueError, match=r"stages must divide .* got 16 and 8 stages, tp 8, 100 GPUs"):
        fused_problem(Cluster(gpus=100))
    with pytest.raises(ValueError, match="mini_batch 63 must be a multiple"):
        fused_problem(Cluster(mini_batch=63))
    with pytest.raises(ValueError, match="longest must be positive, got 0"):
        Cluster(longest=0)
    problem = parse_models("a:4:4:2:4:1,b:2:2:1:2:1", 0.0)
    assert list(compare(problem, 0, 0)) == ["serial 1F1B", "greedy"]
    chunked = parse_models("a:4:8:2:4:1:2,b:2:4:1:2:1:3", 0.5)
    assert [chain.nodes for chain in chunked.chains] == [(0, 1, 2, 3) * 2, (1, 0) * 3, (3, 2) * 3]
    assert chunked.work == parse_models("a:4:8:2:4:1,b:2:4:1:2:1", 0.5).work
    assert all(simulate(chunked, rows).makespan >= lower_bound(chunked) for rows in compare(chunked, 0, 0).values())


@pytest.mark.parametrize("typed, said", [
    ("--instance 12", "instance must be 0 to 11, got 12; own problems: --models"),
    ("--models a:4:4:-2:4:1", "a has -2, 4, 0, 1"),
    ("--models a:0:4:2:4:1", "model a has 0 stages in 1 chunks; allowed: stages of 1 or more"),
    ("--models a:4:4:2:4:1:0", "model a has 4 stages in 0 chunks"),
    ("--models a:4:4:2:4:1:x", "MEMORY.:CHUNKS., got 'a:4:4:2:4:1:x'"),
    ("--models a:4:4:2:4:1 --send -1", "send must be >= 0 and finite, got -1"),
    ("--classic foo", "unknown schedule 'foo'; allowed: gpipe"),
    ("--seconds -1", "--seconds must be 0 or more and finite, got -1"),
    ("--cap nan", "--cap must be 0 or more and finite, got nan"),
    ("--out a.png", r"a \.html file, or a single schedule to an \.svg; got a\.png"),
])  # fmt: skip
def test_the_command_says_what_is_wrong(typed, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said):
        main(["--seconds", "0", *typed.split()])
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_clusters_have_the_instances_of_the_table():
    """The rule layers x width^2 gives the released ratios of times and memory for all four pairs of sizes."""
    for actor, critic, stages, index in (
        ("65B", "33B", (16, 8), 7),
        ("65B", "33B", (16, 16), 10),
        ("33B", "13B", (8, 4), 0),
        ("33B", "13B", (8, 8), 3),
    ):
        plan = Cluster(8 * stages[0], actor, critic, *stages, mini_batch=INSTANCES[index].micro0)
        one, blocks = fused_problem(plan)
        assert blocks == 1 and (one.stages1, one.micro1) == (INSTANCES[index].stages1, INSTANCES[index].micro1)
        want = INSTANCES[index]
        assert one.forward0 / one.forward1 == want.forward0 / want.forward1
        assert one.memory0 / one.memory1 == pytest.approx(want.memory0 / want.memory1, rel=0.01)


def test_the_long_tail_migrates_when_that_is_sooner():
    """Overlap is worth something, at most all of inference, and never makes an iteration later (section 4)."""
    plan = Cluster(longest=1024)
    plain, tried = migrations(plan)
    assert plain.threshold == 0 and plain.seconds == pytest.approx(plain.generation + plan.inference)
    best = min(tried.values(), key=lambda stage: stage.seconds)
    assert plain.generation <= best.seconds < plain.seconds
    assert all(stage.seconds <= plain.seconds for stage in tried.values())
    early = tried[0.2]
    assert early.keep < 64 and 0 < early.moved <= round(0.2 * plan.batch) and early.seconds <= 1.02 * best.seconds
    with pytest.raises(ValueError, match=r"generation with 65B needs . GPUs a replica, got 1"):
        migrations(Cluster(gpus=1, actor_stages=1, critic_stages=1, tp=1))


def test_pictures(tmp_path):
    one = INSTANCES[8]
    rows = greedy(one.problem)
    page = draw(
        tmp_path / "a.html", one.problem, {"greedy": rows, "serial": serial(one.problem)}, title="<Fused>"
    ).read_text()
    assert page.count('class="op"') == 2 * sum(one.problem.lengths) and "&lt;Fused&gt;" in page
    assert "65B · backward of micro-batch 15 · stage 15 on node 15" in page
    assert "node 0 idle · 186 to 214" in page, "bubbles can be pointed at, the one at the end too"
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert draw(tmp_path / "a.svg", one.problem, {"greedy": rows}, title="t").read_text().startswith("<svg")
    with pytest.raises(ValueError, match=r"a \.html file, or a single schedule to an \.svg; got .*a\.png"):
        draw(tmp_path / "a.png", one.problem, {"greedy": rows}, title="t")
