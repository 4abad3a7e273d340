"""Plan an RL run before paying for it: how to split GPUs between generation and training, and what an iteration takes.

    gamut plan stream --model 7b --gpus 32xH800 --lengths 20k

Training FLOPs per token: 6 x parameters each for actor and critic, 2 x each for the forward passes of reference and
critic (StreamRL's PPO; critic and reference have the actor's size). `use` is the share of the peak that they reach.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np

from gamut.plan.stream_generate import Instance
from gamut.plan.stream_hardware import FIG6, Gpu, Measured, Model, Roofline, hardware, parse_model, slots
from gamut.plan.stream_lengths import Lengths, figure7, read_lengths
from gamut.plan.stream_modes import MODES, Outcome, Setup, Trainer, simulate
from gamut.plan.stream_policy import POLICIES, Former, allocate

PPO_FLOPS = 6 + 6 + 2 + 2  # per parameter and token: actor, critic; reference forward, critic forward


@dataclass(frozen=True)
class Job:
    """One workload on one kind of GPU per side. ``use``: share of the trainer's FLOPS; ``wire``: bytes/s for new
    weights."""

    model: Model
    generator: Gpu
    trainer: Gpu
    lengths: Lengths
    prompt: float = 300.0  # tokens; StreamRL Figure 7 left has its mode below 200 and a bump at 700
    batch: int = 1024  # samples of an iteration (paper)
    tp: int = 1
    use: float = 0.3
    wire: float = 25e9
    launch: float = 0.05
    switch: float = 5.0
    flops: float = PPO_FLOPS
    reserve: float = 1.0  # cache kept for a sample, in mean sample lengths

    def latency(self) -> Callable[..., float]:
        """Figure 6's curve where it was measured, else the roofline."""
        if self.model.name == "7b" and self.generator.name == "H800" and self.tp == 1:
            return Measured()
        return Roofline(self.model, self.generator, self.tp)

    def instances(self, gpus: int) -> tuple[Instance, ...]:
        """As many replicas as ``gpus`` hold.

        Raises:
            ValueError: fewer GPUs than one replica needs, or a replica that cannot hold the weights.
        """
        if gpus < self.tp:
            raise ValueError(f"generation needs at least tp = {self.tp} GPUs, got {gpus}")
        room = slots(self.model, self.generator, self.tp, self.reserve * (self.lengths.mean + self.prompt))
        prefill = 2 * self.model.parameters / (self.tp * self.generator.flops * self.use)
        return (Instance(self.latency(), min(room, max(FIG6)), prefill),) * (gpus // self.tp)

    def training(self, gpus: int) -> Trainer:
        """Seconds per token on ``gpus`` GPUs."""
        return Trainer(self.flops * self.model.parameters / (gpus * self.trainer.flops * self.use), self.launch)

    def setup(self, mode: str, generators: int, trainers: int, **more: object) -> Setup:
        """The simulator's input; ``colocated`` counts the same GPUs on both sides."""
        transfer = 0.0 if mode == "colocated" else self.model.weights / self.wire
        enough = 4096.0 * trainers  # tokens that fill the trainer: 4,096 per GPU (ours)
        return Setup(
            mode,
            self.instances(generators),
            self.training(trainers),
            transfer=transfer,
            switch=self.switch,
            former=Former(enough),
            **more,
        )  # type: ignore[arg-type]

    def draw(self, iterations: int, seed: int) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        return [self.lengths.sample(self.batch, rng) for _ in range(iterations)]


def split(job: Job, gpus: int, *, unit: int = 8, seed: int = 0, policy: str = "lpt") -> tuple[int, int]:
    """Algorithm 1 with the simulator as the profile: (GPUs to generate, GPUs to train)."""
    lengths = job.draw(1, seed)

    @cache
    def stages(count: int) -> tuple[float, float]:
        made = simulate(job.setup("one-step", count, count, policy=policy), lengths, seed=seed).iterations[0]
        return made[1] - made[0], made[3] - made[2]

    return allocate(gpus, lambda count: stages(count)[0], lambda count: stages(count)[1], unit=unit)


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
    policy: str = "lpt",
    noise: float = 0.25,
) -> list[Row]:
    """All modes on the same samples.

    Args:
        gpus: in all; or, with ``apart``, those that train.
        apart: GPUs of a pool of their own for generation; 0: Algorithm 1 splits ``gpus``.
    """
    batches, rows = job.draw(iterations, seed), []
    generators, trainers = (apart, gpus) if apart else split(job, gpus, unit=unit, seed=seed, policy=policy)
    price = generators * job.generator.cost + trainers * job.trainer.cost
    for mode in MODES:
        if mode == "colocated" and apart:
            continue
        mine = (gpus, gpus) if mode == "colocated" else (generators, trainers)
        order = "fifo" if mode in ("colocated", "mini", "one-step") else policy
        outcome = simulate(job.setup(mode, *mine, policy=order, noise=noise), batches, seed=seed)
        rows.append(Row(mode, order, *mine, outcome, job.batch / outcome.steady / price))
    return rows


@dataclass(frozen=True)
class Options:
    """Simulate an RL run: colocated, mini-batch pipelined, streamed, one-step and fully asynchronous."""

    model: str = "7b"  # 7b, 32b, 72b, or SIZEb:LAYERS:HEADS:KV_HEADS:WIDTH
    gpus: str = "32xH800"  # one pool to split; or GENERATE+TRAIN as 32xH20+16xH800
    lengths: str = "20k"  # 5k, 10k, 20k (StreamRL Figure 7), or a CSV histogram (start, end, weight) or trace (length)
    batch: int = 1024  # samples of an iteration
    prompt: float = 300.0  # tokens of a prompt
    tp: int = 1  # GPUs of one replica that generates
    use: float = 0.3  # share of the peak FLOPS that training reaches (fits two published cells)
    wire: float = 25e9  # bytes per second for new weights; 10e9 is an 80 Gbps line
    policy: str = "lpt"  # fifo, lpt, round, skew or skew-max, of the streamed modes
    noise: float = 0.25  # sigma of the length ranker's log-normal error; 0 is an oracle
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
    lengths = figure7(options.lengths) if options.lengths in ("5k", "10k", "20k") else read_lengths(options.lengths)
    job = Job(
        parse_model(options.model),
        pools[0][1],
        pools[-1][1],
        lengths,
        options.prompt,
        options.batch,
        options.tp,
        options.use,
        options.wire,
    )
    job.instances(options.tp)
    return job, pools[-1][0], pools[0][0] if len(pools) == 2 else 0


def main(args: Sequence[str] = ()) -> None:
    """Split GPUs between generation and training, simulate every mode: gamut plan stream --help."""
    import tyro
    from rich.console import Console
    from rich.table import Table

    from gamut.plan.stream_page import write

    options = tyro.cli(Options, args=list(args), prog="gamut plan stream")
    job, gpus, apart = read_job(options)
    rows = compare(
        job,
        gpus,
        apart=apart,
        iterations=options.iterations,
        seed=options.seed,
        unit=8 if gpus % 8 == 0 and gpus > 8 and 8 % job.tp == 0 else job.tp,
        policy=options.policy,
        noise=options.noise,
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("mode", "order", "GPUs", "s/iteration", "samples/s", "generating", "training", "samples/s per cost"):
        table.add_column(name, justify="left" if name in ("mode", "order") else "right")
    for row in rows:
        pools = f"{row.generators}" if row.mode == "colocated" else f"{row.generators}+{row.trainers}"
        table.add_row(
            row.mode,
            row.policy,
            pools,
            f"{row.outcome.steady:.1f}",
            f"{job.batch / row.outcome.steady:.2f}",
            f"{row.outcome.generating:.0%}",
            f"{row.outcome.training:.0%}",
            f"{row.cost:.2f}",
        )
    Console(width=110).print(table)
    print(write(options.out, job, rows, f"{options.model} on {options.gpus}, lengths {options.lengths}"))


def elastic(
    job: Job, generators: int, trainers: int, sets: Sequence[Lengths], *, unit: int = 8, seed: int = 0
) -> list[dict]:
    """Lengths that change from iteration to iteration, with the elastic rule; a line per iteration (V5, Figure 11)."""
    from gamut.plan.stream_policy import should_grow

    lines = []
    for i, lengths in enumerate(sets):
        now = replace(job, lengths=lengths)
        batch = now.draw(1, seed + i)
        run = partial(simulate, batches=batch, seed=seed)
        one = run(now.setup("one-step", generators, trainers, policy="lpt")).iterations[0]
        more = run(now.setup("one-step", generators + unit, trainers, policy="lpt")).iterations[0]
        made, trained, after = one[1] - one[0], one[3] - one[2], more[1] - more[0]
        grow = should_grow(made, trained, after)
        lines.append(
            {
                "iteration": i + 1,
                "gpus": generators + trainers,
                "generate": made,
                "train": trained,
                "gap": made - trained,
                "gain": made - after,
                "grow": grow,
            }
        )
        generators += unit if grow else 0
    return lines
