"""Asynchronous RL without batch borders: replicas never wait for the last sample of a batch (verl's asynchronous
trainer).

Samples are released to the replicas in one stream. After update k at most (k + 1 + ahead) batches have been released in
all, so that a sample lags by little more than ``ahead`` versions; ``ahead`` = 0 is on-policy, with training streamed.
Samples that are being generated when new weights come go on with these.
"""

import heapq
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from gamut.plan.stream_generate import Running
from gamut.plan.stream_modes import Outcome, Setup


def pool(setup: Setup, lengths: Sequence[float], batch: int, *, ahead: float = 0.0, prompt: float = 0.0) -> Outcome:
    """Run ``len(lengths) // batch`` updates of ``batch`` samples each.

    Args:
        setup: instances, trainer, transfer and parts (micro-batches of an update); its mode and policy are not used.
        lengths: output lengths in tokens, in the order of release.
        ahead: staleness bound, as a share of a batch.
        prompt: tokens of every prompt.
    Returns:
        `Outcome`; an iteration is (release of its batch, its last sample done, training from, to).
    Raises:
        ValueError: less than one batch, or a negative bound.
    """
    true, updates = np.asarray(lengths, dtype=float), len(lengths) // batch if batch > 0 else 0
    if updates < 1 or ahead < 0:
        raise ValueError(f"a pool needs a whole batch >= 1 and ahead >= 0; got {len(lengths)}, {batch} and {ahead}")
    run = _Pool(setup, true[: updates * batch], batch, ahead, np.full(len(true), prompt))
    while len(run.rows) < updates:
        run.step()
    seconds = run.rows[-1][3]
    busy = float(np.sum([one.time - one.waited for one in run.running])) / len(run.running)
    return Outcome(
        seconds, len(run.true), int(run.true.sum()), tuple(run.rows), dict(run.stale), min(1.0, busy / seconds),
        run.trained / seconds, max(0.0, seconds - run.trained) / updates,
        sum(one.idle for one in run.running) / len(run.running) / updates,
    )  # fmt: skip


class _Pool:
    """Two kinds of event: a replica finishes samples; the trainer finishes a micro-batch."""

    def __init__(self, setup: Setup, true: np.ndarray, batch: int, ahead: float, prompts: np.ndarray):
        self.setup, self.true, self.batch, self.ahead = setup, true, batch, ahead
        self.running = [Running(spec, [], true, prompts) for spec in setup.instances]
        self.prompts, self.released, self.done = prompts, 0, []
        self.version, self.rows, self.stale = 0, [], Counter()
        self.born = np.zeros(len(true), dtype=int)
        self.free, self.taken, self.trained = 0.0, 0, 0.0
        self.begun, self.opened, self.arrives = math.nan, 0.0, math.inf
        self.events: list[tuple[float, int, int]] = []
        self.stamp = [0] * len(self.running)
        self.release(0.0)

    def release(self, now: float) -> None:
        """Deal new samples to the replicas with the fewest."""
        until = min(len(self.true), math.floor((self.version + 1 + self.ahead) * self.batch))
        loads = [(one.load, i) for i, one in enumerate(self.running)]
        heapq.heapify(loads)
        fresh: list[list[int]] = [[] for _ in self.running]
        for sample in range(self.released, until):
            load, i = heapq.heappop(loads)
            fresh[i].append(sample)
            self.born[sample] = self.version
            heapq.heappush(loads, (load + 1, i))
        self.released = until
        for i, samples in enumerate(fresh):
            if samples:
                self.running[i].feed(now, samples)
                self._expect(i)

    def _expect(self, i: int) -> None:
        self.stamp[i] += 1
        if (when := self.running[i].next()) < math.inf:
            heapq.heappush(self.events, (when, self.stamp[i], i))

    def step(self) -> None:
        """The next sample that ends, or the next weights that arrive; the trainer works in between."""
        while self.events and self.events[0][1] != self.stamp[self.events[0][2]]:
            heapq.heappop(self.events)
        when = self.events[0][0] if self.events else math.inf
        self._train(when)
        if self.arrives <= when:
            now, self.arrives, self.version = self.arrives, math.inf, self.version + 1
            self.opened, self.begun = now, math.nan
            self.release(now)
        elif self.events:
            _, _, i = heapq.heappop(self.events)
            self.done += [(when, sample) for sample in self.running[i].pop(when)]
            self._expect(i)

    def _train(self, until: float) -> None:
        """Micro-batches that can start before ``until``; after a batch's last one, new weights are on their way."""
        trainer, part = self.setup.trainer, max(1, self.batch // self.setup.parts)
        border = self.batch * (self.version + 1)
        while self.arrives == math.inf:
            count = min(part, border - self.taken)
            if len(self.done) - self.taken < count:
                return
            start = max(self.free, self.done[self.taken + count - 1][0])
            if start >= until:
                return
            taken = [sample for _, sample in self.done[self.taken : self.taken + count]]
            self.begun = start if math.isnan(self.begun) else self.begun
            work = trainer.launch + trainer.token * float((self.true[taken] + self.prompts[taken]).sum())
            self.stale.update((self.version - self.born[taken]).tolist())
            self.free, self.taken, self.trained = start + work, self.taken + count, self.trained + work
            if self.taken == border:
                end = self.free + trainer.update
                self.trained += trainer.update
                self.rows.append((self.opened, self.done[border - 1][0], self.begun, end))
                self.free = self.arrives = end + self.setup.transfer
