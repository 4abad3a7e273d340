"""A U-Net over time with transformer blocks at every level: the velocity of Step-Audio's flow.

B batch · T frames · I inputs · W channels of a level · H heads · C channels per head
Source: fact sheet step_audio §4.1 (after Matcha-TTS, arXiv 2309.03199); fixture step_audio_flow.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gamut.nn.linear import Linear


class MaskedConv(nn.Module):
    """Convolution, group norm, Mish; what is masked enters and leaves as 0."""

    def __init__(self, inputs: int, outputs: int, groups: int = 8):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(inputs, outputs, 3, padding=1), nn.GroupNorm(groups, outputs)

    def forward(self, x_BWT: Tensor, mask_B1T: Tensor) -> Tensor:
        return F.mish(self.norm(self.conv(x_BWT * mask_B1T))) * mask_B1T


class Residual(nn.Module):
    """Two masked convolutions with the time added between them, around a plain one."""

    def __init__(self, inputs: int, outputs: int, time: int):
        super().__init__()
        self.conv1, self.conv2 = MaskedConv(inputs, outputs), MaskedConv(outputs, outputs)
        self.time, self.skip = nn.Linear(time, outputs), nn.Conv1d(inputs, outputs, 1)

    def forward(self, x_BWT: Tensor, mask_B1T: Tensor, time_BE: Tensor) -> Tensor:
        h = self.conv1(x_BWT, mask_B1T) + self.time(F.mish(time_BE))[..., None]
        return self.conv2(h, mask_B1T) + self.skip(x_BWT * mask_B1T)


class Transformer(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)). Every frame sees every other, masked ones too, as
    released."""

    def __init__(self, width: int, heads: int, head_dim: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (Linear(width, heads * head_dim, bias=False) for _ in range(3))
        self.out = Linear(heads * head_dim, width)
        self.up, self.down = Linear(width, 4 * width), Linear(4 * width, width)

    def forward(self, x_BTW: Tensor) -> Tensor:
        y = self.norm1(x_BTW)
        q, k, v = (part(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        x_BTW = x_BTW + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x_BTW + self.down(F.gelu(self.up(self.norm2(x_BTW))))


class Level(nn.Module):
    """A residual block and transformers, and the change of rate behind them if there is one."""

    def __init__(
        self, inputs: int, outputs: int, time: int, blocks: int, heads: int, head_dim: int, resample: nn.Module
    ):
        super().__init__()
        self.residual = Residual(inputs, outputs, time)
        self.blocks = nn.ModuleList(Transformer(outputs, heads, head_dim) for _ in range(blocks))
        self.resample = resample

    def forward(self, x_BWT: Tensor, mask_B1T: Tensor, time_BE: Tensor) -> tuple[Tensor, Tensor]:
        """What the level found, and the same at the next level's rate."""
        x = self.residual(x_BWT, mask_B1T, time_BE).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        x = x.transpose(1, 2)
        return x, self.resample(x * mask_B1T)


class UNet1d(nn.Module):
    """Frames and a time to velocities. The rate halves between the levels of ``channels``, and doubles again."""

    def __init__(
        self, inputs: int, outputs: int, channels: Sequence[int], *, blocks: int, middle: int, heads: int, head_dim: int
    ):
        super().__init__()
        time, self.waves = 4 * channels[0], inputs
        self.time1, self.time2 = nn.Linear(inputs, time), nn.Linear(time, time)

        def level(i: int, o: int, resample: nn.Module) -> Level:
            return Level(i, o, time, blocks, heads, head_dim, resample)

        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for n, (i, o) in enumerate(zip((inputs, *channels), channels, strict=False)):
            last = n == len(channels) - 1
            self.downs.append(level(i, o, nn.Conv1d(o, o, 3, stride=1 if last else 2, padding=1)))
        self.middle = nn.ModuleList(level(channels[-1], channels[-1], nn.Identity()) for _ in range(middle))
        back = (*channels[::-1], channels[0])
        for n, (i, o) in enumerate(pairwise(back)):
            last = n == len(channels) - 1
            change = nn.Conv1d(o, o, 3, padding=1) if last else nn.ConvTranspose1d(o, o, 4, stride=2, padding=1)
            self.ups.append(level(2 * i, o, change))
        self.final, self.outputs = MaskedConv(channels[0], channels[0]), nn.Conv1d(channels[0], outputs, 1)

    def forward(
        self, x_BIT: Float[Tensor, "B I T"], t_B: Float[Tensor, " B"], mask_B1T: Float[Tensor, "#B 1 T"]
    ) -> Float[Tensor, "B O T"]:
        """Velocities; 0 where the mask is 0."""
        half = self.waves // 2
        rates = torch.exp(torch.arange(half, device=x_BIT.device) * (-math.log(1e4) / (half - 1)))
        angles = t_B[:, None] * 1000 * rates
        time_BE = self.time2(F.silu(self.time1(torch.cat([angles.sin(), angles.cos()], -1).to(x_BIT.dtype))))
        x, masks, skips = x_BIT, [mask_B1T], []
        for level in self.downs:
            skip, x = level(x, masks[-1], time_BE)
            skips.append(skip)
            masks.append(masks[-1][..., ::2])
        masks.pop()  # the last level keeps its rate
        for level in self.middle:
            x, _ = level(x, masks[-1], time_BE)
        mask = mask_B1T
        for level in self.ups:
            mask, skip = masks.pop(), skips.pop()
            _, x = level(torch.cat([x[..., : skip.shape[-1]], skip], 1), mask, time_BE)
        return self.outputs(self.final(x, mask) * mask) * mask_B1T
