"""The one training loop: ``fit`` runs steps, ``update`` is one optimiser update of one phase."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable


@runtime_checkable
class View(Protocol):
    """What ``fit`` shows while it runs; ``gamut.train.log.live()`` is the usual one.

    ``update`` is called after every step. ``stats`` are the logged numbers of the step (loss, lr, grad_norm, eval/...,
    tokens_per_s; ``<phase>/loss`` and so on where there are several phases). ``times`` are the seconds of this step by
    part: data, forward, backward, optimiser, eval, save, wait.
    """

    def start(self, stage: str, steps: int, step: int) -> None: ...
    def update(self, step: int, stats: Mapping[str, float], times: Mapping[str, float]) -> None: ...
    def message(self, text: str) -> None: ...
    def close(self) -> None: ...
