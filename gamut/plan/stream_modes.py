"""How generation and training overlap: five ways to run the same stages, iteration by iteration.

    colocated   generate, switch, train, switch, on the same GPUs
    mini        disaggregated; generation is cut into fixed parts, each trained on when it is complete
    sync        disaggregated; samples stream, training takes what has arrived whenever it is free (StreamRL-Sync)
    one-step    disaggregated; batch i+1 is generated while batch i trains, both wait for each other, then weights move
    async       as one-step, but streamed: weights move while both sides work on (StreamRL-Async)

Source: StreamRL (arXiv 2504.15930), section 4.1 and Figure 5.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gamut.plan.stream_generate import Generated, Instance, generate, place
from gamut.plan.stream_policy import Former, rank_noise, version

ANYTHING = Former(0.0)  # train on whatever has arrived
MODES = ("colocated", "mini", "sync", "one-step", "async")


@dataclass(frozen=True)
class Trainer:
    """Seconds of training: per token, per micro-step that is launched, per optimiser step."""

    token: float
    launch: float = 0.0
    update: float = 0.0

    def __post_init__(self):
        if self.token <= 0 or min(self.launch, self.update) < 0:
            raise ValueError(f"a trainer needs token > 0, launch >= 0 and update >= 0; got {self}")


@dataclass(frozen=True)
class Setup:
    """Everything that a run needs besides its lengths. Times in seconds.

    Args:
        mode: one of `MODES`.
        instances: those that generate.
        transfer: time for new weights to reach all instances.
        switch: colocated only: time to exchange the models on the GPUs, once each way.
        policy, tail: dispatch (see `stream_generate.place`).
        noise: share of prompts that the ranker misses (`rank_noise`); 0 is an oracle.
        parts: mini only: how many parts a batch is cut into.
        former: when a streamed trainer takes a micro-batch.
        staleness: async only: by how many versions samples may lag.
    """

    mode: str
    instances: tuple[Instance, ...]
    trainer: Trainer
    transfer: float = 0.0
    switch: float = 0.0
    policy: str = "fifo"
    tail: float = 0.2
    noise: float = 0.0
    parts: int = 8
    former: Former = ANYTHING
    staleness: int = 1

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"unknown mode '{self.mode}'; allowed: {', '.join(MODES)}")
        if not self.instances or self.parts < 1 or self.staleness < 0 or min(self.transfer, self.switch) < 0:
            raise ValueError(
                "a setup needs instances, parts >= 1, staleness >= 0, transfer >= 0 and switch >= 0; got "
                f"{len(self.instances)}, {self.parts}, {self.staleness}, {self.transfer}, {self.switch}"
            )


@dataclass(frozen=True)
class Outcome:
    """What a run took. ``iterations``: (generation from, to, training from, to) in seconds; ``staleness``: versions
    that a sample lags -> samples. Utilisations are shares of the whole run; bubbles are seconds in an iteration."""

    seconds: float
    samples: int
    tokens: int
    iterations: tuple[tuple[float, float, float, float], ...]
    staleness: dict[int, int]
    generating: float
    training: float
    pipeline_bubble: float
    skewness_bubble: float

    @property
    def throughput(self) -> float:
        """Samples a second, over the whole run."""
        return self.samples / self.seconds

    @property
    def steady(self) -> float:
        """Seconds between the ends of the training of consecutive batches, the first left out."""
        ends = [one[3] for one in self.iterations]
        return (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else ends[0]


def consume(
    arrivals: np.ndarray, tokens: np.ndarray, trainer: Trainer, former: Former, free: float
) -> tuple[float, float]:
    """Train on samples as they arrive: (start of the first micro-step, end of the optimiser step)."""
    order = np.argsort(arrivals, kind="stable")
    when, size = arrivals[order], tokens[order].astype(float)
    at, now, first = 0, free, None
    while at < len(when):
        now = max(now, when[at])
        last = int(np.searchsorted(when, now, side="right"))
        waiting = size[at:last].sum()
        while not former.ready(waiting, last == len(when)):
            now, waiting, last = when[last], waiting + size[last], last + 1
        first = now if first is None else first
        now += trainer.launch + trainer.token * waiting
        at = last
    return (free if first is None else first), now + trainer.update


def simulate(
    setup: Setup, batches: Sequence[np.ndarray], *, prompts: Sequence[np.ndarray] | None = None, seed: int = 0
) -> Outcome:
    """Run batches of known output lengths through the stages.

    Args:
        batches: output lengths in tokens, one array for each global batch.
        prompts: prompt lengths, likewise; none: 0.
        seed: of random placement and ranker noise.
    Raises:
        ValueError: no batch, or an empty one.
    """
    if not len(batches) or any(not len(batch) for batch in batches):
        raise ValueError("a simulation needs batches, and samples in each")
    rng = np.random.default_rng(seed)
    rows, stale, work_g, work_t, skew = [], Counter(), 0.0, 0.0, 0.0
    for i, batch in enumerate(batches):
        asked = np.zeros(len(batch)) if prompts is None else np.asarray(prompts[i])
        made = _generate(setup, np.asarray(batch), asked, rng)
        tokens = np.asarray(batch) + asked
        start = _start(setup, i, rows)
        begin, end = _train(setup, made, tokens, start, rows)
        rows.append((start, start + made.makespan, begin, end))
        lag = (
            i - version(i, setup.staleness if setup.mode == "async" else 1)
            if setup.mode in ("one-step", "async")
            else 0
        )
        stale[lag] += len(batch)
        work_g += made.makespan
        work_t += setup.trainer.token * float(tokens.sum()) + setup.trainer.update
        skew += made.skewness / len(setup.instances)
    seconds = rows[-1][3] + (setup.switch if setup.mode == "colocated" else 0.0)
    count = len(rows)
    return Outcome(
        seconds,
        sum(map(len, batches)),
        int(sum(np.sum(batch) for batch in batches)),
        tuple(rows),
        dict(stale),
        work_g / seconds,
        work_t / seconds,
        max(0.0, seconds - max(work_g, work_t)) / count,
        skew / count,
    )


def _generate(setup: Setup, lengths: np.ndarray, prompts: np.ndarray, rng: np.random.Generator) -> Generated:
    estimate = rank_noise(lengths, setup.noise, rng) if setup.noise else lengths
    queues = place(setup.instances, estimate, prompts, setup.policy, rng=rng, tail=setup.tail)
    return generate(setup.instances, queues, lengths, prompts)


def _start(setup: Setup, i: int, rows: Sequence[tuple[float, float, float, float]]) -> float:
    """When batch ``i`` begins to be generated."""
    if not rows:
        return 0.0
    if setup.mode == "colocated":
        return rows[-1][3] + setup.switch
    if setup.mode in ("mini", "sync"):
        return rows[-1][3] + setup.transfer
    if setup.mode == "one-step":  # both sides stop: generation of the last batch, training of the one before
        trained = rows[-2][3] if len(rows) > 1 else 0.0
        return max(rows[-1][1], trained) + setup.transfer
    needed = version(i, setup.staleness)  # weights after so many batches
    arrived = rows[needed - 1][3] + setup.transfer if needed else 0.0
    return max(rows[-1][1], arrived)


def _train(setup: Setup, made: Generated, tokens: np.ndarray, start: float, rows: Sequence) -> tuple[float, float]:
    """(start, end) of the training of a batch whose generation began at ``start``."""
    trainer, free = setup.trainer, rows[-1][3] if rows else 0.0
    arrivals = start + made.done
    if setup.mode in ("sync", "async"):
        return consume(arrivals, tokens, trainer, setup.former, free)
    if setup.mode == "mini":
        parts = np.array_split(np.arange(len(tokens)), min(setup.parts, len(tokens)))
        now, first = free, None
        for ready, size in sorted((float(arrivals[part].max()), float(tokens[part].sum())) for part in parts):
            now = max(now, ready)
            first = now if first is None else first
            now += trainer.launch + trainer.token * size
        return (free if first is None else first), now + trainer.update
    begin = start + made.makespan + (setup.switch if setup.mode == "colocated" else setup.transfer)
    begin = max(begin, free)
    return begin, begin + trainer.launch + trainer.token * float(tokens.sum()) + trainer.update
