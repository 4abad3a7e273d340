"""One RL workload on GPUs: replicas that generate, a trainer, and how the GPUs are split between them.

Training FLOPs per token: 6 x parameters each for actor and critic, 2 x each for the forward passes of reference and
critic (StreamRL's PPO; critic and reference have the actor's size).

Four numbers that the paper leaves open were fitted to it, each on the cells named beside it; benchmarks/stream.py
prints every published cell beside the simulated one, and which of them were fitted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np

from gamut.plan.stream_generate import Instance
from gamut.plan.stream_hardware import MOST, Gpu, Measured, Model, Roofline, slots, training_efficiency
from gamut.plan.stream_lengths import Lengths
from gamut.plan.stream_modes import Setup, Trainer, simulate
from gamut.plan.stream_policy import MISSED, Former, allocate, should_grow

PPO_FLOPS = 6 + 6 + 2 + 2  # per parameter and token: actor, critic; reference forward, critic forward
USE = 0.3  # fitted: Figure 10's training bars, in seconds by Figure 8's Async of 32B and 72B at 20K
UPDATE = 10.0  # fitted: Figure 8, Sync and Async of 7B at 5K
EXCHANGE = 0.3e-9  # fitted: Figure 8, colocated 72B at 20K, and Table 3


@dataclass(frozen=True)
class Job:
    """One workload on one kind of GPU per side.

    Args:
        prompt: tokens (StreamRL Figure 7 left: mode below 200, a bump at 700).
        batch: samples of an iteration (1024 in the paper).
        tp: GPUs of one replica that generates.
        use: share of the trainer's FLOPS.
        wire: bytes/s for new weights.
        launch: seconds of a micro-step, whatever its size.
        update: seconds of training at the end of an iteration that do not shrink with the batch: last pipeline drained,
            gradients reduced, optimisers stepped, models swapped.
        exchange: seconds for each parameter to bring actor, critic and reference onto the GPUs and back (colocated).
        reserve: cache that a sample is given when it is admitted, as a share of the greatest length.
        most: samples that a replica decodes at once, at most, however many its cache would hold.
        share: of the memory, for weights and cache of a replica.
    """

    model: Model
    generator: Gpu
    trainer: Gpu
    lengths: Lengths
    prompt: float = 300.0
    batch: int = 1024
    tp: int = 1
    use: float = USE
    wire: float = 25e9
    launch: float = 0.05
    update: float = UPDATE
    exchange: float = EXCHANGE
    flops: float = PPO_FLOPS
    reserve: float = 1.0
    most: int = MOST
    share: float = 0.9

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
        tokens = self.reserve * (self.lengths.longest + self.prompt)
        room = slots(self.model, self.generator, self.tp, tokens, self.share)
        prefill = 2 * self.model.parameters / (self.tp * self.generator.flops * self.use)
        return (Instance(self.latency(), min(room, self.most), prefill),) * (gpus // self.tp)

    def training(self, gpus: int) -> Trainer:
        """Seconds per token on ``gpus`` GPUs."""
        reached = self.use * training_efficiency(self.model, self.trainer, gpus)
        token = self.flops * self.model.parameters / (gpus * self.trainer.flops * reached)
        return Trainer(token, self.launch, self.update)

    def setup(self, mode: str, generators: int, trainers: int, **more: Any) -> Setup:
        """The simulator's input; ``colocated`` counts the same GPUs on both sides."""
        colocated = mode == "colocated"
        return Setup(
            mode,
            self.instances(generators),
            self.training(trainers),
            transfer=0.0 if colocated else self.model.weights / self.wire,
            switch=self.exchange * self.model.parameters / 2,
            former=Former(4096.0 * trainers),  # tokens that fill the trainer: 4,096 a GPU (ours)
            **more,
        )

    def draw(self, iterations: int, seed: int) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        return [self.lengths.sample(self.batch, rng) for _ in range(iterations)]


def stages(job: Job, policy: str, noise: float = MISSED, seed: int = 0) -> Callable[[int], tuple[float, float]]:
    """What Algorithm 1 asks of a profile: GPUs -> (seconds to generate, seconds to train) one iteration on them."""
    lengths = job.draw(1, seed)

    @cache
    def timed(gpus: int) -> tuple[float, float]:
        setup = job.setup("one-step", gpus, gpus, policy=policy, noise=noise)
        made = simulate(setup, lengths, seed=seed).iterations[0]
        return made[1] - made[0], made[3] - made[2]

    return timed


def split(
    job: Job, gpus: int, *, unit: int = 8, seed: int = 0, policy: str = "best", noise: float = MISSED
) -> tuple[int, int]:
    """Algorithm 1 with the simulator as the profile: (GPUs to generate, GPUs to train)."""
    timed = stages(job, policy, noise, seed)
    return allocate(gpus, lambda count: timed(count)[0], lambda count: timed(count)[1], unit=unit)


def elastic(
    job: Job,
    generators: int,
    trainers: int,
    sets: Sequence[Lengths],
    *,
    unit: int = 8,
    seed: int = 0,
    policy: str = "best",
) -> list[dict]:
    """Lengths that change from iteration to iteration, with the elastic rule; a line per iteration (V5, Figure 11)."""
    lines = []
    for i, lengths in enumerate(sets):
        now = replace(job, lengths=lengths)
        run = partial(simulate, batches=now.draw(1, seed + i), seed=seed)
        one = run(now.setup("one-step", generators, trainers, policy=policy)).iterations[0]
        more = run(now.setup("one-step", generators + unit, trainers, policy=policy)).iterations[0]
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
