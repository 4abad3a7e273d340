"""The decoder of Qwen2 and Qwen3: dense, causal, rotary positions. models/lm.py adds experts and Step-1's positions.

B batch · T tokens · D width · V vocabulary · N layers
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gamut.io.pretrained import Plain
from gamut.nn.attention import Attention, Turn, same_segment
from gamut.nn.cache import Cache
from gamut.nn.linear import Linear, linear
from gamut.nn.mlp import SwiGLU
from gamut.nn.norm import RMSNorm
from gamut.nn.rope import Angles, angles


@dataclass(frozen=True)
class MoEConfig(Plain):
    """The feed-forward layer as a mixture of experts."""

    experts: int
    top_k: int  # experts per token
    expert_ffn: int  # hidden width of each
    shared_ffn: int = 0  # hidden width of the shared expert, 0 = none
    renormalise: bool = True  # weights of the chosen experts sum to 1
    dense_layers: tuple[int, ...] = ()  # layers that keep the plain feed-forward


@dataclass(frozen=True)
class LMConfig(Plain):
    """Sizes are channels; `heads * head_dim` need not equal `width`."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    norm_eps: float = 1e-6
    positions: str = "rope"  # or sqrt_alibi
    rope_theta: float = 1e6
    max_positions: int = 32768  # tokens; generation stops there
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    tied: bool = False  # the head is the embedding
    moe: MoEConfig | None = None
    interp_ratio: float = 1.0  # sqrt_alibi: stretch of the context
    slopes: tuple[float, ...] = ()  # sqrt_alibi: one per head, in place of the formula's

    def __post_init__(self):
        if self.positions not in ("rope", "sqrt_alibi"):
            raise ValueError(f"positions must be 'rope' or 'sqrt_alibi', got {self.positions!r}")
        if self.heads % self.kv_heads or (self.positions == "rope" and self.head_dim % 2):
            raise ValueError(
                f"kv_heads must divide heads, and rope needs an even head_dim; "
                f"got heads={self.heads}, kv_heads={self.kv_heads}, head_dim={self.head_dim}"
            )
        if self.slopes and len(self.slopes) != self.heads:
            raise ValueError(f"slopes must be empty or one per head; got {len(self.slopes)} for {self.heads} heads")


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)); the router's logits come along (None if dense)."""

    def __init__(self, config: LMConfig, layer: int, mlp: nn.Module):
        super().__init__()
        c, self.layer = config, layer
        self.norm1, self.norm2 = RMSNorm(c.width, c.norm_eps), RMSNorm(c.width, c.norm_eps)
        self.attn = Attention(
            c.width, c.heads, c.kv_heads, c.head_dim,
            qkv_bias=c.qkv_bias, out_bias=c.out_bias, norm_eps=c.norm_eps if c.qk_norm else None,
        )  # fmt: skip
        self.mlp = mlp

    def forward(
        self, x_BTD: Float[Tensor, "B T D"], turn: Turn | None, mask: Tensor | None, cache: Cache | None
    ) -> tuple[Float[Tensor, "B T D"], Tensor | None]:
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD), turn, mask, cache, self.layer)
        y = self.mlp(self.norm2(x_BTD))
        y_BTD, logits_NE = y if isinstance(y, tuple) else (y, None)
        return x_BTD + y_BTD, logits_NE


class TiedHead(nn.Module):
    """Logits through the embedding's own weight; holds no parameter."""

    def __init__(self, embed: nn.Embedding):
        super().__init__()
        self._embed = (embed,)  # in a tuple: not a submodule, so the weight has one name

    @property
    def weight(self) -> Tensor:
        return self._embed[0].weight

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        return linear(x, self.weight)


class Decoder(nn.Module):
    """Dense, with rotary positions. `checkpointing = True` recomputes each block in the backward pass."""

    def __init__(self, config: LMConfig):
        super().__init__()
        self.config, self.checkpointing = config, False
        self.angles = Angles(config.head_dim, config.rope_theta)
        self.embed = nn.Embedding(config.vocab, config.width)
        self.blocks = nn.ModuleList(Block(config, layer, self.feed_forward(layer)) for layer in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = TiedHead(self.embed) if config.tied else Linear(config.width, config.vocab, bias=False)
        self._initialise()

    def feed_forward(self, layer: int) -> nn.Module:
        """The second half of block ``layer``, before its weights are set; `models/lm.py` knows another."""
        if self.config.moe or self.config.positions != "rope":
            raise ValueError(f"a Decoder is dense with rotary positions, got moe={self.config.moe} and positions="
                             f"{self.config.positions!r}; build gamut.models.lm.LM from this config")
        return SwiGLU(self.config.width, self.config.ffn)

    def _initialise(self) -> None:
        """Normal weights of variance 1 / inputs; residual outputs are scaled by 1 / sqrt(2 layers). Ours."""
        for name, weight in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(weight)
            elif weight.dim() > 1:
                std = 0.02 if name == "embed.weight" else weight.shape[-1] ** -0.5
                residual = ".out." in name or ".down" in name
                nn.init.normal_(weight, std=std * ((2 * self.config.layers) ** -0.5 if residual else 1.0))

    def forward(self, ids_BT: Int[Tensor, "B T"] | None = None, **given: Any) -> Float[Tensor, "B T V"]:
        """Logits of every position; arguments as of `hidden`."""
        return self.head(self.hidden(ids_BT, **given))

    def hidden(
        self, ids_BT: Int[Tensor, "B T"] | None = None, *, embeds_BTD: Float[Tensor, "B T D"] | None = None,
        mask_BT: Bool[Tensor, "B T"] | Int[Tensor, "B T"] | None = None,
        positions_BT: Int[Tensor, "B T"] | None = None, segments_BT: Int[Tensor, "B T"] | None = None,
        cache: Cache | None = None, routing: list[Tensor] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """What the head sees: the last block's output after the final norm.

        Args:
            ids_BT: token ids; or give ``embeds_BTD``, their embeddings (a speech model injects audio there).
            mask_BT: 1 for tokens, 0 for right padding. Outputs under padding mean nothing.
            positions_BT: rope positions, where they are not 0, 1, 2 ... after what the cache holds.
            segments_BT: packed rows: a number per document; no token sees another document, positions restart.
            cache: keys and values of earlier tokens; the new ones are added to its first B rows.
            routing: a list that receives the router's logits (B·T, experts) of each MoE layer.
        Raises:
            ValueError: neither or both of ids and embeddings, padding that is not on the right, segments with a
                cache, positions with sqrt_alibi, more tokens than the cache holds.
        """
        if (ids_BT is None) == (embeds_BTD is None):
            raise ValueError("give ids_BT or embeds_BTD, exactly one of them")
        x_BTD = self.embed(ids_BT) if embeds_BTD is None else embeds_BTD
        counts = None if mask_BT is None else right_padded(mask_BT)
        if cache is not None:
            if segments_BT is not None:
                raise ValueError("packed rows (segments_BT) cannot be decoded with a cache; give each its own row")
            cache.begin(*x_BTD.shape[:2])
        turn, mask = self.order(x_BTD, positions_BT, segments_BT, cache)
        for block in self.blocks:
            if self.checkpointing and cache is None and torch.is_grad_enabled():
                x_BTD, logits_NE = checkpoint(block, x_BTD, turn, mask, None, use_reentrant=False)
            else:
                x_BTD, logits_NE = block(x_BTD, turn, mask, cache)
            if routing is not None and logits_NE is not None:
                routing.append(logits_NE)
        if cache is not None:
            cache.end(counts)
        return self.norm(x_BTD)

    def order(
        self, x_BTD: Tensor, positions_BT: Tensor | None, segments_BT: Tensor | None, cache: Cache | None
    ) -> tuple[Turn | None, Tensor | None]:
        """Rotation angles and attention mask of one pass (None = plain causal order)."""
        device, T = x_BTD.device, x_BTD.shape[1]
        first, stop, mask = (0, T, None) if cache is None else (cache.first(), cache.stop, cache.visible())
        if segments_BT is not None:
            mask = same_segment(segments_BT)
        if positions_BT is not None:
            return angles(positions_BT, self.config.head_dim, self.config.rope_theta), mask
        if segments_BT is not None:
            return self.angles(restart(segments_BT), stop, device), mask
        steps = slice(first, stop) if isinstance(first, int) else first + torch.arange(T, device=device)
        return self.angles(steps, stop, device), mask

    def new_cache(self, rows: int, length: int) -> Cache:
        """Room for `rows` sequences of `length` tokens, on the weights' device and in their dtype."""
        c, weight = self.config, self.norm.weight
        return Cache(c.layers, rows, c.kv_heads, length, c.head_dim, device=weight.device, dtype=weight.dtype)


def right_padded(mask_BT: Tensor) -> list[int]:
    """Tokens per row. Raises ValueError where a 0 comes before a 1."""
    mask_BT = mask_BT.bool()
    if bool((mask_BT[:, 1:] & ~mask_BT[:, :-1]).any()):
        raise ValueError("padding must be on the right of each row (mask 1 ... 1 0 ... 0); shift the rows left")
    return mask_BT.sum(1).tolist()


def restart(segments_BT: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Positions that start at 0 with every segment of a packed row."""
    steps_BT = torch.arange(segments_BT.shape[1], device=segments_BT.device).expand_as(segments_BT)
    fresh_BT = F.pad(segments_BT[:, 1:] != segments_BT[:, :-1], (1, 0), value=True)
    return steps_BT - torch.where(fresh_BT, steps_BT, 0).cummax(1).values
