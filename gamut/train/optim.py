"""Optimiser, schedule, parameter groups and running average of one phase."""

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gamut.io.learners import join
from gamut.train import dist


@dataclass(frozen=True)
class Group:
    """Parameters by name: ``Group("encoder.*", lr_scale=0)`` freezes the encoder. The first that matches counts."""

    pattern: str  # shell-like, against the whole name: * matches anything, dots too
    lr_scale: float | int = 1.0  # times the phase's lr; 0 freezes
    weight_decay: float | None = None  # None: the phase's rule


@dataclass(frozen=True)
class Optim:
    """AdamW and its schedule. Matrices decay; embeddings, norms and biases (everything with one axis) do not."""

    lr: float = 1e-3  # peak
    schedule: str = "cosine"  # or constant, linear
    warmup: int = 0  # steps from 0 to the peak, a straight line
    final: float = 0.0  # lr at the end, as a part of the peak
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0  # longest gradient; inf measures without clipping
    ema: float = 0.0  # decay of the running average of the weights, 0 keeps none
    groups: tuple[Group, ...] = ()

    def __post_init__(self):
        if self.schedule not in ("constant", "cosine", "linear"):
            raise ValueError(f"schedule must be constant, cosine or linear; got {self.schedule!r}")
        limits = {"lr": (0, math.inf), "final": (0, 1), "ema": (0, 1), "weight_decay": (0, math.inf)}
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must lie in [{low}, {high}], got {getattr(self, name)}")
        if self.clip <= 0 or self.warmup < 0:
            raise ValueError(f"clip must be above 0 and warmup 0 or more, got clip={self.clip}, warmup={self.warmup}")

    def at(self, step: int, steps: int) -> float:
        """Learning rate of the update after ``step`` others, out of ``steps``.

        >>> [round(Optim(lr=1.0, schedule="linear", warmup=2).at(i, 6), 2) for i in range(6)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
        """
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, steps - self.warmup))
        fall = {"constant": 0.0, "linear": done, "cosine": 0.5 - 0.5 * math.cos(math.pi * done)}[self.schedule]
        return self.lr * (1 - (1 - self.final) * fall)


@dataclass(frozen=True)
class Phase:
    """Parameters that are trained together: of one module, or of several by name; ``every`` steps once."""

    name: str
    modules: nn.Module | Mapping[str, nn.Module]
    optim: Optim = Optim()
    every: int = 1

    def __post_init__(self):
        if not re.fullmatch(r"[\w-]+", self.name):
            raise ValueError(f"a phase's name names its files: letters, digits, _ and - only; got {self.name!r}")
        if self.every < 1:
            raise ValueError(f"phase {self.name!r}: every is a period in steps, 1 or more; got {self.every}")


class Learner:
    """A phase at work: its trainable parameters by name, AdamW, the running average; io/learners.py saves all that.

    ``Learner.all(phases)`` makes those of a run, each knowing which parameters belong to the others.
    """

    def __init__(self, phase: Phase):
        self.phase, self.name, self.optim = phase, phase.name, phase.optim
        modules = {"": phase.modules} if isinstance(phase.modules, nn.Module) else phase.modules
        self.modules: dict[str, nn.Module] = dict(modules)
        first: dict[nn.Parameter, str] = {}  # shared ones count once, by their first name
        for key, module in self.modules.items():
            for name, p in module.named_parameters():
                first.setdefault(p, join(key, name))
        everything = {name: p for p, name in first.items()}
        groups = _groups(everything, self.modules, self.optim, self.name)
        trained = {name for group in groups for name in group["names"]}
        self.params = {name: p for name, p in everything.items() if name in trained}
        device = next(iter(self.params.values())).device
        self.adam = torch.optim.AdamW(
            groups, lr=self.optim.lr, betas=self.optim.betas, eps=self.optim.eps, fused=device.type in ("cpu", "cuda")
        )
        self.average = {n: p.detach().clone() for n, p in self.params.items()} if self.optim.ema else {}
        self.updates = 0
        self.everything = list(everything.values())
        self.off: list[nn.Parameter] = []  # what may get no gradient while this phase steps; `all` knows
        parts = [part for module in self.modules.values() for part in module.modules()]
        self.statistics = [(m, n) for m in parts for n in m._buffers if n not in m._non_persistent_buffers_set]

    @classmethod
    def all(cls, phases: nn.Module | Phase | Sequence[Phase], optim: Optim | None = None) -> "list[Learner]":
        """The learners of a run; a bare module is the phase "model", trained as ``optim`` says."""
        if isinstance(phases, nn.Module):
            phases = Phase("model", phases, optim or Optim())
        elif optim is not None:
            raise ValueError("optim is for a bare module; give each Phase its own: Phase(name, modules, Optim(...))")
        learners: list[Learner] = [cls(phase) for phase in ([phases] if isinstance(phases, Phase) else phases)]
        names = [learner.name for learner in learners]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"phases need different names, at least one; got {names}")
        trained = {id(p) for learner in learners for p in learner.params.values()}
        everything = list({id(p): p for learner in learners for p in learner.everything}.values())
        statistics = [entry for learner in learners for entry in learner.statistics]
        for learner in learners:
            own = {id(p) for p in learner.params.values()}
            learner.everything, learner.statistics = everything, statistics
            learner.off = [
                p
                for p in everything
                # FSDP reads requires_grad once: a sharded weight of another phase keeps its gradient, which is dropped
                if p.requires_grad and id(p) not in own and not (isinstance(p, DTensor) and id(p) in trained)
            ]
        return learners

    def buffers(self) -> list[Tensor]:
        """What a forward of any phase may change beside parameters: running statistics."""
        return [buffer for module, name in self.statistics if (buffer := getattr(module, name)) is not None]

    @property
    def device(self) -> torch.device:
        return next(iter(self.params.values())).device

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No gradient for parameters that are frozen or belong to another phase, and none left over from before."""
        for p in self.everything:
            p.grad = None
        for p in self.off:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in self.off:
                p.requires_grad_(True)

    def clip(self, weight: float) -> Tensor:
        """Divide the gradients (sums) by ``weight``, shorten them to ``optim.clip``; gives their length before that."""
        grads = [p.grad for p in self.params.values() if p.grad is not None]
        if weight != 1 and grads:
            scale = 1 / weight if weight else math.nan
            torch._foreach_mul_(grads, scale)  # type: ignore[attr-defined]
        return dist.clip_gradients(self.params.values(), self.optim.clip)

    def apply(self, lr: float) -> None:
        """One AdamW update with the gradients there are, then the running average.

        The average starts quickly, min(ema, (1 + n) / (10 + n)) after n updates: a short run must forget its start.
        """
        for group in self.adam.param_groups:
            group["lr"] = lr * group["scale"]
        self.adam.step()
        for p in self.params.values():
            p.grad = None
        if self.average:
            decay = min(self.optim.ema, (1 + self.updates) / (10 + self.updates))
            with torch.no_grad():
                averages, weights = list(self.average.values()), list(self.params.values())
                torch._foreach_lerp_(averages, weights, 1 - decay)  # type: ignore[attr-defined]
        self.updates += 1

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the modules hold the running average (if one is kept)."""
        live = {name: self.params[name].detach().clone() for name in self.average}
        with torch.no_grad():
            for name, value in self.average.items():
                self.params[name].copy_(value)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in live.items():
                    self.params[name].copy_(value)


def _groups(
    named: Mapping[str, nn.Parameter], modules: Mapping[str, nn.Module], optim: Optim, phase: str
) -> list[dict]:
    """AdamW's groups, each with the names of its parameters and the scale of its learning rate."""
    for group in optim.groups:
        if not any(fnmatchcase(name, group.pattern) for name in named):
            near = difflib.get_close_matches(group.pattern, named, 3, 0.3) or list(named)[:3]
            raise ValueError(f"no parameter of phase {phase!r} matches {group.pattern!r}; closest: {', '.join(near)}")
    tables = {
        id(p) for top in modules.values() for m in top.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }
    groups: dict[tuple[float, float], dict] = {}
    for name, p in named.items():
        group = next((g for g in optim.groups if fnmatchcase(name, g.pattern)), Group("*"))
        if group.lr_scale == 0 or not p.requires_grad:
            continue
        decay = group.weight_decay
        if decay is None:
            decay = 0.0 if p.ndim < 2 or id(p) in tables else optim.weight_decay
        entry = groups.setdefault(
            (group.lr_scale, decay), {"params": [], "names": [], "scale": group.lr_scale, "weight_decay": decay}
        )
        entry["params"].append(p)
        entry["names"].append(name)
    if not groups:
        raise ValueError(f"phase {phase!r} has nothing to train: all {len(named)} parameters are frozen")
    return list(groups.values())
