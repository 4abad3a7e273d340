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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from gamut.data.load import Stream, move
from gamut.io.runs import Run
from gamut.io.state import load_state, own_dice, reseed, save_state, state_path
from gamut.train import dist
from gamut.train.optim import Learner, Optim, Phase
from gamut.train.scope import Clock, mode, precision, recompute, stop_signals

Stats = dict[str, float]
Step = Callable[[Any, str], tuple[Tensor, Mapping[str, Any]]]
COUNTS = ("tokens", "audio_seconds")  # stats that add up over micro-batches; every other one is averaged


@runtime_checkable
class View(Protocol):
    """What `fit` shows while it runs; `gamut.train.log.View` is the usual one, `Quiet` shows nothing.

    ``step`` is called after every step with its logged numbers (loss, lr, grad_norm, eval/..., tokens, ...;
    ``<phase>/loss`` and so on where there are several phases) and its seconds by part: data, forward, backward,
    optimiser, evaluate, save, wait (for the device or for other processes).
    """

    def start(self, stage: str, steps: int, done: int = 0) -> None: ...
    def step(self, step: int, stats: Mapping[str, Any], seconds: Mapping[str, float]) -> None: ...
    def note(self, text: str) -> None: ...
    def end(self) -> None: ...


class Quiet:
    """A view that shows nothing: for tests, and for ranks other than 0."""

    def start(self, stage: str, steps: int, done: int = 0) -> None: ...
    def step(self, step: int, stats: Mapping[str, Any], seconds: Mapping[str, float]) -> None: ...
    def note(self, text: str) -> None: ...
    def end(self) -> None: ...


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
    autocast: torch.autocast | None = None,
    clock: Clock | None = None,
) -> Stats:
    """One optimiser update of one phase from the micro-batches of this rank.

    The gradient is the mean over the micro-batches of all ranks. Where ``step`` puts a ``weight`` in its stats (the
    number of targets its loss averages, say) the mean is weighted by it, and does not depend on how rows were split.

    Args:
        step: ``step(batch, phase name) -> (scalar loss, stats)``; draws what it likes from the global random states.
        key: what the dice of this update follow from, with the phase and the number of the micro-batch.
    Returns:
        loss, lr, grad_norm (before clipping) and the stats of ``step``: means; sums of "tokens" and "audio_seconds".
    Raises:
        NotFiniteError: loss or gradient is; weights and running statistics are as before.
    """
    clock, autocast = Clock() if clock is None else clock, autocast or precision(learner.device)
    before, parts = [(b, b.clone()) for b in learner.buffers()], []
    with learner.alone():
        for i, batch in enumerate(batches):
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
    done, view = Fit(Learner.all(phases, optim)), Quiet() if dist.rank() else view or _usual_view()
    if run is not None and _restore(done, data, run, stage, seed, view) and done.steps >= steps:
        return done
    if dist.world() > 1:
        data.shard(dist.rank(), dist.world())  # type: ignore[attr-defined]  # Batches has it
    modules = [module for learner in done.learners for module in learner.modules.values()]
    cast, clock = precision(done.learners[0].device, dtype), Clock()
    with own_dice(), dist.peers(), mode(modules, True), recompute(modules, checkpointing), stop_signals() as signals:
        view.start(stage, steps, done.steps)
        try:
            while done.steps < steps:
                began, position = time.perf_counter(), data.state_dict()
                try:
                    _step(step, done, data, steps, (seed, stage), accumulate // dist.world(), cast, clock)
                except NotFiniteError as error:
                    at = f"{error} at step {done.steps} of {stage!r} (data at {position}); nothing was updated"
                    again = " That repeats exactly this step; a smaller lr may pass it" if run else ""
                    raise NotFiniteError(f"{at}; {_save(done, position, run, stage, seed, keep)}{again}") from error
                last = done.steps == steps
                if evaluate and (last or _due(done.steps, evaluate_every)):
                    reseed(seed, stage, done.steps, "eval")
                    with clock("evaluate"), mode(modules, False), done.averaged(), torch.no_grad():
                        done.stats |= {f"eval/{name}": float(value) for name, value in evaluate(done.steps).items()}
                _log(done, time.perf_counter() - began, clock, run, stage, view)
                stop = max(dist.gather(signals[0] if signals else 0))
                if stop or last or _due(done.steps, save_every):
                    with clock("save"):
                        where = _save(done, data.state_dict(), run, stage, seed, keep)
                if stop:
                    done.interrupted = True
                    view.note(f"{signal.Signals(stop).name} at step {done.steps} of {steps} of {stage!r}; {where}")
                    raise Interrupted(stop, done)
        finally:
            view.end()
    return done


def _usual_view() -> View:
    from gamut.train import log  # rich takes a while to import

    return log.View()


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _step(
    step: Step, done: Fit, data: Stream, steps: int, key: tuple, micro: int, cast: torch.autocast, clock: Clock
) -> None:
    """Every phase whose turn it is, from one draw of the data."""
    now, several, stats = done.steps, len(done.learners) > 1, {}
    reseed(*key, now)
    with clock("data"):
        batches = [move(next(data), done.learners[0].device) for _ in range(micro)]
    for i, learner in enumerate(done.learners):
        if i < done.phase or now % learner.phase.every:
            continue
        done.phase = i
        lr = learner.optim.at(now, steps)
        found = update(step, learner, batches, lr, key=(*key, now), autocast=cast, clock=clock)
        if i == 0:
            done.loss.append(found["loss"])
        stats |= {f"{learner.name}/{n}" if several and n not in COUNTS else n: value for n, value in found.items()}
    done.phase, done.steps, done.stats = 0, now + 1, stats


def _log(done: Fit, seconds: float, clock: Clock, run: Run | None, stage: str, view: View) -> None:
    done.seconds += seconds
    done.stats |= {f"{name}_per_second": done.stats[name] / seconds for name in COUNTS if name in done.stats}
    if run is not None and not dist.rank():
        run.log(stage, done.steps, done.stats | clock)
    view.step(done.steps, done.stats, dict(clock))
    clock.clear()


def _save(done: Fit, position: dict, run: Run | None, stage: str, seed: int, keep: int) -> str:
    """Save where there is a run; returns what to tell the user. The next step starts with the data at ``position``."""
    if run is None:
        return "nothing is saved, for fit was given no run"
    tensors = {file: named for learner in done.learners for file, named in learner.tensors().items()}
    tensors["loss.history"] = {"loss": torch.tensor(done.loss, dtype=torch.float64)}
    meta = {"data": position, "seed": seed, "phase": done.phase, "stats": done.stats, "seconds": done.seconds}
    meta["updates"] = {learner.name: learner.updates for learner in done.learners}
    folder = run.checkpoints(stage)
    if not dist.rank():
        save_state(folder, done.steps, tensors, meta, keep=keep)
    return f"saved in '{state_path(folder, done.steps)}'. To go on: gamut run --resume {run.path}"


def _restore(done: Fit, data: Stream, run: Run, stage: str, seed: int, view: View) -> bool:
    """Put the newest whole checkpoint into learners and data; False if there is none."""
    state, problems = load_state(run.checkpoints(stage))
    for problem in problems:
        view.note(f"{problem}; using the checkpoint before it")
    if not dist.rank():
        run.truncate(stage, state.step if state else 0)
    if state is None:
        return False
    meta = state.meta
    if meta["seed"] != seed:
        raise ValueError(f"'{state.path}' was made with seed {meta['seed']}, got seed {seed}; resume with the same one")
    for learner in done.learners:
        learner.load(state.tensors, state.path)
        learner.updates = meta["updates"][learner.name]
    data.load_state_dict(meta["data"])
    done.steps, done.phase, done.stats, done.seconds = state.step, meta["phase"], meta["stats"], meta["seconds"]
    done.loss = state.tensors["loss.history"]["loss"].tolist()
    return True
