"""The two fusions of RLHFuse (arXiv 2409.13221) planned for an actor and a critic on one cluster.

Between stages (section 4): when few samples are left, they are gathered on few instances, and inference begins on the
others. Within training (section 5): the pipelines of actor and critic run in opposite directions on the same nodes and
fill one another's gaps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gamut.plan.pipeline_fused import Fused
from gamut.plan.stream_generate import FusedStage, Instance, fuse_inference
from gamut.plan.stream_hardware import FILL, GPUS, MODELS, Roofline, replica, slots
from gamut.plan.stream_lengths import Lengths
from gamut.plan.stream_policy import deal

LLAMA = {"13B": (40, 5120), "33B": (60, 6656), "65B": (80, 8192)}  # layers, width (Table 2)
# Figure 2 left, read off: Vicuna-33B, tokens -> share of the answers that are shorter
VICUNA = {1: 0.0, 195: 0.40, 420: 0.66, 490: 0.85, 740: 0.95, 1945: 0.999}
SHARES = tuple(round(0.05 * i, 2) for i in range(1, 20))  # section 4: thresholds from 5 % to 95 % of the batch


@dataclass(frozen=True)
class Cluster:
    """Fuse generation with inference and actor with critic on one cluster (RLHFuse); draw the fused pipelines.

    A stage's forward takes time in proportion to layers x width^2 / tensor-parallel degree; backward takes twice that.
    Activations are in proportion to layers x width. The ratios of the released instances come out of the same rule.
    """

    gpus: int = 256  # H100s (paper 256)
    actor: str = "65B"  # 13B, 33B or 65B (LLaMA, Table 2 of the paper)
    critic: str = "33B"
    actor_stages: int = 16  # pipeline stages
    critic_stages: int = 8
    tp: int = 8  # tensor-parallel degree of both
    mini_batch: int = 64  # samples per update, all blocks together (paper: 64)
    micro_batch: int = 1  # samples in one micro-batch
    batch: int = 512  # samples of one iteration (paper: 512)
    longest: int = 1024  # tokens of the longest answer (paper: 512, 1024, 2048)
    prompt: int = 128  # tokens of a prompt; ours
    inference: float = 7.2  # seconds of reference, reward and critic over the batch, measured alone (Figure 8: 7.2)
    training: float = 20.0  # seconds of training, one model after the other, measured (Figure 8: 13.5 + 6.5)

    def __post_init__(self):
        for name in (self.actor, self.critic):
            if name not in LLAMA:
                raise ValueError(f"unknown model '{name}'; allowed: {', '.join(LLAMA)}")
        for name in ("gpus", "tp", "mini_batch", "micro_batch", "batch", "longest", "inference", "training"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


def fused_problem(plan: Cluster) -> tuple[Fused, int]:
    """(instance, blocks of nodes in the cluster) of a cluster plan; times in whole units of the smaller model's stage.

    Raises:
        ValueError: GPUs, stages and batches that do not divide.
    """
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
    times = [round(c / unit) for c in cost]
    common = math.gcd(*times)
    return Fused(
        f"{large}/{small}",
        stages0,
        stages1,
        micro0,
        micro0 * stages1 // stages0,
        *(time // common for time in times),
        *(round(h / weigh, 2) for h in held),
    ), blocks


def chat_lengths(longest: int) -> Lengths:
    """Vicuna-33B's answers, cut at ``longest`` tokens."""
    at, below = np.array([*VICUNA]), np.array([*VICUNA.values()])
    return Lengths(np.minimum(at[:-1], longest), np.minimum(at[1:], longest), np.diff(below))


def migrations(
    plan: Cluster, shares: Sequence[float] = SHARES, seed: int = 0
) -> tuple[FusedStage, dict[float, FusedStage]]:
    """(not fused, share of the batch unfinished at migration -> fused); seconds of generation and inference together.

    Replicas, latency and cache are those of the simulator of RL runs; moving a cache costs nothing, as on the paper's
    network. A share at which nothing is won has the seconds of the stages one after the other.

    Raises:
        ValueError: fewer GPUs than a replica needs.
    """
    gpu, model = GPUS["H100"], MODELS[plan.actor.lower()]
    tokens = plan.longest + plan.prompt
    tp = replica(model, gpu, tokens)
    if plan.gpus < tp:
        raise ValueError(f"generation with {plan.actor} needs {tp} GPUs a replica, got {plan.gpus}")
    room = slots(model, gpu, tp, tokens)
    replicas = (Instance(Roofline(model, gpu, tp), room),) * (plan.gpus // tp)
    lengths = chat_lengths(plan.longest).sample(plan.batch, np.random.default_rng(seed))
    queues = deal(lengths, len(replicas), rng=np.random.default_rng(seed))

    def at(*shares: float) -> FusedStage:
        return fuse_inference(
            replicas, queues, lengths, plan.inference, thresholds=shares, saturated=FILL, capacity=room
        )

    return at(), {share: at(share) for share in shares}
