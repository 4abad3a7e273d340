"""Autoregressive decoding: many samples at once through one preallocated cache, each free to end when it ends.

    samples = generate(model, [Prompt([1, 2, 3])], Sampling(max_new=20, stop=(0,)), n=4)

    stream = Stream(model, rows=8)              # the same machinery, a token at a time: a server's loop
    stream.add(Prompt([1, 2, 3]), Sampling())
    for token in stream: ...

T tokens · D width · B rows in use · V vocabulary
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gamut.generate.past import Past
from gamut.generate.sampling import Sampling, choose
from gamut.generate.step import Step
from gamut.models.decoder import Decoder
from gamut.nn.cache import Cache

PLAIN = Sampling()


@dataclass(frozen=True)
class Prompt:
    """Token ids, and their embeddings (T, D) where a model injects something else than its own (audio features).

    With a ``past`` only the ids behind those that it keeps (`Past.keep`) are run; ``embeds`` are of these alone.
    """

    ids: Sequence[int]
    embeds: Tensor | None = None
    past: Past | None = None


class Token(NamedTuple):
    """One decoded token. `finish` is "" until the sample's last token: then "stop" or "length"."""

    index: int
    id: int
    logprob: float
    finish: str


@dataclass
class Sample:
    """`ids` includes the stop; `logprobs` are those of the model itself, empty unless asked for."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str = ""


class _Prefill:
    """A prompt that is run once, kept until all its samples have begun."""

    def __init__(self, prompt: Prompt, samples: int):
        self.prompt, self.ids, self.waiting, self.past = prompt, list(prompt.ids), samples, prompt.past
        self.kept = 0
        if self.past:
            self.kept, self.past.user = self.past.keep(self.ids), self
        self.done: tuple[Cache, int, Tensor] | None = None  # its row of a cache, and the logits after its last token

    def take(self) -> tuple[Cache, int, Tensor]:
        assert self.done is not None
        done, self.waiting = self.done, self.waiting - 1
        if not self.waiting:
            self.done = None
        return done


@dataclass
class _Job:
    """One sample on its way."""

    index: int
    start: _Prefill
    sampling: Sampling
    noise: np.random.Generator
    seen: list[int]  # prompt and answer
    stops: tuple[tuple[int, ...], ...]
    left: int  # tokens it may still get


def generate(
    model: Decoder,
    prompts: Sequence[Prompt | Sequence[int]],
    sampling: Sampling | Sequence[Sampling] = PLAIN,
    *,
    n: int = 1,
    rows: int = 32,
    on_token: Callable[[int, int, float], bool | None] | None = None,
) -> list[Sample]:
    """Decode ``n`` samples of every prompt; sample ``i * n + j`` is the j-th of prompt i.

    Args:
        sampling: one for all prompts, or one per prompt.
        rows: samples decoded at once; a finished one is replaced at once by the next.
        on_token: called with (index of the sample, id, log-probability); returning False ends that sample ("stop").
    Raises:
        ValueError: as `Stream.add`; or the number of samplings differs from that of the prompts.
    """
    settings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
    if len(settings) != len(prompts):
        raise ValueError(f"give one sampling, or one per prompt; got {len(settings)} for {len(prompts)} prompts")
    stream = Stream(model, rows=min(rows, n * len(prompts)) or rows)
    for prompt, one in zip(prompts, settings, strict=True):
        stream.add(prompt, one, n=n)
    samples = [Sample() for _ in range(n * len(prompts))]
    for token in stream:
        sample = samples[token.index]
        sample.ids.append(token.id)
        if settings[token.index // n].logprobs:
            sample.logprobs.append(token.logprob)
        sample.finish = token.finish
        if on_token is not None and on_token(token.index, token.id, token.logprob) is False and not token.finish:
            stream.stop(token.index)
            sample.finish = "stop"
    return samples


class Stream:
    """Continuous batching: iterate to get tokens as they come; samples may be added and stopped in between."""

    def __init__(self, model: Decoder, rows: int = 32):
        if rows < 1:
            raise ValueError(f"rows must be 1 or more, got {rows}")
        self.model, self.rows = model, rows
        self._cache: Cache | None = None
        self._fast: Step | None = None
        self._queue: deque[_Job] = deque()
        self._active: list[_Job | None] = []  # by cache row
        self._ready: deque[Token] = deque()
        self._count = 0

    def add(self, prompt: Prompt | Sequence[int], sampling: Sampling = PLAIN, n: int = 1) -> range:
        """Queue ``n`` samples of a prompt (which is run once for all of them); returns their indices.

        Raises:
            ValueError: an empty prompt, ids outside the vocabulary, embeddings of another shape, a prompt that leaves
                no room in the model's context, another model's past. `max_new` beyond the context is cut there.
        """
        prompt = prompt if isinstance(prompt, Prompt) else Prompt(list(prompt))
        self._check(prompt, n)
        start, stops = _Prefill(prompt, n), sampling.stops()
        self._check_embeds(start)
        left = min(sampling.max_new, self.model.config.max_positions - len(start.ids))
        indices = range(self._count, self._count + n)
        for copy, index in enumerate(indices):
            noise = sampling.noise(start.ids, copy)
            self._queue.append(_Job(index, start, sampling, noise, list(start.ids), stops, left))
        self._count += n
        return indices

    def stop(self, index: int) -> None:
        """Drop a sample: no further token of it comes. Unknown and finished ones are ignored."""
        for row, job in enumerate(self._active):
            if job and job.index == index:
                self._leave(row, job)
        self._queue = deque(job for job in self._queue if job.index != index)
        self._ready = deque(token for token in self._ready if token.index != index)

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        while not self._ready:
            if not self._queue and not any(self._active):
                raise StopIteration
            with torch.inference_mode():
                self._admit() if self._queue and sum(map(bool, self._active)) < self.rows else self._step()
        return self._ready.popleft()

    def _check(self, prompt: Prompt, n: int) -> None:
        c, ids = self.model.config, prompt.ids
        if not len(ids):
            raise ValueError("a prompt must have at least one token, got none; start it with a begin-of-text id")
        if len(ids) >= c.max_positions:
            raise ValueError(
                f"the prompt has {len(ids)} tokens, the model's context holds {c.max_positions} and a new token needs "
                f"room; shorten the prompt to {c.max_positions - 1} or raise max_positions"
            )
        if min(ids) < 0 or max(ids) >= c.vocab:
            raise ValueError(f"prompt ids must lie in 0 .. {c.vocab - 1}; got {min(ids)} .. {max(ids)}")
        if n < 1:
            raise ValueError(f"n must be 1 or more, got {n}")
        if prompt.past and prompt.past.model is not self.model:
            raise ValueError("prompt.past is that of another model; make one with Past(model)")

    def _check_embeds(self, start: _Prefill) -> None:
        embeds, shape = start.prompt.embeds, (len(start.ids) - start.kept, self.model.config.width)
        if embeds is not None and embeds.shape != shape:
            raise ValueError(f"prompt.embeds must be {shape}, one per id that its past does not keep; "
                             f"got {tuple(embeds.shape)}")

    def _admit(self) -> None:
        """Fill free rows from the queue, running every prompt among them that was not run yet."""
        self._active += [None] * (self.rows - len(self._active))
        free = [row for row, job in enumerate(self._active) if job is None]
        jobs = [self._queue.popleft() for _ in range(min(len(free), len(self._queue)))]
        cache = self._room(max(len(job.seen) + job.left for job in jobs))
        self._prefill([job.start for job in jobs])
        self._fast = Step.of(self.model, self.rows)
        logits = []
        for row, job in zip(free, jobs, strict=False):
            source, source_row, logits_V = job.start.take()
            cache.copy_row(row, source, source_row)
            self._active[row] = job
            logits.append(logits_V)
        self._emit(free[: len(jobs)], torch.stack(logits))

    def _prefill(self, starts: list[_Prefill]) -> None:
        new = sorted({id(s): s for s in starts if s.done is None}.values(), key=lambda s: len(s.ids))
        for start in new:
            if start.past:
                start.done = self._go_on(start, start.past)
        new = [s for s in new if s.done is None]
        while new:
            batch = [s for s in new if len(s.ids) <= 1.25 * len(new[0].ids)]  # little padding; the rest next time
            new = new[len(batch) :]
            lengths = torch.tensor([len(s.ids) for s in batch])
            embeds_BTD = torch.nn.utils.rnn.pad_sequence([self._embed(s) for s in batch], batch_first=True)
            mask_BT = torch.arange(int(lengths[-1])) < lengths[:, None] if lengths[0] != lengths[-1] else None
            cache = self.model.new_cache(len(batch), int(lengths[-1]))
            x_BTD = self.model.hidden(embeds_BTD=embeds_BTD, mask_BT=mask_BT, cache=cache)
            logits_BV = self.model.head(x_BTD[torch.arange(len(batch)), lengths - 1])
            for row, start in enumerate(batch):
                start.done = cache, row, logits_BV[row]

    def _go_on(self, start: _Prefill, past: Past) -> tuple[Cache, int, Tensor]:
        """Run what is new in a prompt behind its past."""
        if past.user is not start:
            raise ValueError("a past was used by two prompts at once; give each conversation its own")
        cache = past.room(len(start.ids))
        x_1TD = self.model.hidden(embeds_BTD=self._embed(start)[None], cache=cache)
        past.ids = list(start.ids)
        return cache, 0, self.model.head(x_1TD[:, -1])[0]

    def _embed(self, start: _Prefill) -> Float[Tensor, "T D"]:
        weight = self.model.embed.weight
        if start.prompt.embeds is not None:
            return start.prompt.embeds.detach().to(weight)
        return self.model.embed(torch.tensor(start.ids[start.kept :], device=weight.device))

    def _step(self) -> None:
        """One token for every active row; the rows in use are kept in front, so the batch shrinks as samples end."""
        assert self._cache is not None
        used = [row for row, job in enumerate(self._active) if job]
        B = len(used)
        holes = [row for row in range(B) if self._active[row] is None]
        for hole, row in zip(holes, used[B - len(holes) :], strict=True):
            self._cache.copy_row(hole, self._cache, row)
            self._active[hole], self._active[row] = self._active[row], None
        last_B = torch.tensor([job.seen[-1] for job in self._active[:B] if job], device=self.model.norm.weight.device)
        if self._fast and not self._fast.fresh():
            self._fast = Step.of(self.model, self.rows)
        if self._fast:
            logits_BV = self._fast(last_B, self._cache)
        else:
            logits_BV = self.model.head(self.model.hidden(last_B[:, None], cache=self._cache)[:, 0])
        self._emit(list(range(B)), logits_BV)

    def _emit(self, rows: list[int], logits_BV: Float[Tensor, "B V"]) -> None:
        jobs = [job for row in rows if (job := self._active[row])]
        ids, logprobs = choose(
            logits_BV, [job.sampling for job in jobs], [job.seen for job in jobs], [job.noise for job in jobs]
        )
        for row, job, new, logprob in zip(rows, jobs, ids, logprobs, strict=True):
            job.seen.append(new)
            job.left -= 1
            answer = len(job.seen) - len(job.start.ids)
            hit = any(len(s) <= answer and tuple(job.seen[-len(s) :]) == s for s in job.stops)
            finish = "stop" if hit else "" if job.left else "length"
            if finish:
                self._leave(row, job)
            self._ready.append(Token(job.index, new, logprob, finish))

    def _leave(self, row: int, job: _Job) -> None:
        """Free a row; what it holds by now goes to the sample's past."""
        self._active[row] = None
        if job.start.past and job.start.past.user is job.start and self._cache:
            job.start.past.take(job.seen[: self._cache.lengths[row]], self._cache, row)

    def _room(self, length: int) -> Cache:
        """The cache, at least ``length`` slots long (the last token of a sample is never put in)."""
        old = self._cache
        if old is None or old.slots < length:
            self._cache = self.model.new_cache(self.rows, length if old is None else max(length, 2 * old.slots))
            for row, job in enumerate(self._active if old else ()):
                if job and old:
                    self._cache.copy_row(row, old, row)
        assert self._cache is not None
        return self._cache
