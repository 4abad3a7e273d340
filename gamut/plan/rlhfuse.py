"""`gamut plan rlhfuse`: the two fusions of RLHFuse for an actor and a critic on one cluster, as a table and a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from gamut.io.html import Raw, join, page, tag
from gamut.plan.fusion import Cluster, fused_problem, migrations
from gamut.plan.pipeline import Timing, simulate
from gamut.plan.pipeline_fused import Fused


@dataclass(frozen=True)
class Options(Cluster):
    __doc__ = Cluster.__doc__

    seconds: float = 20.0  # CPU time of the search
    seed: int = 0
    out: Annotated[Path, tyro.conf.arg(help="page with both fusions")] = Path("rlhfuse.html")


@dataclass(frozen=True)
class Planned:
    """Both fusions. ``stages``: seconds by what is done, plain and fused; ``moments``: (share unfinished, seconds)."""

    plan: Cluster
    one: Fused
    blocks: int
    schedules: dict[str, tuple[str, ...]]
    timings: dict[str, Timing]
    plain: Any
    fused: Any
    moments: list[tuple[float, float]]

    @property
    def best(self) -> Timing:
        return list(self.timings.values())[-1]

    @property
    def gain(self) -> float:
        """Serial makespan over fused."""
        return self.one.serial / self.best.makespan

    @property
    def seconds(self) -> tuple[float, float]:
        """An iteration without the fusions and with them."""
        return self.plain.seconds + self.plan.training, self.fused.seconds + self.plan.training / self.gain


def planned(plan: Cluster, seconds: float, seed: int = 0) -> Planned:
    """Search the fused schedule for ``seconds`` of CPU time, and try every moment of migration."""
    from gamut.plan.pipeline_command import compare

    one, blocks = fused_problem(plan)
    schedules = compare(one.problem, seconds, seed)
    timings = {name: simulate(one.problem, rows) for name, rows in schedules.items()}
    plain, tried = migrations(plan, seed=seed)
    good = 1.01 * min(stage.seconds for stage in tried.values())
    fused = next(stage for stage in tried.values() if stage.seconds <= good)  # the latest: it moves the fewest samples
    moments = [(0.0, plain.seconds), *((100 * share, stage.seconds) for share, stage in tried.items())]
    return Planned(plan, one, blocks, schedules, timings, plain, fused, moments)


def blocks(made: Planned) -> list[Raw]:
    """Everything below the title, for a page or a report."""
    from gamut.io.svg import curves
    from gamut.plan.timeline import figures

    plan, one = made.plan, made.one
    before, after = made.seconds
    rows = [
        ("generation", f"{made.plain.generation:.1f}", f"{made.fused.generation:.1f}"),
        ("generation and inference", f"{made.plain.seconds:.1f}", f"{made.fused.seconds:.1f}"),
        ("training", f"{plan.training:.1f}", f"{plan.training / made.gain:.1f}"),
        ("iteration", f"{before:.1f}", f"{after:.1f}"),
        ("samples a second", f"{plan.batch / before:.1f}", f"{plan.batch / after:.1f}"),
    ]
    head = [
        tag("th", name, class_="number" if i else None) for i, name in enumerate(("seconds", "one by one", "fused"))
    ]
    body = [tag("tr", tag("td", a), tag("td", b, class_="number"), tag("td", c, class_="number")) for a, b, c in rows]
    when = "Nothing is won by migrating: inference follows generation."
    if made.fused.threshold:
        when = (
            f"When {made.fused.threshold:.0%} of the {plan.batch} samples are unfinished, {made.fused.moved} of them "
            f"move, so that {made.fused.keep} replicas go on; on all other GPUs reference, reward and critic begin to "
            "read what is finished. Later, less is left to overlap; earlier, more samples must move for nothing: this "
            "is the latest moment within 1 % of the best."
        )
    caption = "seconds of generation and inference by % of the samples unfinished at migration"
    return [
        tag("h2", "One iteration"),
        tag("p", f"{plan.actor} actor and reference, {plan.critic} critic and reward, {plan.gpus} H100s, {plan.batch} "
                 f"samples of at most {plan.longest} tokens. Generation is simulated; inference ({plan.inference:g} s) "
                 f"and training ({plan.training:g} s) one by one are given."),
        tag("div", tag("table", tag("tr", *head), *body), class_="scroll"),
        tag("h2", "Between stages: when to migrate the long tail"),
        tag("p", when),
        tag("figure", tag("figcaption", caption), curves({"": made.moments}, x="% unfinished", size=(900, 240))),
        tag("h2", "Within training: two pipelines on the same nodes"),
        tag("p", f"{made.blocks} blocks of {one.stages0} nodes of {plan.tp} GPUs; in each, {one.micro0} micro-batches "
                 f"of the model with {one.stages0} stages run downwards, and {one.stages0 // one.stages1} x "
                 f"{one.micro1} of the model with {one.stages1} run upwards. Time is in units of the forward and "
                 f"backward passes: forward {one.forward0} and {one.forward1}, backward twice that. No schedule is "
                 f"shorter than {one.bound}. One model wholly after the other takes {one.serial}, over which gains are "
                 "counted; in the first picture the second model already fills while the first drains."),
        *figures(one.problem, made.schedules),
    ]  # fmt: skip


def lead(made: Planned) -> str:
    before, after = made.seconds
    return (
        f"{made.plan.actor} actor, {made.plan.critic} critic, {made.plan.gpus} GPUs: an iteration takes {after:.1f} s "
        f"in place of {before:.1f}. Generation and inference are {made.plain.seconds / made.fused.seconds:.2f} x as "
        f"fast, training {made.gain:.2f} x: {made.best.makespan:g} time units in place of {made.one.serial}, one model "
        f"after the other; no schedule is shorter than {made.one.bound}."
    )


def main(args: Sequence[str] = ()) -> None:
    """Plan, table and page for one cluster."""
    from gamut.io.files import atomic_write
    from gamut.plan.pipeline_command import show
    from gamut.plan.timeline import WIDE, script

    options = tyro.cli(Options, args=args, prog="gamut plan rlhfuse")
    made = planned(options, options.seconds, options.seed)
    show(made.one.problem, made.schedules, made.one.serial)
    print(lead(made))
    top = tag("header", tag("h1", "RLHF with its stages and pipelines fused"), tag("p", lead(made), class_="lead"))
    print(atomic_write(options.out, page("gamut plan rlhfuse", WIDE, top, join(*blocks(made)), script())))
