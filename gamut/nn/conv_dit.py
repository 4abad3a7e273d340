"""A diffusion transformer over time with a causal convolution in every block: the velocity of Step-Audio 2's flow.

B batch · T frames · S keys · I inputs · D width · H heads · C channels per head · K frames before a convolution
L layers. Source: fact sheet step_audio_2 §6.2-6.3; fixture step_audio_2_flow.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from gamut.nn.conformer import causal
from gamut.nn.linear import Linear

KERNEL = 3  # of both convolutions of a block


class Past:
    """What one stream has behind it at one step of the solver. Its rows: with conditions and without.

    Keys lie newest piece first in a buffer that fills towards its front; attention here knows no positions, so their
    order matters to ``cut`` alone. Inside a piece they lie oldest first, as released, or, if ``turned``, newest first.
    """

    def __init__(self, dit: "ConvDiT", rows: int, turned: bool = False):
        self.turned = turned
        weight, (heads, channels) = dit.inputs.weight, (dit.heads, dit.head_dim)
        self.kv_L2RHSC = weight.new_empty(len(dit.blocks), 2, rows, heads, 0, channels)
        self.conv_L2RKD = weight.new_zeros(len(dit.blocks), 2, rows, KERNEL - 1, len(weight))
        self.first = 0  # slot of the newest piece's first frame

    @property
    def length(self) -> int:
        return self.kv_L2RHSC.shape[4] - self.first

    def begin(self, frames: int) -> None:
        if frames > self.first:  # room for two more pieces of this length
            more = 2 * frames
            self.kv_L2RHSC, self.first = F.pad(self.kv_L2RHSC, (0, 0, more, 0)), self.first + more
        self.first -= frames

    def put(self, layer: int, k_RHTC: Tensor, v_RHTC: Tensor) -> tuple[Tensor, Tensor]:
        """Write one layer's new keys and values; returns views of all of them."""
        fresh = slice(self.first, self.first + k_RHTC.shape[2])
        if self.turned:
            k_RHTC, v_RHTC = k_RHTC.flip(2), v_RHTC.flip(2)
        self.kv_L2RHSC[layer, 0, :, :, fresh], self.kv_L2RHSC[layer, 1, :, :, fresh] = k_RHTC, v_RHTC
        keys, values = self.kv_L2RHSC[layer, :, :, :, self.first :]
        return keys, values

    def cut(self, front: int, back: int) -> None:
        """Keep the first ``front`` and the last ``back`` frames as they lie."""
        if self.length > front + back:
            kept = self.kv_L2RHSC[..., self.first : self.first + front, :].clone()
            self.first = self.kv_L2RHSC.shape[4] - front - back
            self.kv_L2RHSC[..., self.first : self.first + front, :] = kept


class Attention(nn.Module):
    """Every frame sees every frame that counts; queries and keys are normalised per head; no positions."""

    def __init__(self, width: int, heads: int, head_dim: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (Linear(width, heads * head_dim) for _ in range(3))
        self.out = Linear(heads * head_dim, width)
        self.q_norm, self.k_norm = nn.LayerNorm(head_dim), nn.LayerNorm(head_dim)

    def forward(self, x_BTD: Tensor, mask: Tensor | None, pasts: Sequence[Past] | None, layer: int) -> Tensor:
        q, k, v = (part(x_BTD).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        q, k = self.q_norm(q), self.k_norm(k)
        if pasts is None:
            y_BHTC = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            rows = zip(pasts, *(part.chunk(len(pasts)) for part in (q, k, v)), strict=True)
            y_BHTC = torch.cat([F.scaled_dot_product_attention(q, *past.put(layer, k, v)) for past, q, k, v in rows])
        return self.out(y_BHTC.transpose(1, 2).flatten(2))


class Convolutions(nn.Module):
    """Causal convolution, norm, Mish, causal convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(width, width, KERNEL), nn.Conv1d(width, width, KERNEL)
        self.norm = nn.LayerNorm(width)

    def forward(self, x_BTD: Tensor, pasts: Sequence[Past] | None, layer: int) -> Tensor:
        first = second = None
        if pasts is not None:
            first, second = torch.cat([past.conv_L2RKD[layer] for past in pasts], 1)
        x, first = causal(self.conv1, x_BTD, first)
        x, second = causal(self.conv2, F.mish(self.norm(x)), second)
        if pasts is not None:
            for past, *rows in zip(pasts, first.chunk(len(pasts)), second.chunk(len(pasts)), strict=True):
                past.conv_L2RKD[layer] = torch.stack(rows)
        return x


class Block(nn.Module):
    """Attention, convolutions, feed-forward, each behind a norm that the time shifts, scales and gates."""

    def __init__(self, width: int, heads: int, head_dim: int, hidden: int):
        super().__init__()
        self.attn, self.conv = Attention(width, heads, head_dim), Convolutions(width)
        self.up, self.down = Linear(width, hidden), Linear(hidden, width)
        self.modulation = nn.Linear(width, 9 * width)

    def forward(self, x: Tensor, time_B1D: Tensor, mask: Tensor | None, pasts=None, layer: int = 0) -> Tensor:
        attn, mlp, conv = self.modulation(time_B1D).chunk(3, -1)
        x = x + gated(x, attn, lambda y: self.attn(y, mask, pasts, layer))
        x = x + gated(x, conv, lambda y: self.conv(y, pasts, layer))
        return x + gated(x, mlp, lambda y: self.down(F.gelu(self.up(y), approximate="tanh")))


def gated(x: Tensor, modulation: Tensor, layer) -> Tensor:
    shift, scale, gate = modulation.chunk(3, -1)
    return gate * layer(modulated(x, shift, scale))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


class ConvDiT(nn.Module):
    """Frames and a time to velocities."""

    WAVES = 256  # channels of the time before its two layers

    def __init__(self, inputs: int, outputs: int, width: int, layers: int, heads: int, head_dim: int, mlp: float = 4.0):
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.time1, self.time2 = nn.Linear(self.WAVES, width), nn.Linear(width, width)
        self.inputs = Linear(inputs, width)
        self.blocks = nn.ModuleList(Block(width, heads, head_dim, int(width * mlp)) for _ in range(layers))
        self.modulation, self.outputs = nn.Linear(width, 2 * width), Linear(width, outputs)
        self.start()

    def start(self) -> None:
        """Initial weights: every block is silent and the velocity is 0, as usual for such transformers."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for layer in (self.time1, self.time2):
            nn.init.normal_(layer.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Block | ConvDiT):
                nn.init.zeros_(module.modulation.weight)
        nn.init.zeros_(self.outputs.weight)

    def forward(
        self,
        x_BTI: Float[Tensor, "B T I"],
        t: Float[Tensor, " B"] | Float[Tensor, ""],
        mask: Bool[Tensor, "#B 1 #T T"] | None = None,
        pasts: Sequence[Past] | None = None,
    ) -> Float[Tensor, "B T O"]:
        """Velocities.

        Args:
            t: times in [0, 1], one a row or one for all.
            mask: which keys each frame sees; None: all.
            pasts: of streams; each has len(x) / len(pasts) rows that lie together. The new frames join them.
        """
        half = self.WAVES // 2
        rates = torch.exp(torch.arange(half, device=x_BTI.device) * (-math.log(1e4) / half))
        angles = t.reshape(-1, 1) * 1000 * rates
        waves = torch.cat([angles.cos(), angles.sin()], -1).to(x_BTI.dtype)
        time_B1D = F.silu(self.time2(F.silu(self.time1(waves))))[:, None]
        x = self.inputs(x_BTI)
        for past in pasts or ():
            past.begin(x.shape[1])
        for layer, block in enumerate(self.blocks):
            x = block(x, time_B1D, mask, pasts, layer)
        shift, scale = self.modulation(time_B1D).chunk(2, -1)
        return self.outputs(modulated(x, shift, scale))
