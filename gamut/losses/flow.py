r"""Flow matching on straight paths from noise to data, with conditions dropped for guidance.

    x_t = (1 - (1 - sigma) t) x0 + t x1      v* = x1 - (1 - sigma) x0      x0 ~ N(0, I)

B batch; every other axis is the caller's. Source: optimal-transport conditional flow matching (arXiv 2210.02747 §4.1)
as Step-Audio trains it (fact sheet step_audio §4.1: sigma 1e-6, times warped by a cosine, conditions dropped together).
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Stats = dict[str, Tensor]


def path(
    x1: Float[Tensor, "B ..."], noise: Float[Tensor, "B ..."], t_B: Float[Tensor, " B"], sigma: float = 0.0
) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "B ..."]]:
    """(x_t, v*): a point of the straight path at time t (0 = noise, 1 = data), and the velocity along it."""
    t = t_B.reshape(-1, *[1] * (x1.dim() - 1))
    return (1 - (1 - sigma) * t) * noise + t * x1, x1 - (1 - sigma) * noise


def flow_matching(
    velocity: Callable[[Tensor, Tensor], Tensor],
    x1: Float[Tensor, "B ..."],
    t_B: Float[Tensor, " B"] | None = None,
    noise: Float[Tensor, "B ..."] | None = None,
    *,
    mask: Float[Tensor, "B ..."] | Bool[Tensor, "B ..."] | None = None,
    sigma: float = 0.0,
) -> tuple[Float[Tensor, ""], Stats]:
    """Mean squared error of the predicted velocity.

    Args:
        velocity: called as ``velocity(x_t, t_B)``; its result is shaped like ``x1``.
        x1: clean data or latents.
        t_B: times in [0, 1]; uniform if None. For another density warp uniform draws, see ``nn/ode.cosine``.
        noise: standard normal; drawn if None.
        mask: what counts, 1 or 0, broadcast against ``x1`` (padding, say); all of it if None.
        sigma: spread of the path's end around the data.
    Returns:
        loss: in fp32, mean over the elements that count.
        stats: ``flow_mse_early`` and ``flow_mse_late``: the same over rows with t below and from 1/2 on (nan if none).
    Raises:
        ValueError: if any time lies outside [0, 1], or nothing counts.

    >>> loss, _ = flow_matching(lambda x, t: torch.zeros_like(x), torch.zeros(2, 3), torch.ones(2))
    >>> bool(loss > 0)     # at t = 1 the velocity of all-zero data is minus the noise, never zero
    True
    """
    t_B = torch.rand(len(x1), device=x1.device) if t_B is None else t_B
    if not bool(((t_B >= 0) & (t_B <= 1)).all()):
        raise ValueError(f"times must lie in [0, 1], got {float(t_B.min()):.3g} .. {float(t_B.max()):.3g}")
    noise = torch.randn_like(x1) if noise is None else noise
    x_t, wanted = path(x1, noise, t_B, sigma)
    error = (velocity(x_t, t_B).float() - wanted.float()).square()
    counted = torch.ones_like(error) if mask is None else mask.to(error).expand_as(error)
    sums_B, counts_B = (error * counted).flatten(1).sum(1), counted.flatten(1).sum(1)
    if not bool(counts_B.sum() > 0):
        raise ValueError(f"nothing counts: the mask of {tuple(x1.shape)} is 0 everywhere; check the lengths")
    late_B = t_B >= 0.5
    parts = {"flow_mse_early": ~late_B, "flow_mse_late": late_B}
    stats = {name: (sums_B[rows].sum() / counts_B[rows].sum()).detach() for name, rows in parts.items()}
    return sums_B.sum() / counts_B.sum(), stats


def dropped(keep_B: Bool[Tensor, " B"], *conditions: Float[Tensor, "B ..."]) -> tuple[Tensor, ...]:
    """Conditions with the rows that are not kept set to zero, all of a row together: what guidance subtracts later."""
    return tuple(c * keep_B.reshape(-1, *[1] * (c.dim() - 1)).to(c) for c in conditions)
