"""The twelve fused pipelines of RLHFuse's Table 3: search, keep the best, print the table.

    python -m benchmarks.pipeline --minutes 10                 # every instance, ten minutes of CPU time on each worker
    python -m benchmarks.pipeline --minutes 10 --instances 9   # goes on from the best schedule known
    python -m benchmarks.pipeline --table                      # prints what is known, searches nothing

results/fused_schedules.json keeps the best schedules, for time and for memory at that time, each with the command, the
seed and the seconds that made it; results/fused_pipeline.jsonl gets a line per search. Minutes are CPU time: on a busy
machine, or under nice, they take longer by the clock. Each instance is saved when it is done, so a search that was
stopped goes on where it was; the first search on a machine has numba compile for half a minute before.
"""

import datetime
import json
import math
import shlex
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gamut.io.env import environment
from gamut.io.files import atomic_write
from gamut.plan.pipeline import simulate
from gamut.plan.pipeline_fused import INSTANCES, fillers, greedy

RESULTS = Path(__file__).parent / "results"
SCHEDULES = RESULTS / "fused_schedules.json"
# makespan and peak memory of the last schedules published with the paper (FlexFusion/FlexFusion, results/, Apache-2.0)
PUBLISHED = (
    (708, 19.70),
    (372, 15.75),
    (225, 15.60),
    (702, 20.50),
    (366, 18.55),
    (225, 15.60),
    (618, 39.72),
    (330, 29.88),
    (186, 26.24),
    (613, 38.72),
    (318, 32.16),
    (186, 26.24),
)
SIZES = {
    "pp0": "stages0",
    "pp1": "stages1",
    "m0": "micro0",
    "m1": "micro1",
    "fwd0": "forward0",
    "fwd1": "forward1",
    "mem0": "memory0",
    "mem1": "memory1",
}


@dataclass(frozen=True)
class Options:
    """What to search, and for how long."""

    minutes: float = 10.0  # CPU time of each worker on each instance
    instances: str = "0,1,2,3,4,5,6,7,8,9,10,11"  # as numbered in the released search
    workers: int = 1  # searches side by side, each with its own seed
    seed: int = 0
    fresh: bool = False  # do not start from the schedules found before
    table: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False  # only print the table


def known() -> dict[int, dict]:
    """Instance -> entry of fused_schedules.json."""
    if not SCHEDULES.exists():
        return {}
    return {entry["id"]: entry for entry in json.loads(SCHEDULES.read_text())["instances"]}


def _one(index: int, seconds: float, seed: int, start: tuple, goal_memory: float, loud: bool) -> dict:
    """One worker's search, as plain data."""
    from gamut.plan.pipeline_search import Found, Search

    began = time.perf_counter()

    def better(found: Found) -> None:
        if loud:
            cost = f"{found.makespan:g}   memory {found.peak_memory:g}"
            print(f"  {found.seconds:7.1f} s   {cost}   {found.by}", flush=True)

    search = Search(INSTANCES[index].problem, seed=seed, start=start, better=better)
    best = search.run(seconds, memory_goal=goal_memory)
    spent = search.clock() - search.began
    kept = {"seed": seed, "cpu_seconds": round(spent, 1), "wall_seconds": round(time.perf_counter() - began, 1)}
    first = search.shortest
    return {"latency_best": _plain(first) | kept, "memory_best": _plain(best) | kept, "trace": best.trace}


def _plain(found) -> dict:
    return {
        "makespan": found.makespan,
        "peak_memory": found.peak_memory,
        "nodes": found.rows,
        "by": found.by,
        "found_after": round(found.seconds, 1),
    }


def rank(schedule: dict) -> tuple[float, float]:
    return schedule["makespan"], round(schedule["peak_memory"], 6)


def least_memory(index: int) -> float:
    """No schedule as short as the bound needs less than this, if the bound is the large model's own time: its first
    node then never waits, so it holds one micro-batch per stage when the first gradient comes back. Else 0: not
    known."""
    one = INSTANCES[index]
    alone = 3 * one.forward0 * (one.micro0 + one.stages0 - 1)
    return one.stages0 * one.memory0 if one.bound == alone and one.micro0 >= one.stages0 else 0.0


def improve(index: int, options: Options) -> None:
    """Search one instance and keep what is better than what was known."""
    entry, one = known().get(index, {}), INSTANCES[index]
    start = (
        () if options.fresh else tuple(tuple(entry[k]["nodes"]) for k in ("latency_best", "memory_best") if k in entry)
    )
    seeds = [1000 * options.seed + index + 100 * worker for worker in range(options.workers)]
    jobs = [(index, 60 * options.minutes, seed, start, least_memory(index), seed == seeds[0]) for seed in seeds]
    print(f"instance {index}: {one.name}, bound {one.bound}, published {PUBLISHED[index]}", flush=True)
    if options.workers == 1:
        results = [_one(*jobs[0])]
    else:
        with ProcessPoolExecutor(options.workers) as pool:
            results = list(pool.map(_one, *zip(*jobs, strict=True)))
    command = f"python -m benchmarks.pipeline {shlex.join(sys.argv[1:])}"
    commit, today = environment()["commit"], datetime.date.today().isoformat()
    made = {
        "id": index,
        "num_nodes": one.stages0,
        **{key: getattr(one, name) for key, name in SIZES.items()},
        "bwd_over_fwd": 2,
        "lower_bound": one.bound,
    }
    for kind in ("latency_best", "memory_best"):
        fresh = min((result[kind] for result in results), key=rank) | {"command": command, "commit": commit}
        old = entry.get(kind)
        made[kind] = (
            old
            if old and (rank(old) <= rank(fresh) or (kind == "latency_best" and old["makespan"] <= fresh["makespan"]))
            else fresh
        )
        simulate(one.problem, made[kind]["nodes"])
    everything = known() | {index: made}
    text = {
        "legend": "as published_schedules.json: per node, in issue order; F/f = large model forward/backward, G/g = "
        "first pipeline of the small model, H/h = second; micro-batch = running count of that op on the node",
        "source": "python -m benchmarks.pipeline",
        "instances": [everything[i] for i in sorted(everything)],
    }
    atomic_write(SCHEDULES, json.dumps(text, indent=0) + "\n")
    best = min(results, key=lambda result: rank(result["memory_best"]))
    line = {
        "instance": index,
        "makespan": made["memory_best"]["makespan"],
        "peak_memory": made["memory_best"]["peak_memory"],
        "seeds": seeds,
        "minutes": options.minutes,
        "workers": options.workers,
        "fresh": options.fresh,
        "this_search": rank(best["memory_best"]),
        "trace": best["trace"],
        "command": command,
        "commit": commit,
        "date": today,
    }
    with open(RESULTS / "fused_pipeline.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")


def table() -> str:
    """Everything known, as Markdown."""
    rows = [
        "| instance | serial | greedy | gap filler | published | ours | bound | published memory | ours | least | "
        "CPU s to that time | to that memory |",
        "|" + "---|" * 12,
    ]
    entries = known()
    for index, one in enumerate(INSTANCES):
        problem, entry = one.problem, entries.get(index)
        quick = min(simulate(problem, make(problem)).makespan for make in fillers.values())
        time0, memory0 = PUBLISHED[index]
        cells = [
            f"{index}: {one.name} {one.stages0}/{one.stages1}, {one.micro0}/{one.micro1}",
            one.serial,
            f"{simulate(problem, greedy(problem)).makespan:g}",
            f"{quick:g}",
            time0,
        ]
        if entry:
            first, best = entry["latency_best"], entry["memory_best"]
            timing = simulate(problem, best["nodes"])
            least = least_memory(index)
            cells += [
                f"**{timing.makespan:g}**",
                one.bound,
                f"{memory0:.2f}",
                f"**{timing.peak_memory:.2f}**",
                f"{least:.2f}" if least else "",
                f"{first['found_after']:g}",
                f"{best['found_after']:g}",
            ]
        else:
            cells += ["", one.bound, f"{memory0:.2f}", "", "", "", ""]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def main() -> None:
    options = tyro.cli(Options, description=__doc__.partition("\n")[0])
    if not options.table:
        if not 0 < options.minutes < math.inf:
            raise SystemExit(f"minutes must be positive, got {options.minutes}")
        RESULTS.mkdir(exist_ok=True)
        for index in map(int, options.instances.split(",")):
            improve(index, options)
    print(table())


if __name__ == "__main__":
    main()
