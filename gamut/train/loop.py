"""The one training loop: `fit` runs steps, `update` is one optimiser update of one phase, `step` is the caller's.

    def step(batch, phase):  # the paper is in this function
        loss = cross_entropy(model(batch.ids), batch.targets)
        return loss, {"tokens": batch.ids.numel()}

    fit(step, model, Batches(make), steps=600, optim=Optim(lr=3e-3, warmup=50), run=run)

Every random number follows from (seed, stage, step, phase, micro-batch), so a step can be repeated alone, and a run
that was killed goes on bit by bit as if it had not been.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gamut.data.load import Stream
from gamut.io.learners import pack, unpack
from gamut.io.runs import Run
from gamut.io.state import load_state, own_dice, reseed, save_state, state_path
from gamut.train import dist
from gamut.train.log import COUNTS, Quiet, View
from gamut.train.optim import Learner, Optim, Phase
from gamut.train.scope import Clock, mode, precision, recompute

Stats = dict[str, float]
Step = Callable[[Any, str], tuple[Tensor, Mapping[str, Any]]]


@dataclass
class Fit:
    """What training gave. ``loss`` has one entry per update of the first phase, those before a resume included."""

    learners: list[Learner]
    steps: int = 0
    loss: list[float] = field(default_factory=list)
    stats: Stats = field(default_factory=dict)  # of the last step
    seconds: float = 0.0  # of all sittings
    interrupted: bool = False
    phase: int = 0  # where the next step begins; not 0 only after a later phase of a step went wrong

    @property
    def modules(self) -> list[nn.Module]:
        return [module for learner in self.learners for module in learner.modules.values()]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the modules hold their running averages, in phases that keep one."""
        with ExitStack() as stack:
            for learner in self.learners:
                stack.enter_context(learner.averaged())
            yield


class Interrupted(SystemExit):
    """SIGTERM or Ctrl-C: the step was finished and saved. Ends the program with 128 + the signal, as shells expect."""

    def __init__(self, number: int, fit: Fit):
        super().__init__(128 + number)
        self.fit = fit


class NotFiniteError(FloatingPointError):
    """A loss or gradient is nan or infinite; nothing was updated."""


def update(
    step: Step,
    learner: Learner,
    batches: Sequence[Any],
    lr: float,
    *,
    key: tuple[str | int, ...] = (0,),
    autocast: AbstractContextManager | None = None,
    clock: Clock | None = None,
) -> Stats:
    """One optimiser update of one phase from the micro-batches of this rank.

    The gradient is the mean over the micro-batches of all ranks. Where ``step`` puts a ``weight`` in its stats (the
    number of targets its loss averages, say) the mean is weighted by it, and does not depend on how rows were split.

    Args:
        step: ``step(batch, phase name) -> (scalar loss, stats)``; draws what it likes from the global random states.
        key: what the dice of this update follow from, with the phase and the number of the micro-batch.
    Returns:
        loss, lr, grad_norm (before clipping) and the stats of ``step``: means; sums of "tokens" and "audio_s".
    Raises:
        NotFiniteError: loss or gradient is; weights and running statistics are as before.
    """
    clock, autocast = Clock() if clock is None else clock, autocast or precision(learner.device)
    before, parts = [(b, b.clone()) for b in learner.buffers()], []
    with learner.alone():
        for i, batch in enumerate(batches):
            with clock("data"):
                batch = dist.move(batch, learner.device)
            reseed(*key, learner.name, dist.rank() + i * dist.world())
            with clock("forward"), autocast:
                loss, stats = step(batch, learner.name)
            with clock("backward"):
                (loss * stats["weight"] if "weight" in stats else loss).backward()
            parts.append({"loss": loss.detach(), **stats})
    with clock("wait"):
        ranks = dist.gather([{name: float(value) for name, value in part.items()} for part in parts])
        dist.sum_gradients(learner.params.values())
    rows = [rank[i] for i in range(len(batches)) for rank in ranks]  # in the order of one process
    weights = [row.pop("weight", 1.0) for row in rows]
    stats = {name: _merge(name, rows, weights) for row in rows for name in row}
    with clock("optimiser"):
        norm = float(learner.clip(math.fsum(weights)))
        if not (math.isfinite(stats["loss"]) and math.isfinite(norm)):
            for buffer, value in before:
                buffer.copy_(value)
            raise NotFiniteError(f"loss is {stats['loss']:g}, gradient norm is {norm:g}")
        learner.apply(lr)
    return stats | {"lr": lr, "grad_norm": norm}


def _merge(name: str, rows: Sequence[Stats], weights: Sequence[float]) -> float:
    found = [(row[name], weight) for row, weight in zip(rows, weights, strict=True) if name in row]
    if name in COUNTS or len(found) == 1:
        return math.fsum(value for value, _ in found)
    return math.fsum(value * weight for value, weight in found) / (math.fsum(w for _, w in found) or math.nan)


def fit(
    step: Step,
    phases: nn.Module | Phase | Sequence[Phase],
    data: Stream,
    *,
    steps: int,
    optim: Optim | None = None,
    run: Run | None = None,
    stage: str = "train",
    seed: int = 0,
    accumulate: int = 1,
    dtype: str = "auto",
    evaluate: Callable[[int], Mapping[str, float]] | None = None,
    evaluate_every: int = 0,
    save_every: int = 0,
    keep: int = 2,
    checkpointing: bool = False,
    view: View | None = None,
) -> Fit:
    """Train until ``steps`` steps are made, going on from the newest checkpoint of this stage in ``run``.

    Args:
        step: ``step(batch, phase name) -> (loss, stats)``, see `update`; it remembers nothing outside of the modules.
        phases: a step updates each in turn (those whose turn it is, ``every``) from the same batches; a bare module is
            one phase named "model", trained as ``optim`` says.
        data: gives micro-batches; batch = micro-batch x ``accumulate``, all ranks together.
        run: where to log and save; without it nothing is written. A stage whose last checkpoint is there only loads it.
        dtype: of the forward pass, see `precision`; weights and optimiser stay as they are.
        evaluate: step number -> stats, logged as eval/...; called every ``evaluate_every`` steps and after the last, on
            every rank, with the modules in eval mode, without gradient, holding the running average where one is kept.
        save_every: steps between checkpoints beside the one at the end (and on SIGTERM); 0: none. ``keep`` stay.
        checkpointing: set the ``checkpointing`` switch of the modules that have one: less memory, a second forward.
        view: None shows progress in the terminal.
    Raises:
        Interrupted: SIGTERM or Ctrl-C, after saving.
        NotFiniteError: a loss or gradient is; saved so that resuming repeats the step.
        ValueError: a checkpoint does not fit; a setting is out of range.
        ConnectionError: another process of this run died.
    """
    dist.start()
    if steps < 1 or accumulate < 1 or accumulate % dist.world():
        raise ValueError(
            f"steps must be 1 or more, and accumulate a multiple of the {dist.world()} processes that share it; "
            f"got steps={steps}, accumulate={accumulate}. Make the micro-batches smaller and accumulate more of them"
        )
    done, view = Fit(Learner.all(phases, optim)), Quiet() if dist.rank() else view or View()
    share, cast = accumulate // dist.world(), precision(done.learners[0].device, dtype)
    job = _Job(step, data, steps, run, stage, seed, share, cast, evaluate, evaluate_every, save_every, keep, view)
    if _restore(done, job) and done.steps >= steps:
        view.note(f"{stage}: trained before, {done.steps} steps; loaded")
        return done
    if dist.world() > 1:
        data.shard(dist.rank(), dist.world())  # type: ignore[attr-defined]  # Batches has it
    with own_dice(), dist.peers(), mode(done.modules, True), recompute(done.modules, checkpointing):
        view.start(stage, steps, done.steps)
        try:
            _run(done, job)
        finally:
            view.end()
    return done


@dataclass(frozen=True)
class _Job:
    """The arguments of `fit`, for the functions below."""

    step: Step
    data: Stream
    steps: int
    run: Run | None
    stage: str
    seed: int
    share: int  # micro-batches of an update that this rank takes
    cast: AbstractContextManager
    evaluate: Callable[[int], Mapping[str, float]] | None
    evaluate_every: int
    save_every: int
    keep: int
    view: View
    clock: Clock = field(default_factory=Clock)

    def due(self, step: int, every: int) -> bool:
        return step == self.steps or (every > 0 and step % every == 0)


def _run(done: Fit, job: _Job) -> None:
    with dist.stop_signals() as stop_asked:
        while done.steps < job.steps:
            began, position = time.perf_counter(), job.data.state_dict()
            try:
                _step(done, job)
            except NotFiniteError as error:
                at = f"{error} at step {done.steps} of {job.stage!r} (data at {position}); nothing was updated"
                again = " That repeats exactly this step; a smaller lr may pass it" if job.run else ""
                raise NotFiniteError(f"{at}; {_save(done, job, position)}{again}") from error
            if job.evaluate and job.due(done.steps, job.evaluate_every):
                reseed(job.seed, job.stage, done.steps, "evaluate")
                with job.clock("evaluate"), mode(done.modules, False), done.averaged(), torch.no_grad():
                    found = job.evaluate(done.steps)
                done.stats |= {f"eval/{name}": float(value) for name, value in found.items()}
            _log(done, job, time.perf_counter() - began)
            stop = stop_asked()
            if stop or job.due(done.steps, job.save_every):
                with job.clock("save"):
                    where = _save(done, job, job.data.state_dict())
            if stop:
                done.interrupted = True
                name = signal.Signals(stop).name
                job.view.note(f"{name} at step {done.steps} of {job.steps} of {job.stage!r}; {where}")
                raise Interrupted(stop, done)


def _step(done: Fit, job: _Job) -> None:
    """Every phase whose turn it is, from one draw of the data."""
    now, several, stats = done.steps, len(done.learners) > 1, {}
    with job.clock("data"):
        batches = [next(job.data) for _ in range(job.share)]
    for i, learner in enumerate(done.learners):
        if i < done.phase or now % learner.phase.every:
            continue
        done.phase, key = i, (job.seed, job.stage, now)
        lr = learner.optim.at(now, job.steps)
        found = update(job.step, learner, batches, lr, key=key, autocast=job.cast, clock=job.clock)
        if i == 0:
            done.loss.append(found["loss"])
        stats |= {f"{learner.name}/{n}" if several and n not in COUNTS else n: value for n, value in found.items()}
    done.phase, done.steps, done.stats = 0, now + 1, stats


def _log(done: Fit, job: _Job, seconds: float) -> None:
    done.seconds += seconds
    done.stats |= {f"{name}_per_second": done.stats[name] / seconds for name in COUNTS if name in done.stats}
    if job.run is not None and not dist.rank():
        job.run.log(job.stage, done.steps, done.stats | job.clock)
    job.view.step(done.steps, done.stats, dict(job.clock))
    job.clock.clear()


def _save(done: Fit, job: _Job, position: dict) -> str:
    """Save where there is a run; returns what to tell the user. The next step starts with the data at ``position``."""
    if job.run is None:
        return "nothing is saved, for fit was given no run"
    tensors = {file: named for learner in done.learners for file, named in pack(learner).items()}
    tensors["loss.history"] = {"loss": torch.tensor(done.loss, dtype=torch.float64)}
    meta = {"data": position, "seed": job.seed, "phase": done.phase, "stats": done.stats, "seconds": done.seconds}
    meta["updates"] = {learner.name: learner.updates for learner in done.learners}
    folder = job.run.checkpoints(job.stage)
    if not dist.rank():
        save_state(folder, done.steps, tensors, meta, keep=job.keep)
    dist.gather(None)  # no rank goes on before it is there
    return f"saved in '{state_path(folder, done.steps)}'. To go on: gamut run --resume {job.run.path}"


def _restore(done: Fit, job: _Job) -> bool:
    """Put the newest whole checkpoint into learners and data; False if there is none."""
    if job.run is None:
        return False
    state, problems = load_state(job.run.checkpoints(job.stage))
    for problem in problems:
        job.view.note(f"{problem}; using the checkpoint before it")
    if not dist.rank():
        job.run.truncate(job.stage, state.step if state else 0)
    if state is None:
        return False
    meta = state.meta
    if meta["seed"] != job.seed:
        raise ValueError(f"'{state.path}' has seed {meta['seed']}, this run {job.seed}; resume with the same seed")
    for learner in done.learners:
        unpack(learner, state.tensors, state.path)
        learner.updates = meta["updates"][learner.name]
    job.data.load_state_dict(meta["data"])
    done.steps, done.phase, done.stats, done.seconds = state.step, meta["phase"], meta["stats"], meta["seconds"]
    done.loss = state.tensors["loss.history"]["loss"].tolist()
    return True
