"""Rotary positions: channel i of the first half turns with channel i of the second half.

B batch · T tokens · H heads · C channels per head · R = C / 2 rotation planes
Source: RoFormer (arXiv 2104.09864); the pairing of halves is that of the released Qwen weights.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def angles(
    positions: Int[Tensor, "*B T"], channels: int, theta: float
) -> tuple[Float[Tensor, "*B T R"], Float[Tensor, "*B T R"]]:
    """Cosine and sine of position · theta^(-2i / channels), i = 0 .. channels/2 - 1, in fp32.

    Args:
        positions: token positions, from 0.
        channels: channels per head, even.
        theta: base wavelength (1e4 .. 1e6).
    """
    inverse = theta ** (-torch.arange(0, channels, 2, device=positions.device, dtype=torch.float32) / channels)
    turn = positions[..., None].float() * inverse
    return turn.cos(), turn.sin()


def rotate(
    x_BTHC: Float[Tensor, "B T H C"], cos: Float[Tensor, "*B T R"], sin: Float[Tensor, "*B T R"]
) -> Float[Tensor, "B T H C"]:
    """Turn each (first half, second half) pair of channels by its token's angle; computed in fp32."""
    left, right = x_BTHC.chunk(2, dim=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).to(x_BTHC.dtype)
