"""What surrounds the training loop: the clock, and states that are put back however a stage ends."""

import contextlib
import time
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from gamut.io.env import has_bfloat16


class Clock(dict[str, float]):
    """Seconds by part: ``with clock("forward"): ...``"""

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self[part] = self.get(part, 0.0) + time.perf_counter() - start


def precision(device: torch.device, wanted: str = "auto") -> contextlib.AbstractContextManager:
    """Autocast for the forward pass. auto: bfloat16 on a GPU that has it, else float32 (small models on a CPU lose).

    Raises:
        ValueError: another name. float16 is not among them: it needs loss scaling, and is unusably slow on a CPU.
    """
    if wanted not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"dtype must be auto, float32 or bfloat16; got {wanted!r}")
    if wanted == "bfloat16" or (wanted == "auto" and device.type == "cuda" and has_bfloat16()):
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


@contextlib.contextmanager
def mode(modules: Sequence[nn.Module], training: bool) -> Iterator[None]:
    """All of ``modules`` in training mode, or all in evaluation mode."""
    flags = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.train(training)
    try:
        yield
    finally:
        for part, flag in flags:
            part.training = flag


@contextlib.contextmanager
def recompute(modules: Sequence[nn.Module], wanted: bool) -> Iterator[None]:
    """Gradient checkpointing in every part that has a ``checkpointing`` switch.

    Raises:
        ValueError: it is wanted and no part has one.
    """
    parts = [part for module in modules for part in module.modules() if wanted and hasattr(part, "checkpointing")]
    if wanted and not parts:
        kinds = ", ".join(type(module).__name__ for module in modules)
        raise ValueError(f"checkpointing=True, but {kinds} has no part with a `checkpointing` switch; leave it out")
    flags = [(part, part.checkpointing) for part in parts]
    for part in parts:
        part.checkpointing = True  # type: ignore[assignment]
    try:
        yield
    finally:
        for part, flag in flags:
            part.checkpointing = flag
