"""What `gamut plan pipeline` and `gamut plan rlhfuse` do."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from gamut.plan.pipeline import Chain, Problem, Timing, simulate
from gamut.plan.pipeline_fused import INSTANCES, Fused, greedy, lower_bound, serial


@dataclass(frozen=True)
class Options:
    """Find a pipeline schedule, draw it (hover shows the ops), save it for execution.

    Without --models one of the twelve problems of the RLHFuse paper; --classic draws a schedule of the literature.
    """

    instance: int = 8  # of the paper's Table 3, 0 to 11
    models: str = ""  # own problem, a model each: NAME:STAGES:MICRO:FORWARD:BACKWARD:MEMORY, joined by commas
    classic: str = ""  # gpipe, 1f1b, interleaved, zb-h1, zb-h2 or chimera, on --nodes with --micro
    nodes: int = 8  # of a classic schedule
    micro: int = 16  # micro-batches of a classic schedule
    send: float = 0.0  # time between two stages on different nodes, for --models
    seconds: float = 20.0  # CPU time of the search; 0 only compares the deterministic schedules
    cap: float = 0.0  # stop lowering the memory here; 0: go on for all of --seconds
    seed: int = 0
    out: Path = Path("pipeline.html")  # .html, or .svg with the best schedule alone
    save: str = ""  # JSON file for the best schedule: gamut.plan.pipeline_export reads it and gives each rank's list


def parse_models(text: str, send: float) -> Problem:
    """The first model runs over all nodes in order; the others the other way, in as many pipelines as fit beside each
    other.

    >>> [chain.nodes for chain in parse_models("a:4:8:2:4:1,b:2:4:1:2:1", 0.0).chains]
    [(0, 1, 2, 3), (1, 0), (3, 2)]
    """
    chains: list[Chain] = []
    for number, one in enumerate(text.split(",")):
        try:
            name, stages, micro, forward, backward, memory = one.split(":")
            sizes, times = (int(stages), int(micro)), (float(forward), float(backward), float(memory))
        except ValueError as error:
            raise ValueError(
                f"a model is NAME:STAGES:MICRO:FORWARD:BACKWARD:MEMORY, got '{one}'; for example "
                "--models actor:8:16:5:10:2,critic:4:8:4:8:2"
            ) from error
        nodes = len(chains[0].nodes) if chains else sizes[0]
        if sizes[0] < 1 or nodes % sizes[0]:
            raise ValueError(f"model {name} has {sizes[0]} stages; allowed: divisors of the first model's {nodes}")
        for first in range(0, nodes, sizes[0]):
            here = tuple(range(first, first + sizes[0]))
            chains.append(Chain(here[::-1] if number else here, sizes[1], *times[:2], 0.0, times[2], name))
    return Problem(tuple(chains), send)


def compare(problem: Problem, seconds: float, seed: int, cap: float = 0.0) -> dict[str, tuple[str, ...]]:
    """Serial, greedy and the best found, by name; the best comes last."""
    from rich.console import Console

    schedules = {"serial 1F1B": serial(problem), "greedy": greedy(problem)}
    if seconds > 0:
        from gamut.plan.pipeline_search import Search

        out = Console()
        search = Search(problem, seed=seed)
        schedules["fused"] = search.run(
            seconds, memory_goal=cap, say=lambda line: out.print(line, highlight=False)
        ).rows
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
    from gamut.plan.timeline import draw

    options = tyro.cli(Options, args=args, prog="gamut plan pipeline")
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


@dataclass(frozen=True)
class Cluster:
    """Fuse the training pipelines of an actor and a critic on one cluster (RLHFuse, section 5); draw the schedule.

    A stage's forward takes time in proportion to layers x width^2 / tensor-parallel degree; backward takes twice that.
    Activations are in proportion to layers x width. The ratios of the released instances come out of the same rule.
    """

    gpus: int = 256
    actor: str = "65B"  # 13B, 33B or 65B (LLaMA, Table 2 of the paper)
    critic: str = "33B"
    actor_stages: int = 16  # pipeline stages
    critic_stages: int = 8
    tp: int = 8  # tensor-parallel degree of both
    mini_batch: int = 64  # samples per update, all blocks together (paper: 64)
    micro_batch: int = 1  # samples in one micro-batch
    seconds: float = 20.0  # CPU time of the search
    seed: int = 0
    out: Annotated[Path, tyro.conf.arg(help="picture of serial, greedy and fused schedule")] = Path("rlhfuse.html")


LLAMA = {"13B": (40, 5120), "33B": (60, 6656), "65B": (80, 8192)}  # layers, width (Table 2)


def fused_problem(plan: Cluster) -> tuple[Fused, int]:
    """(instance, blocks of nodes in the cluster) of a cluster plan; times in whole units of the smaller model's stage.

    Raises:
        ValueError: unknown model, or GPUs, stages and batches that do not divide.
    """
    for name in (plan.actor, plan.critic):
        if name not in LLAMA:
            raise ValueError(f"unknown model '{name}'; allowed: {', '.join(LLAMA)}")
    sides = [(plan.actor, plan.actor_stages), (plan.critic, plan.critic_stages)]
    (large, stages0), (small, stages1) = sorted(sides, key=lambda side: -side[1])
    per_block = stages0 * plan.tp
    if stages1 < 1 or stages0 % stages1 or plan.gpus % per_block:
        raise ValueError(
            f"stages must divide one another and tp x stages the GPUs; got {stages0} and {stages1} stages, "
            f"tp {plan.tp}, {plan.gpus} GPUs"
        )
    blocks = plan.gpus // per_block
    if plan.mini_batch % (blocks * plan.micro_batch) or plan.mini_batch // (blocks * plan.micro_batch) % (
        stages0 // stages1
    ):
        raise ValueError(
            f"mini_batch {plan.mini_batch} must be a multiple of {blocks} blocks x micro_batch "
            f"{plan.micro_batch} x {stages0 // stages1} small pipelines"
        )
    micro0 = plan.mini_batch // (blocks * plan.micro_batch)
    cost = [LLAMA[name][0] / stages * LLAMA[name][1] ** 2 for name, stages in ((large, stages0), (small, stages1))]
    held = [LLAMA[name][0] / stages * LLAMA[name][1] for name, stages in ((large, stages0), (small, stages1))]
    unit, weigh = min(cost) / 4, max(held) / 2
    return Fused(
        f"{large}/{small}",
        stages0,
        stages1,
        micro0,
        micro0 * stages1 // stages0,
        *(round(c / unit) for c in cost),
        *(round(h / weigh, 2) for h in held),
    ), blocks


def run_rlhfuse(args: Sequence[str]) -> None:
    """Plan, table and picture for one cluster."""
    from gamut.plan.timeline import draw

    plan = tyro.cli(Cluster, args=args, prog="gamut plan rlhfuse")
    one, blocks = fused_problem(plan)
    print(
        f"{blocks} blocks of {one.stages0} stages x {plan.tp} GPUs; in each {one.micro0} micro-batches of the one with "
        f"{one.stages0} stages and {one.stages0 // one.stages1} x {one.micro1} of the other"
    )
    schedules = compare(one.problem, plan.seconds, plan.seed)
    timings = show(one.problem, schedules, one.serial)
    best = list(timings.values())[-1]
    lead = (
        f"{plan.actor} actor, {plan.critic} critic, {plan.gpus} GPUs: {one.serial / best.makespan:.2f} x as fast "
        f"in training as one model after the other; {best.makespan:g} time units, bound {one.bound}."
    )
    print(lead)
    print(draw(plan.out, one.problem, schedules, title="Fused training of actor and critic", lead=lead))
