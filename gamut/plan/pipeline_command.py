"""`gamut plan pipeline`: find, compare and draw pipeline schedules."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from gamut.plan.pipeline import Chain, Problem, Timing, simulate
from gamut.plan.pipeline_fused import INSTANCES, greedy, lower_bound, serial


@dataclass(frozen=True)
class Options:
    """Find a pipeline schedule, draw it (hover shows the ops), save it for execution.

    Without --models one of the twelve problems of the RLHFuse paper; --classic draws a schedule of the literature.
    """

    instance: int = 8  # of the paper's Table 3, 0 to 11
    models: str = ""  # own problem, a model each: NAME:STAGES:MICRO:FORWARD:BACKWARD:MEMORY[:CHUNKS], joined by commas
    classic: str = ""  # gpipe, 1f1b, interleaved, zb-h1, zb-h2, zb-v, chimera or dualpipe, on --nodes with --micro
    nodes: int = 8  # of a classic schedule
    micro: int = 16  # micro-batches of a classic schedule
    send: float = 0.0  # time between two stages on different nodes, for --models
    seconds: float = 20.0  # CPU time of the search; 0 only compares the deterministic schedules
    cap: float = 0.0  # memory that a node has; 0: no limit
    seed: int = 0
    out: Path = Path("pipeline.html")  # .html, or .svg with the best schedule alone
    save: str = ""  # JSON file for the best schedule: gamut.plan.pipeline_export reads it and gives each rank's list


def parse_models(text: str, send: float) -> Problem:
    """The first model runs over all nodes in order; the others the other way, in as many pipelines as fit beside each
    other. CHUNKS (1 if not given): parts of a stage that a node holds, interleaved; times and memory are of all of it.

    >>> [chain.nodes for chain in parse_models("a:4:8:2:4:1,b:2:4:1:2:1", 0.0).chains]
    [(0, 1, 2, 3), (1, 0), (3, 2)]
    """
    chains: list[Chain] = []
    for number, one in enumerate(text.split(",")):
        try:
            name, stages, micro, forward, backward, memory, *more = one.split(":")
            sizes, times = (int(stages), int(micro)), (float(forward), float(backward), float(memory))
            (chunks,) = map(int, more or ["1"])
        except ValueError as error:
            raise ValueError(
                f"a model is NAME:STAGES:MICRO:FORWARD:BACKWARD:MEMORY[:CHUNKS], got '{one}'; for example "
                "--models actor:8:16:5:10:2,critic:4:8:4:8:2"
            ) from error
        nodes = len(set(chains[0].nodes)) if chains else sizes[0]
        if sizes[0] < 1 or chunks < 1 or nodes % sizes[0]:
            some = f"divisors of the first model's {nodes}" if chains else "stages of 1 or more"
            raise ValueError(
                f"model {name} has {sizes[0]} stages in {chunks} chunks; allowed: {some}, chunks 1 or more"
            )
        ahead, back, held = (value / chunks for value in times)
        for first in range(0, nodes, sizes[0]):
            here = tuple(range(first, first + sizes[0]))[:: -1 if number else 1]
            chains.append(Chain(here * chunks, sizes[1], ahead, back, 0.0, held, name))
    return Problem(tuple(chains), send)


def compare(problem: Problem, seconds: float, seed: int, cap: float = 0.0) -> dict[str, tuple[str, ...]]:
    """Schedules by name: serial, greedy, the best found within the serial schedule's memory, the best of all; that one
    comes last. ``cap``: most memory of a node, 0 for no limit.

    Raises:
        ValueError: the cap is too small even for the serial schedule.
    """
    schedules = {"serial 1F1B": serial(problem), "greedy": greedy(problem)}
    if seconds > 0:
        from gamut.plan.pipeline_search import Search

        least = simulate(problem, schedules["serial 1F1B"]).peak_memory
        best = Search(problem, seed=seed, room=cap or math.inf)
        print(f"searching for {seconds:g} s of CPU time ...", flush=True)
        small = Search(problem, seed=seed, room=least).run(seconds / 3, memory_goal=least)
        best.offer(small.rows, small.by)
        fused = best.run(seconds, memory_goal=least)
        if small.makespan > fused.makespan:
            schedules["fused, in the memory of serial"] = small.rows
        schedules["fused"] = fused.rows
    return schedules


def show(
    problem: Problem, schedules: dict[str, tuple[str, ...]], serial_time: float | None = None
) -> dict[str, Timing]:
    """A table of what schedules cost; returns their timings."""
    from rich.console import Console
    from rich.table import Table

    timings = {name: simulate(problem, rows) for name, rows in schedules.items()}
    base = serial_time or next(iter(timings.values())).makespan
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("schedule", "makespan", "speed-up", "idle", "peak memory"):
        table.add_column(name, justify="left" if name == "schedule" else "right")
    for name, timing in timings.items():
        table.add_row(
            name,
            f"{timing.makespan:g}",
            f"{base / timing.makespan:.2f}",
            f"{timing.bubble:.1%}",
            f"{timing.peak_memory:g}",
        )
    Console(width=100).print(table, f"no schedule is shorter than {lower_bound(problem):g}")
    return timings


def main(args: Sequence[str] = ()) -> None:
    """Raises ValueError for what cannot be planned, with what is allowed."""
    from gamut.plan.timeline import draw, drawable

    options = tyro.cli(Options, args=args, prog="gamut plan pipeline")
    drawable(options.out, 1)
    for name in ("seconds", "cap"):
        if not 0 <= getattr(options, name) < math.inf:
            raise ValueError(f"--{name} must be 0 or more and finite, got {getattr(options, name):g}")
    title, problem, schedules, base = _asked(options)
    show(problem, schedules, base)
    best = list(schedules)[-1]
    drawn = {best: schedules[best]} if options.out.suffix == ".svg" else schedules
    if options.save:
        from gamut.plan.pipeline_export import save

        print(save(options.save, problem, schedules[best]))
    lead = f"{problem.nodes} nodes. No schedule is shorter than {lower_bound(problem):g}."
    print(draw(options.out, problem, drawn, title=title, lead=lead))


def _asked(options: Options) -> tuple[str, Problem, dict[str, tuple[str, ...]], float | None]:
    if options.classic:
        from gamut.plan.pipeline_classic import CLASSICS

        if options.classic not in CLASSICS:
            raise ValueError(f"unknown schedule '{options.classic}'; allowed: {', '.join(CLASSICS)}")
        more: dict[str, Any] = {} if options.classic == "chimera" else {"micro": options.micro}
        one = CLASSICS[options.classic](options.nodes, **more)
        return options.classic, one.problem, {options.classic: one.rows}, None
    if options.models:
        problem = parse_models(options.models, options.send)
        return "Fused pipelines", problem, compare(problem, options.seconds, options.seed, options.cap), None
    if not 0 <= options.instance < len(INSTANCES):
        raise ValueError(f"instance must be 0 to {len(INSTANCES) - 1}, got {options.instance}; own problems: --models")
    one = INSTANCES[options.instance]
    schedules = compare(one.problem, options.seconds, options.seed, options.cap)
    return f"RLHFuse instance {options.instance}: {one.name}", one.problem, schedules, one.serial
