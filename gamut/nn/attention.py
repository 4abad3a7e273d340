"""Causal self-attention with grouped heads, optional QK-norm, rotary positions or an additive bias.

B batch · T new tokens · S keys (cached and new) · D width · H query heads · K key/value heads · C channels per head
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from gamut.nn.cache import Cache
from gamut.nn.linear import Linear
from gamut.nn.norm import RMSNorm
from gamut.nn.rope import rotate

Turn = tuple[Tensor, Tensor]  # cosine and sine of each token's angles


class Attention(nn.Module):
    """kv_heads == heads is multi-head, 1 is multi-query, anything between is grouped."""

    def __init__(
        self, width: int, heads: int, kv_heads: int, head_dim: int, *,
        qkv_bias: bool = False, out_bias: bool = False, norm_eps: float | None = None,
    ):
        """`norm_eps` switches QK-norm on (RMS over each head's channels, before the rotation)."""
        super().__init__()
        if heads % kv_heads:
            raise ValueError(f"kv_heads must divide heads; got heads={heads}, kv_heads={kv_heads}")
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.q = Linear(width, heads * head_dim, bias=qkv_bias)
        self.k = Linear(width, kv_heads * head_dim, bias=qkv_bias)
        self.v = Linear(width, kv_heads * head_dim, bias=qkv_bias)
        self.out = Linear(heads * head_dim, width, bias=out_bias)
        self.q_norm = RMSNorm(head_dim, norm_eps) if norm_eps else None
        self.k_norm = RMSNorm(head_dim, norm_eps) if norm_eps else None

    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        turn: Turn | None = None,
        mask: Bool[Tensor, "#B #H T S"] | Float[Tensor, "#B #H T S"] | None = None,
        cache: Cache | None = None,
        layer: int = 0,
    ) -> Float[Tensor, "B T D"]:
        """Without a mask, causal. A mask (True = seen, or an additive bias) must bring causality with it."""
        q_BTHC = self.q(x_BTD).unflatten(-1, (self.heads, self.head_dim))
        k_BTKC = self.k(x_BTD).unflatten(-1, (self.kv_heads, self.head_dim))
        v_BKTC = self.v(x_BTD).unflatten(-1, (self.kv_heads, self.head_dim)).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHC, k_BTKC = self.q_norm(q_BTHC), self.k_norm(k_BTKC)
        if turn is not None:
            q_BTHC, k_BTKC = rotate(q_BTHC, *turn), rotate(k_BTKC, *turn)
        k_BKSC, v_BKSC = k_BTKC.transpose(1, 2), v_BKTC
        if cache is not None:
            k_BKSC, v_BKSC = cache.put(layer, k_BKSC, v_BKSC)
        groups = self.heads // self.kv_heads
        if groups > 1 and mask is not None and mask.is_cuda and x_BTD.shape[1] > 1:
            # a GPU's kernels that take a mask know no groups: without this all T x S scores of all heads are held
            k_BKSC, v_BKSC = (part.repeat_interleave(groups, 1) for part in (k_BKSC, v_BKSC))
            groups = 1
        y_BHTC = F.scaled_dot_product_attention(
            q_BTHC.transpose(1, 2),
            k_BKSC,
            v_BKSC,
            attn_mask=mask,
            is_causal=mask is None and x_BTD.shape[1] > 1,
            enable_gqa=groups > 1,
        )
        return self.out(y_BHTC.transpose(1, 2).flatten(2))


def same_segment(segments_BT: Tensor) -> Bool[Tensor, "B 1 T T"]:
    """Causal order inside each segment of a packed row; nothing crosses a boundary."""
    T = segments_BT.shape[1]
    ordered = torch.ones(T, T, dtype=torch.bool, device=segments_BT.device).tril()
    return (segments_BT[:, :, None] == segments_BT[:, None, :]).logical_and(ordered)[:, None]
