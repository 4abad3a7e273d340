"""Blocks of encoders that hear: every step attends to every step that counts, then a feed-forward layer.

N clips · T steps · D width · H heads · C channels per head
Used by models/audio_encoder.py (Whisper, Qwen2-Audio, Step-Audio 2) and codecs/s3_tokenizer.py.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gamut.nn.rope import rotate

Turn = tuple[Tensor, Tensor]  # cosines and sines of nn/rope.py


class SelfAttention(nn.Module):
    """Full attention; the key has no bias: softmax would cancel it.

    Args:
        memory: over the values and ``seen_NT``, added to the output; ``nn.fsmn.Memory`` is one.
    """

    def __init__(self, width: int, heads: int, memory: nn.Module | None = None):
        super().__init__()
        self.heads = heads
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.v, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.memory = memory

    def forward(
        self, x_NTD: Float[Tensor, "N T D"], seen_NT: Bool[Tensor, "N T"] | None = None, turn: Turn | None = None
    ) -> Float[Tensor, "N T D"]:
        """``seen_NT`` marks the steps that count, ``turn`` rotates queries and keys."""
        value_NTD = self.v(x_NTD)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in (self.q(x_NTD), self.k(x_NTD), value_NTD))
        if turn is not None:
            q, k = rotate(q, *turn), rotate(k, *turn)
        mask = None if seen_NT is None else seen_NT[:, None, None, :]
        y_NHTC = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
        y_NTD = self.out(y_NHTC.transpose(1, 2).flatten(2))
        return y_NTD if self.memory is None else y_NTD + self.memory(value_NTD, seen_NT)


class MLP(nn.Module):
    """down(gelu(up(x)))."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(
        self, width: int, heads: int, ffn: int, eps: float | tuple[float, float] = 1e-5, memory: nn.Module | None = None
    ):
        super().__init__()
        before, between = eps if isinstance(eps, tuple) else (eps, eps)
        self.norm1, self.attn = nn.LayerNorm(width, before), SelfAttention(width, heads, memory)
        self.norm2, self.mlp = nn.LayerNorm(width, between), MLP(width, ffn)

    def forward(
        self, x_NTD: Float[Tensor, "N T D"], seen_NT: Bool[Tensor, "N T"] | None = None, turn: Turn | None = None
    ) -> Float[Tensor, "N T D"]:
        x_NTD = x_NTD + self.attn(self.norm1(x_NTD), seen_NT, turn)
        return x_NTD + self.mlp(self.norm2(x_NTD))


def sinusoids(length: int, width: int) -> Float[Tensor, "T D"]:
    """Whisper's fixed positions: sines in the first half of the channels, cosines in the second, periods of 2π to
    2π · 10⁴ steps."""
    half = width // 2
    rate_C = torch.exp(-torch.arange(half) * (math.log(1e4) / max(1, half - 1)))
    angle_TC = torch.arange(length)[:, None] * rate_C
    return torch.cat([angle_TC.sin(), angle_TC.cos()], 1)
