"""Plan an RL run before paying for it: how to split GPUs between generation and training, and what an iteration takes.

gamut plan stream --model 7b --gpus 32xH800 --lengths 20k
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gamut.plan.stream_hardware import hardware, parse_model, replica
from gamut.plan.stream_job import USE, Job, split
from gamut.plan.stream_lengths import figure7, read_lengths
from gamut.plan.stream_modes import MODES, Outcome, simulate
from gamut.plan.stream_policy import MISSED, POLICIES

SWEPT = ("sync", "one-step", "async")  # what a sweep over splits compares


@dataclass(frozen=True)
class Row:
    """One mode of `compare`. ``cost`` is samples a second for each unit of GPU cost."""

    mode: str
    policy: str
    generators: int
    trainers: int
    outcome: Outcome
    cost: float


def compare(
    job: Job,
    gpus: int,
    *,
    apart: int = 0,
    iterations: int = 4,
    seed: int = 0,
    unit: int = 8,
    policy: str = "best",
    noise: float = MISSED,
) -> list[Row]:
    """All modes on the same samples.

    Args:
        gpus: in all; or, with ``apart``, those that train.
        apart: GPUs of a pool of their own for generation; 0: Algorithm 1 splits ``gpus``.
    """
    batches, rows = job.draw(iterations, seed), []
    generators, trainers = (
        (apart, gpus) if apart else split(job, gpus, unit=unit, seed=seed, policy=policy, noise=noise)
    )
    apart_price = generators * job.generator.cost + trainers * job.trainer.cost
    for mode in MODES:
        if mode == "colocated" and apart:
            continue
        mine = (gpus, gpus) if mode == "colocated" else (generators, trainers)
        price = gpus * job.trainer.cost if mode == "colocated" else apart_price
        order = "fifo" if mode in ("colocated", "mini", "one-step") else policy
        outcome = simulate(job.setup(mode, *mine, policy=order, noise=noise), batches, seed=seed)
        rows.append(Row(mode, order, *mine, outcome, job.batch / outcome.steady / price))
    return rows


def unit_of(job: Job, gpus: int) -> int:
    """GPUs that go from one side to the other together: a machine of 8 if there are several, else one replica."""
    return 8 if gpus % 8 == 0 and gpus > 8 and 8 % job.tp == 0 else job.tp


def sweep(
    job: Job,
    gpus: int,
    *,
    iterations: int = 3,
    seed: int = 0,
    policy: str = "best",
    noise: float = MISSED,
    most: int = 16,
    step: Callable[[], object] = lambda: None,
) -> dict[str, list[tuple[int, float]]]:
    """Samples a second of the streamed and asynchronous modes by GPUs that generate; the others train.

    Args:
        most: splits to try, evenly spaced multiples of a replica's GPUs.
        step: called after each split, for a progress bar.
    """
    unit = job.tp * -(-gpus // (job.tp * most))
    counts = range(unit, gpus - job.tp + 1, unit)
    batches, found = job.draw(iterations, seed), {mode: [] for mode in SWEPT}
    for count in counts:
        for mode in SWEPT:
            order = "fifo" if mode == "one-step" else policy  # as in `compare`
            setup = job.setup(mode, count, gpus - count, policy=order, noise=noise)
            found[mode].append((count, job.batch / simulate(setup, batches, seed=seed).steady))
        step()
    return found


@dataclass(frozen=True)
class Options:
    """Simulate an RL run: colocated, mini-batch pipelined, streamed, one-step and fully asynchronous."""

    model: str = "7b"  # 7b, 32b, 72b, or SIZEb:LAYERS:HEADS:KV_HEADS:WIDTH
    gpus: str = "32xH800"  # one pool to split; or GENERATE+TRAIN as 32xH20+16xH800; any GPU: 8xNAME:TFLOPS:GB:TB/s:COST
    lengths: str = "20k"  # 5k, 10k, 20k (StreamRL Figure 7), or a CSV histogram (start, end, weight) or trace (length)
    batch: int = 1024  # samples of an iteration
    prompt: float = 300.0  # tokens of a prompt
    tp: Literal["auto"] | int = "auto"  # GPUs of one replica that generates; auto: the fewest that hold 24 samples
    use: float = USE  # share of the peak FLOPS that training reaches
    wire: float = 25e9  # bytes per second for new weights; 10e9 is an 80 Gbps line
    # order of prompts in the streamed modes: fifo (by chance), lpt (longest first), round (longest first, dealt in
    # turn), skew (Algorithm 2), skew-max (the same by its slower side), best (of the last three, by simulation)
    policy: str = "best"
    noise: float = MISSED  # share of prompts whose length the ranker misses by a factor of two; 0 is an oracle
    iterations: int = 4
    seed: int = 0
    out: Path = Path("stream.html")


def read_job(options: Options) -> tuple[Job, int, int]:
    """(job, GPUs, GPUs apart for generation).

    Raises:
        ValueError: what cannot be read or does not fit, with what is allowed.
    """
    pools = hardware(options.gpus.split("+"))
    if len(pools) > 2:
        raise ValueError(f"--gpus takes one pool or GENERATE+TRAIN, got {len(pools)} pools")
    if options.policy not in POLICIES:
        raise ValueError(f"unknown dispatch '{options.policy}'; allowed: {', '.join(POLICIES)}")
    if options.batch < 1 or options.iterations < 1 or not 0 < options.use <= 1:
        raise ValueError(
            f"batch and iterations must be >= 1 and use in (0, 1]; got {options.batch}, {options.iterations}, "
            f"{options.use}"
        )
    if min(options.prompt, options.seed) < 0 or not 0 <= options.noise <= 1 or not options.wire > 0:
        raise ValueError(
            "prompt and seed must be >= 0, noise in [0, 1] and wire above 0; got "
            f"{options.prompt:g}, {options.seed}, {options.noise:g}, {options.wire:g}"
        )
    lengths = figure7(options.lengths) if options.lengths in ("5k", "10k", "20k") else read_lengths(options.lengths)
    model, generator = parse_model(options.model), pools[0][1]
    tp = replica(model, generator, lengths.longest + options.prompt) if options.tp == "auto" else options.tp
    job = Job(
        model, generator, pools[-1][1], lengths, options.prompt, options.batch, tp, use=options.use, wire=options.wire
    )
    job.instances(pools[0][0])
    return job, pools[-1][0], pools[0][0] if len(pools) == 2 else 0


def main(args: Sequence[str] = ()) -> None:
    """Split GPUs between generation and training, simulate every mode: gamut plan stream --help."""
    import tyro
    from rich.console import Console
    from rich.table import Table

    from gamut.plan.stream_page import write

    options = tyro.cli(Options, args=list(args), prog="gamut plan stream")
    job, gpus, apart = read_job(options)
    asked = {"iterations": options.iterations, "seed": options.seed, "policy": options.policy, "noise": options.noise}
    rows = compare(job, gpus, apart=apart, unit=unit_of(job, gpus), **asked)
    swept = {} if apart else _watched(job, gpus, **asked)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("mode", "order", "GPUs", "s/iteration", "samples/s", "generating", "training", "samples/s per cost"):
        table.add_column(name, justify="left" if name in ("mode", "order") else "right")
    for row in rows:
        pools = f"{row.generators}" if row.mode == "colocated" else f"{row.generators}+{row.trainers}"
        out = row.outcome
        table.add_row(
            row.mode, row.policy, pools, f"{out.steady:.1f}", f"{job.batch / out.steady:.2f}", f"{out.generating:.0%}",
            f"{out.training:.0%}", f"{row.cost:.2f}",
        )  # fmt: skip
    Console(width=110).print(table)
    print(write(options.out, job, rows, f"{options.model} on {options.gpus}, lengths {options.lengths}", swept))


def _watched(job: Job, gpus: int, **asked: Any) -> dict[str, list[tuple[int, float]]]:
    """`sweep` with a progress bar, where a terminal shows one."""
    from rich.progress import Progress

    with Progress(transient=True) as progress:
        bar = progress.add_task("every split", total=min(16, gpus // job.tp) - 1)
        return sweep(job, gpus, step=lambda: progress.advance(bar), **asked)
