"""The decisions of a streamed RL run, as objects that the simulator and a runtime call alike.

Source: StreamRL (arXiv 2504.15930), sections 4 and 5; what is ours is marked.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Latency = Callable[..., float]  # (decode batch size) -> seconds per token
Queues = Sequence[Sequence[int] | np.ndarray]  # per instance, prompts by number, as they are admitted


def deal(
    lengths: Sequence[float] | np.ndarray,
    instances: int,
    *,
    policy: str = "fifo",
    rng: np.random.Generator | None = None,
    latency: Latency | None = None,
    slots: int = 64,
    tail: float = 0.2,
    recent: Sequence[float] | None = None,
    doubtful: Sequence[bool] | None = None,
) -> Queues:
    """Which instance generates which prompt, and in which order.

    Args:
        lengths: estimated output length of each prompt; "fifo" does not look at them.
        policy: "fifo" random placement and order; "lpt" random placement, longest first; "round" longest first, dealt
            in turn over all instances (ours: most of the gain, and no instance kept for the tail); "skew" Algorithm 2
            with the sum that is printed; "skew-max" with the maximum that its text asks for. Both order by LPT.
        latency, slots: what Algorithm 2 needs: seconds per token by batch size, and largest batch of an instance.
        tail: share of prompts that Algorithm 2 treats as the long tail (0.2 in the paper).
        recent: lengths seen lately, for Algorithm 2's P90 and P50; the estimates if None.
        doubtful: prompts whose estimate is not to be trusted: they are put first (ours).
    """
    estimate = np.asarray(lengths, dtype=float)
    if policy not in POLICIES[:-1]:
        raise ValueError(f"unknown dispatch '{policy}'; allowed: {', '.join(POLICIES[:-1])}")
    if instances < 1 or not len(estimate):
        raise ValueError(f"dispatch needs prompts and instances >= 1; got {len(estimate)} and {instances}")
    rng = rng or np.random.default_rng(0)
    ranked = estimate.copy()
    if doubtful is not None:
        ranked[np.asarray(doubtful, dtype=bool)] = np.inf
    order = np.argsort(-ranked, kind="stable")
    if policy == "round":
        return [order[i::instances] for i in range(instances)]
    if policy in ("fifo", "lpt"):
        shuffled = rng.permutation(len(estimate))
        queues = [shuffled[i::instances] for i in range(instances)]
        return queues if policy == "fifo" else [q[np.argsort(-ranked[q], kind="stable")] for q in queues]
    if latency is None:
        raise ValueError(f"dispatch '{policy}' needs the latency of a token by batch size")
    few = max(1, round(tail * len(order)))
    seen = estimate if recent is None else np.asarray(recent, dtype=float)
    long = split_instances(
        few,
        len(order) - few,
        instances,
        np.quantile(seen, 0.9),
        np.quantile(seen, 0.5),
        latency,
        slots,
        total="max" if policy == "skew-max" else "sum",
    )
    if long == 0:
        return [order[i::instances] for i in range(instances)]
    rest = instances - long
    return [order[:few][i::long] for i in range(long)] + [order[few:][i::rest] for i in range(rest)]


MISSED = 0.25  # share of prompts that the ranker misses: by Table 4's recall and Figure 9's ranker
POLICIES = ("fifo", "lpt", "round", "skew", "skew-max", "best")  # the last is `stream_generate.place`'s


def batch_latency(prompts: int, length: float, instances: int, latency: Latency, slots: int) -> float:
    """Equation 2: seconds to generate ``prompts`` samples of one length on some instances with at most ``slots`` at
    once."""
    each = math.ceil(prompts / instances)
    batch = min(each, slots)
    return latency(batch) * length * math.ceil(each / batch)


def split_instances(
    few: int,
    many: int,
    instances: int,
    length_few: float,
    length_many: float,
    latency: Latency,
    slots: int,
    *,
    total: Literal["sum", "max"] = "max",
) -> int:
    """Algorithm 2: how many instances the long tail gets; 0 if there are too few instances to keep any for it."""
    if instances < 2 or not many:
        return 0
    join = sum if total == "sum" else max

    def cost(long: int) -> float:
        return join(
            (
                batch_latency(few, length_few, long, latency, slots),
                batch_latency(many, length_many, instances - long, latency, slots),
            )
        )

    return min(range(1, instances), key=cost)


def allocate(
    budget: int, generate: Callable[[int], float], train: Callable[[int], float], *, unit: int = 1
) -> tuple[int, int]:
    """Algorithm 1, one datacentre: (GPUs to generate, GPUs to train) that minimise the longer of the two stages.

    Of equal splits the first in the paper's order: the fewest GPUs to generate, then the fewest to train.
    """
    if budget < 2 * unit or budget % unit:
        raise ValueError(f"the budget must be a multiple of {unit} GPUs and at least {2 * unit}; got {budget}")
    times = {k: (generate(k), train(k)) for k in range(unit, budget, unit)}
    splits = [(x, y) for x in times for y in times if x + y <= budget]
    return min(splits, key=lambda split: max(times[split[0]][0], times[split[1]][1]))


def allocate_apart(
    generators: int, trainers: int, generate: Callable[[int], float], train: Callable[[int], float], *, unit: int = 1
) -> tuple[int, int]:
    """Algorithm 1, two datacentres: the faster side gives GPUs back until both take about as long."""
    if min(generators, trainers) < unit:
        raise ValueError(f"each datacentre needs at least {unit} GPUs; got {generators} and {trainers}")
    slow_g, slow_t = generate(generators), train(trainers)
    if slow_g < slow_t:
        return min(range(unit, generators + 1, unit), key=lambda k: abs(generate(k) - slow_t)), trainers
    return generators, min(range(unit, trainers + 1, unit), key=lambda k: abs(train(k) - slow_g))


def should_grow(generate: float, train: float, after: float) -> bool:
    """The elastic rule (section 4.2): add an instance when generation lags by at least what the instance would win.

    Args:
        generate, train: time of each stage in the last iteration.
        after: time of generation with one instance more, from the profile.
    """
    return generate - train >= generate - after > 0


@dataclass(frozen=True)
class Former:
    """When a trainer that is free takes what has arrived: at ``tokens`` (a full GPU), or when no more will come."""

    tokens: float

    def ready(self, waiting: float, finished: bool) -> bool:
        return waiting > 0 and (finished or waiting >= self.tokens)


def version(batch: int, staleness: int) -> int:
    """Weights that generate batch ``batch``: W_max(0, i - s); s = 0 on-policy, 1 fully asynchronous (Figure 5 d)."""
    return max(0, batch - staleness)


def rank_noise(lengths: Sequence[float] | np.ndarray, missed: float, rng: np.random.Generator) -> np.ndarray:
    """Estimates of a ranker that misses a share ``missed`` of the prompts by a factor of about 2 and the others by 6 %.

    Log-normal, sigma 0.6 and 0.06 (ours). On Figure 7's lengths 0.25 gives a recall of .90 / .85 / .73; Table 4 has .87
    / .82 / .76. One sigma for all cannot: 0.25 gives .89 / .81 / .61.
    """
    true = np.asarray(lengths, dtype=float)
    sigma = np.where(rng.random(len(true)) < missed, 0.6, 0.06)
    return true * np.exp(sigma * rng.standard_normal(len(true)))


def recall(lengths: Sequence[float], estimates: Sequence[float], share: float) -> float:
    """Share of the truly longest ``share`` that is among the longest by estimate (Table 4)."""
    count = max(1, round(share * len(lengths)))
    return len(set(np.argsort(lengths)[-count:]) & set(np.argsort(estimates)[-count:])) / count
