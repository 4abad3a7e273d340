"""Rotary positions: channel i of the first half turns with channel i of the second half.

B batch · T tokens · H heads · C channels per head
Source: RoFormer (arXiv 2104.09864); the pairing of halves is that of the released Qwen weights.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def angles(
    positions: Int[Tensor, "*B T"], channels: int, theta: float
) -> tuple[Float[Tensor, "*B T 1 C"], Float[Tensor, "*B T 1 C"]]:
    """Cosine, and sine with the first half's sign turned, of position · theta^(-2i / channels), in fp32.

    Args:
        positions: token positions, from 0.
        channels: channels per head, even; i = 0 .. channels/2 - 1 in both halves.
        theta: base wavelength (1e4 .. 1e6).
    """
    inverse = theta ** (-torch.arange(0, channels, 2, device=positions.device, dtype=torch.float32) / channels)
    turn = (positions[..., None].float() * inverse)[..., None, :]
    cos, sin = turn.cos(), turn.sin()
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


class Angles:
    """A table of `angles` for positions 0, 1, 2 ..., made longer when it must."""

    def __init__(self, channels: int, theta: float):
        self.channels, self.theta = channels, theta
        self._table: tuple[Tensor, Tensor] | None = None  # arithmetic on the meta device is slow to start

    def __call__(
        self, positions: slice | Int[Tensor, "*B T"], stop: int, device: torch.device
    ) -> tuple[Float[Tensor, "*B T 1 C"], Float[Tensor, "*B T 1 C"]]:
        """Angles of some positions, all of them below ``stop``."""
        if self._table is None or len(self._table[0]) < stop or self._table[0].device != device:
            with torch.inference_mode(False):  # training may use what decoding made
                self._table = angles(torch.arange(max(256, 2 * stop), device=device), self.channels, self.theta)
        cos, sin = self._table
        return cos[positions], sin[positions]


def rotate(
    x_BTHC: Float[Tensor, "B T H C"], cos: Float[Tensor, "*B T 1 C"], sin: Float[Tensor, "*B T 1 C"]
) -> Float[Tensor, "B T H C"]:
    """Turn each (first half, second half) pair of channels by its token's angle; computed in fp32."""
    swapped = x_BTHC.roll(x_BTHC.shape[-1] // 2, -1)
    return torch.addcmul(x_BTHC * cos, swapped, sin).to(x_BTHC.dtype)
