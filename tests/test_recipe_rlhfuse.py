"""The recipe of RLHFuse in its planning form: its numbers, its claims at tiny size, what it refuses."""

from dataclasses import replace

import pytest

from gamut.evals.claims import check
from gamut.io.report import render
from gamut.plan.pipeline import simulate
from gamut.plan.pipeline_export import load
from gamut.recipes.rlhfuse import CLAIMS, TINY, main, plan, solve

pytest.importorskip("numba", reason="the search without numba is slow: pip install gamut[plan]")


@pytest.fixture(scope="module")
def result():
    return main(replace(TINY, seconds=8.0, instances=(2, 5)))


def test_claims_hold_in_seconds(result):
    assert [text for text, passed in check(CLAIMS, result) if not passed] == []


def test_the_parts_add_up(result):
    """Samples a second are those of the two stages; the serial schedule's time is the given one."""
    metrics = result.metrics
    assert metrics["training/speedup"] == pytest.approx(210 / 165, rel=0.05)
    before = TINY.batch / metrics["samples_per_s/not fused"]
    assert metrics["iteration/speedup"] == pytest.approx(metrics["samples_per_s"] / metrics["samples_per_s/not fused"])
    stages = before - TINY.training
    after = stages / metrics["stages/speedup"] + TINY.training / metrics["training/speedup"]
    assert metrics["iteration/speedup"] == pytest.approx(before / after)


def test_the_report_shows_both_fusions(result):
    shown = "".join(render(block) for block in result.notes["report"])
    assert "when to migrate the long tail" in shown and "two pipelines on the same nodes" in shown
    assert "65B · backward of micro-batch 31" in shown
    assert shown.count('class="line"') == shown.count("<h3>") >= 3, "serial, greedy and fused schedules are drawn"


def test_the_schedule_is_kept_for_execution(tmp_path):
    from gamut.io.runs import Run

    run = Run.create(tmp_path, "rlhfuse", {})
    small = replace(TINY, gpus=16, actor_stages=4, critic_stages=2, tp=2, mini_batch=16, seconds=0.5, instances=())
    made = main(small, run)
    problem, rows = load(run.samples / "schedule.json")
    bound = plan(small)["bound"]
    assert simulate(problem, rows).makespan == pytest.approx(made.metrics["training/over_bound"] * bound)


def test_what_cannot_be_planned():
    with pytest.raises(ValueError, match="instances are numbered 0 to 11, got 12"):
        solve(replace(TINY, instances=(12,)))
    with pytest.raises(ValueError, match="unknown model '7B'; allowed: 13B, 33B, 65B"):
        plan(replace(TINY, actor="7B"))
    assert plan(TINY) == {
        "blocks of nodes": 2, "nodes of a block": 16, "micro-batches": 32, "serial makespan": 210, "bound": 165,
    }  # fmt: skip
