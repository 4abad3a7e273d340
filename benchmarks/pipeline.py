"""The twelve fused pipelines of RLHFuse's Table 3: search, keep the best, print the table.

    python -m benchmarks.pipeline --minutes 10                 # every instance, ten minutes of CPU time on each worker
    python -m benchmarks.pipeline --minutes 10 --instances 9   # another seed; the best of all searches is kept
    python -m benchmarks.pipeline --instances 1 --room 15.75   # straight for a schedule within this memory
    python -m benchmarks.pipeline --instances 4 --room 18.5 --steps 40000 --seed 0      # the same on every machine
    python -m benchmarks.pipeline --table                      # prints what is known, searches nothing

results/fused_schedules.json keeps the best schedules, for time and for memory at that time, each with the command, the
seed and the seconds that made it; results/fused_pipeline.jsonl gets a line per search. Minutes are CPU time: on a busy
machine they take longer by the clock, and before the first search on a machine numba compiles for half a minute. Each
instance is saved when it is done: stop at any time, and run again for what is left.
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
from gamut.plan.pipeline_fused import INSTANCES, PUBLISHED, fillers, greedy

RESULTS = Path(__file__).parent / "results"
SCHEDULES = RESULTS / "fused_schedules.json"
SEARCHES, PAGE = RESULTS / "fused_pipeline.jsonl", RESULTS.parent.parent / "docs" / "pipelines.md"
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
    room: float = 0.0  # look only within this memory of a node, no less than serial's; 0: shorten first, then lower
    steps: int = 0  # with --room: tries of so many steps from seed, seed + 1, ... instead of turns by the clock
    hot: float = 0.05  # heat that tries begin with, in longest ops
    seed: int = -1  # -1: as many as searches of the instance were recorded
    table: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False  # only print the table


def known() -> dict[int, dict]:
    """Instance -> entry of fused_schedules.json."""
    if not SCHEDULES.exists():
        return {}
    return {entry["id"]: entry for entry in json.loads(SCHEDULES.read_text())["instances"]}


def searches(index: int) -> int:
    """Lines of results/fused_pipeline.jsonl about an instance."""
    if not SEARCHES.exists():
        return 0
    return sum(json.loads(line)["instance"] == index for line in SEARCHES.read_text().splitlines())


def _one(index: int, options: Options, seed: int, loud: bool) -> dict:
    """One worker's search, as plain data."""
    from gamut.plan.pipeline_search import Found, Search

    began = time.perf_counter()

    def better(found: Found) -> None:
        if loud:
            cost = f"{found.makespan:g}   memory {found.peak_memory:g}"
            print(f"  {found.seconds:7.1f} s   {cost}   {found.by}", flush=True)

    one = INSTANCES[index]
    search, until = Search(one.problem, seed=seed, better=better, room=options.room or math.inf), 60 * options.minutes
    while options.steps and search.clock() - search.began < until:
        if search.repeat(options.room or math.inf, seed, options.steps, options.hot):
            break
        seed += 1
    best = search.best if options.steps else search.run(until, memory_goal=one.least_memory)
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


def improve(index: int, options: Options) -> None:
    """Search one instance and keep what is better than what was known."""
    entry, one = known().get(index, {}), INSTANCES[index]
    first = searches(index) if options.seed < 0 else options.seed
    seeds = [first + 1000 * worker for worker in range(options.workers)]
    jobs = [(index, options, seed, seed == first) for seed in seeds]
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
        "this_search": rank(best["memory_best"]),
        "trace": [[step["makespan"], step["peak_memory"], step["seconds"]] for step in best["trace"]],
        "command": command,
        "commit": commit,
        "date": today,
    }
    with open(SEARCHES, "a") as file:
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
            least = one.least_memory
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


def write_page(rows: str) -> Path:
    """docs/pipelines.md, from what is known."""
    entries = known()
    short = sum(entry["memory_best"]["makespan"] <= PUBLISHED[i][0] for i, entry in entries.items())
    met = sum(entry["memory_best"]["makespan"] == INSTANCES[i].bound for i, entry in entries.items())
    small = sum(rank(entry["memory_best"]) <= PUBLISHED[i] for i, entry in entries.items())
    text = f"""# Fused pipelines: ours beside published

Made by `python -m benchmarks.pipeline --table`; the schedules are `benchmarks/results/fused_schedules.json`, each with
the command and seed that made it, and a test runs every one through the exact evaluator. Published: the last schedules
released with RLHFuse (arXiv 2409.13221, Table 3), found with 768 cores. Bold is ours. No schedule is shorter than the
bound. Least: no schedule as short as the bound can do with less memory, where that is known.

Of {len(entries)} instances searched, {short} are as short as published or shorter, {met} meet the bound, and {small}
are as short and need no more memory.

{rows}
"""
    return atomic_write(PAGE, text)


def main() -> None:
    options = tyro.cli(Options, description=__doc__.partition("\n")[0])
    if not options.table:
        if not 0 < options.minutes < math.inf:
            raise SystemExit(f"minutes must be positive, got {options.minutes}")
        chosen = options.instances.split(",")
        if wrong := [one for one in chosen if one not in map(str, range(len(INSTANCES)))]:
            raise SystemExit(f"instances are 0 to {len(INSTANCES) - 1}, joined by commas; got {', '.join(wrong)}")
        RESULTS.mkdir(exist_ok=True)
        for index in map(int, chosen):
            improve(index, options)
    rows = table()
    print(rows, write_page(rows), sep="\n\n")


if __name__ == "__main__":
    main()
