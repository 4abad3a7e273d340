"""Generation instances, event by event: continuous batching, a limit on what decodes at once, migration of the long
tail.

All samples of an instance advance by one token per step, and a step takes as long as its batch size says. Between two
events (a sample ends, a sample is admitted) nothing changes, so the simulation jumps from event to event.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gamut.plan.stream_policy import Latency, Queues, deal


@dataclass(frozen=True)
class Instance:
    """One replica of the model that generates.

    latency: (batch, mean context in tokens) -> seconds per token. slots: most samples at once. prefill: seconds per
    prompt token, which stops decoding meanwhile.
    """

    latency: Latency
    slots: int
    prefill: float = 0.0

    def __post_init__(self):
        if self.slots < 1 or self.prefill < 0:
            raise ValueError(f"an instance needs slots >= 1 and prefill >= 0; got {self.slots} and {self.prefill}")


@dataclass
class Generated:
    """When each sample was done (seconds, by prompt), and what the instances did until then.

    ``left``: tokens still to come by sample, where generation was stopped early. ``skewness``: seconds, over all
    instances, from the end of an instance to the end of the last, plus time below the full batch, in shares of it.
    """

    done: np.ndarray
    ends: np.ndarray
    tokens: int
    skewness: float
    left: dict[int, list[tuple[int, float]]] = field(default_factory=dict)

    @property
    def makespan(self) -> float:
        return float(self.ends.max())


class Running:
    """One instance: a clock in seconds, a clock in tokens, and a heap of the token counts at which samples end."""

    def __init__(
        self,
        spec: Instance,
        queue: Sequence[int] | np.ndarray,
        lengths: np.ndarray,
        prompts: np.ndarray,
        begin: float = 0.0,
        past: dict[int, float] | None = None,
    ):
        self.spec, self.lengths, self.prompts = spec, lengths, prompts
        self.queue, self.at = list(queue), 0
        self.time, self.step, self.idle, self.waited = begin, 0.0, 0.0, 0.0
        self.heap: list[tuple[float, int]] = []
        self.born: dict[int, float] = {}  # token clock at which a sample's context was empty
        self.births = 0.0  # sum of those that run
        self.past = past or {}
        self._admit()

    def _admit(self) -> None:
        while len(self.heap) < self.spec.slots and self.at < len(self.queue):
            sample = self.queue[self.at]
            self.at += 1
            self.time += self.spec.prefill * float(self.prompts[sample])
            already = self.past.get(sample, 0.0)
            heapq.heappush(self.heap, (self.step + float(self.lengths[sample]) - already, sample))
            self.born[sample] = self.step - already - float(self.prompts[sample])
            self.births += self.born[sample]

    @property
    def load(self) -> int:
        """Samples that run or wait."""
        return len(self.heap) + len(self.queue) - self.at

    def feed(self, now: float, samples: Sequence[int]) -> None:
        """More samples at a time before the next event; an idle instance has waited until then."""
        if now > self.time:
            if self.heap:
                self.idle += (now - self.time) * (1 - len(self.heap) / self.spec.slots)
                self.step += (now - self.time) / self.rate()
            else:
                self.waited += now - self.time
            self.time = now
        self.queue += samples
        self._admit()

    def rate(self) -> float:
        """Seconds per token now, with the context half way to the next event."""
        ahead = self.heap[0][0] - self.step
        context = self.step - self.births / len(self.heap) + ahead / 2
        return self.spec.latency(len(self.heap), context)

    def next(self) -> float:
        """When the next sample ends; infinite if none is left."""
        return self.time + (self.heap[0][0] - self.step) * self.rate() if self.heap else math.inf

    def pop(self, until: float) -> list[int]:
        """Advance to ``until``, which is `next`; the samples that end then."""
        size = len(self.heap)
        self.idle += (until - self.time) * (1 - size / self.spec.slots)
        self.time, self.step = until, self.heap[0][0]
        ended = []
        while self.heap and self.heap[0][0] <= self.step + 1e-9:
            ended.append(heapq.heappop(self.heap)[1])
            self.births -= self.born.pop(ended[-1])
        self._admit()
        return ended

    def remains(self, now: float) -> list[tuple[int, float]]:
        """(sample, tokens to go) at a time before the next event."""
        step = self.step + (now - self.time) / self.rate() if self.heap and now > self.time else self.step
        return [(s, end - step) for end, s in self.heap] + [(s, float(self.lengths[s])) for s in self.queue[self.at :]]


def generate(
    instances: Sequence[Instance],
    queues: Queues,
    lengths: Sequence[float] | np.ndarray,
    prompts: Sequence[float] | np.ndarray | None = None,
    *,
    begin: float = 0.0,
    stop_at: int = 0,
    past: dict[int, float] | None = None,
) -> Generated:
    """Run every instance through its queue.

    Args:
        queues: per instance, indices into ``lengths``, in the order of admission.
        lengths: true output lengths, tokens.
        prompts: prompt lengths, tokens; only prefill and the context of the latency look at them.
        begin: time at which all start.
        stop_at: stop as soon as this many samples are unfinished (0: run to the end); ``left`` then tells what remains.
        past: tokens that a sample has already (after a migration).
    Raises:
        ValueError: queues that do not fit the instances.
    """
    true = np.asarray(lengths, dtype=float)
    asked = np.zeros(len(true)) if prompts is None else np.asarray(prompts, dtype=float)
    if len(queues) != len(instances):
        raise ValueError(f"{len(instances)} instances need as many queues, got {len(queues)}")
    running = [Running(spec, queue, true, asked, begin, past) for spec, queue in zip(instances, queues, strict=True)]
    done = np.full(len(true), np.nan)
    unfinished = sum(len(queue) for queue in queues)
    tokens = int(sum(true[sample] for queue in queues for sample in queue))
    events = [(one.next(), i) for i, one in enumerate(running)]
    heapq.heapify(events)
    now = begin
    while unfinished > stop_at:
        now, i = heapq.heappop(events)
        for sample in running[i].pop(now):
            done[sample] = now
            unfinished -= 1
        heapq.heappush(events, (running[i].next(), i))
    left = {i: one.remains(now) for i, one in enumerate(running)} if stop_at else {}
    ends = np.array([max(one.time, begin) if not left else now for one in running])
    skewness = float(sum(one.idle for one in running) + (ends.max() - ends).sum())
    return Generated(done, ends, tokens, skewness, left)


def place(
    instances: Sequence[Instance],
    estimate: np.ndarray,
    prompts: np.ndarray,
    policy: str,
    *,
    rng: np.random.Generator | None = None,
    tail: float = 0.2,
) -> Queues:
    """`deal` by estimated lengths; "best" tries Algorithm 2 with either objective and no tail, and takes what ends
    soonest if the estimates are true (ours: Algorithm 2 counts whole rounds, which at times is far off)."""
    first, context = instances[0], float(np.mean(prompts) + np.mean(estimate) / 2)

    def dealt(policy: str) -> Queues:
        return deal(estimate, len(instances), policy=policy, rng=rng, tail=tail, slots=first.slots,
                    latency=lambda batch: first.latency(batch, context))  # fmt: skip

    if policy != "best":
        return dealt(policy)
    tried = [dealt(policy) for policy in ("round", "skew-max", "skew")]
    return min(tried, key=lambda queues: generate(instances, queues, estimate, prompts).makespan)


@dataclass(frozen=True)
class FusedStage:
    """Generation and inference overlapped by migration (RLHFuse, section 4).

    threshold: share of the batch unfinished at migration; 0 means that nothing is fused. keep: instances that go on.
    """

    threshold: float
    keep: int
    moved: int
    seconds: float
    generation: float


def fuse_inference(
    instances: Sequence[Instance],
    queues: Queues,
    lengths: Sequence[float] | np.ndarray,
    inference: float,
    *,
    thresholds: Sequence[float] = tuple(np.arange(0.05, 0.951, 0.05)),
    saturated: int,
    capacity: int,
    move: Callable[[int, float], float] = lambda samples, tokens: 0.0,
    switch: float = 0.0,
) -> FusedStage:
    """The migration threshold R_t that ends generation and inference soonest, by trying all.

    Args:
        inference: seconds for the forward passes over the whole batch on all GPUs; shared out by tokens.
        saturated: BS_max, decode batch size beyond which a token takes noticeably longer.
        capacity: samples of the greatest length whose cache fits an instance.
        move: (samples, tokens already generated) -> seconds to move or recompute their caches.
        switch: seconds to load the inference models on freed instances.
    """
    true, total = np.asarray(lengths, dtype=float), sum(len(queue) for queue in queues)
    plain = generate(instances, queues, true)
    best = FusedStage(0.0, len(instances), 0, plain.makespan + inference, plain.makespan)
    for share in thresholds:
        few = math.ceil(share * total)
        keep = max(math.ceil(few / saturated), math.ceil(few / capacity), 1)
        if keep >= len(instances) or few >= total:
            continue
        first = generate(instances, queues, true, stop_at=few)
        start = float(first.ends.max())
        order = sorted(first.left, key=lambda i: -len(first.left[i]))
        stay = [list(first.left[i]) for i in order[:keep]]
        movers = sorted((one for i in order[keep:] for one in first.left[i]), key=lambda one: -one[1])
        for one in movers:
            min(stay, key=len).append(one)
        past = {s: float(true[s]) - rest for group in stay for s, rest in group}
        cost = move(len(movers), sum(past[s] for s, _ in movers)) if movers else 0.0
        rest = generate(
            [instances[i] for i in order[:keep]],
            [[s for s, _ in group] for group in stay],
            true,
            begin=start + cost,
            past=past,
        )
        freed = (len(instances) - keep) / len(instances)
        end = _inference_end(
            np.where(np.isnan(first.done), rest.done, first.done), true, inference, start + switch, freed, rest.makespan
        )
        if end < best.seconds:
            best = FusedStage(float(share), keep, len(movers), end, rest.makespan)
    return best


def _inference_end(
    done: np.ndarray, lengths: np.ndarray, inference: float, start: float, freed: float, end: float
) -> float:
    """Inference runs on the share ``freed`` of the GPUs until generation ends, then on all; a sample must be done
    first."""
    now, work = start, inference * lengths / lengths.sum()
    for sample in np.argsort(done, kind="stable"):
        now = max(now, done[sample])
        slow = min(work[sample], max(0.0, end - now) * freed)
        now += slow / freed + (work[sample] - slow)
    return max(now, end)
