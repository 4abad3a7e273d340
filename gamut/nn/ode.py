"""Samplers of flow models: a velocity, a start and a grid of times go in, the end of the path comes out.

A velocity is any callable ``(x, t) -> dx/dt`` with ``t`` a scalar tensor. Time runs as the caller's grid does; all
papers here that are served by it have noise at 0 and data at 1.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]


def cosine(t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """1 - cos(pi t / 2): from [0, 1] onto itself, denser near 0, where the noise is. Source: CosyVoice's flow."""
    return 1 - torch.cos(t * (math.pi / 2))


def cosine_times(steps: int) -> Float[Tensor, " K"]:
    """``steps + 1`` times from 0 to 1, closer together where the noise is.

    Raises:
        ValueError: for fewer than one step.

    >>> [round(t, 3) for t in cosine_times(2).tolist()]
    [0.0, 0.293, 1.0]
    """
    if steps < 1:
        raise ValueError(f"a solver needs at least 1 step, got {steps}; Step-Audio 2 takes 10")
    return cosine(torch.linspace(0, 1, steps + 1))


def euler(velocity: Velocity, x: Float[Tensor, "..."], times: Float[Tensor, " K"]) -> Float[Tensor, "..."]:
    """From ``times[0]`` to ``times[-1]`` with one call of ``velocity`` a step."""
    times = times.to(x.device)
    for now, then in pairwise(times):
        x = x + (then - now) * velocity(x, now)
    return x


def guided(
    conditional: Float[Tensor, "..."], unconditional: Float[Tensor, "..."], scale: float
) -> Float[Tensor, "..."]:
    """Classifier-free guidance of two velocities: (1 + scale) conditional - scale unconditional; 0 is none."""
    return conditional + scale * (conditional - unconditional)
