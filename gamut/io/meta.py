"""Modules without memory: their names, shapes and counts, or a place for weights that are about to be loaded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

FILLING = {"normal_", "uniform_", "trunc_normal_", "zeros_", "ones_", "fill_", "zero_", "copy_", "constant_",
           "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_", "orthogonal_"}  # fmt: skip


class _Unfilled(TorchFunctionMode):
    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if getattr(func, "__name__", "") in FILLING:
            return args[0] if args else (kwargs or {})["tensor"]
        if getattr(func, "__name__", "") == "norm_except_dim":  # of weight_norm: only its shape is wanted
            v, _, dim = args
            return v.new_empty([length if i == dim else 1 for i, length in enumerate(v.shape)])
        return func(*args, **(kwargs or {}))


@contextmanager
def meta() -> Iterator[None]:
    """Modules built inside have parameters on the meta device, and are not initialised.

    ``torch.device("meta")`` alone does initialise them: random numbers and norms there go through decompositions whose
    first use imports torch._dynamo, 5 s and more.
    """
    with torch.device("meta"), _Unfilled():
        yield
