"""One decoding step with the weights laid out anew: the numbers of the model's own forward pass, to rounding.

A step multiplies few rows with every weight once: reading the weights is what it costs. `nn.Linear` keeps them in the
slowest order for that: for one row, a transpose is read 3 times as fast where it has more outputs than inputs; for
several, oneDNN's blocked form is (dev/LOG.md). Besides, q/k/v and gate/up are one product each, and the residual is
added inside the product.

B rows · D width · F hidden width · H query heads · K key/value heads · C channels per head · V vocabulary
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from gamut.models.decoder import Block, Decoder, TiedHead
from gamut.nn.attention import Turn
from gamut.nn.cache import Cache
from gamut.nn.linear import Linear, onednn
from gamut.nn.mlp import SwiGLU
from gamut.nn.norm import RMSNorm, inverse_rms
from gamut.nn.rope import rotate

LARGEST = 1 << 30  # bytes of weights; beyond, a second copy is not worth its memory
Product = Callable[..., Tensor]  # (x, what to add to its outputs)


class Step:
    """Call it with the last ids of a cache's first B rows: it returns their logits, and fills the cache."""

    def __init__(self, model: Decoder, one_row: bool):
        self.model = model
        self.layers = [Layer(block, one_row) for block in blocks(model)]
        self.head = product([model.head], one_row, model.norm)
        self.weights, self.key = list(model.parameters()), _key(model)

    @classmethod
    def of(cls, model: Decoder, rows: int) -> "Step | None":
        """The model's step for one row or for several, kept until its weights change.

        None where the plain forward pass has to do: off the CPU, in another precision, with adapters, hooks, sharded or
        quantised weights, or with too many of them.
        """
        if not _plain(model):
            return None
        made = _made.setdefault(model, {})
        if (rows == 1) not in made or made[rows == 1].key != _key(model):
            made[rows == 1] = cls(model, rows == 1)
        return made[rows == 1]

    def fresh(self) -> bool:
        """Whether no weight was written since (cheap: asked at every step)."""
        return all(w._version == version for w, (_, version) in zip(self.weights, self.key, strict=True))

    def __call__(self, ids_B: Int[Tensor, " B"], cache: Cache) -> Float[Tensor, "B V"]:
        cache.begin(len(ids_B), 1)
        x_BD = self.model.embed(ids_B)
        turn, mask = self.model.order(x_BD[:, None], None, None, cache)
        for number, layer in enumerate(self.layers):
            x_BD = layer(x_BD, turn, mask, cache, number)
        cache.end()
        return self.head(_unit(x_BD, self.model.norm.eps))


class Layer:
    """One block for one token per row."""

    def __init__(self, block: Block, one_row: bool):
        attn = block.attn
        mlp: Any = block.mlp
        self.block, self.sizes, self.head_dim = block, (attn.heads, attn.kv_heads), attn.head_dim
        self.qkv = product([attn.q, attn.k, attn.v], one_row, block.norm1)
        self.out = product([attn.out], one_row)
        self.mixture = None if isinstance(mlp, SwiGLU) else mlp.laid_out(partial(product, one_row=one_row))
        if isinstance(mlp, SwiGLU):
            self.up = product([mlp.gate, mlp.up], one_row, block.norm2)
            self.down = product([mlp.down], one_row)

    def __call__(
        self, x_BD: Float[Tensor, "B D"], turn: Turn | None, mask: Tensor | None, cache: Cache, number: int
    ) -> Float[Tensor, "B D"]:
        y_BD = self._attend(_unit(x_BD, self.block.norm1.eps), turn, mask, cache, number)
        x_BD = self.out(y_BD, x_BD)
        if self.mixture is not None:
            return self.mixture(self.block.norm2(x_BD), x_BD)
        gate_BF, up_BF = self.up(_unit(x_BD, self.block.norm2.eps)).chunk(2, -1)
        return self.down(F.silu(gate_BF).mul_(up_BF), x_BD)

    def _attend(
        self, h_BD: Tensor, turn: Turn | None, mask: Tensor | None, cache: Cache, number: int
    ) -> Float[Tensor, "B D"]:
        (H, K), attn = self.sizes, self.block.attn
        qkv_B1HC = self.qkv(h_BD).view(len(h_BD), 1, H + 2 * K, self.head_dim)
        qk_B1HC = qkv_B1HC[:, :, : H + K]
        if attn.q_norm is not None and attn.k_norm is not None:
            qk_B1HC = torch.cat((attn.q_norm(qk_B1HC[:, :, :H]), attn.k_norm(qk_B1HC[:, :, H:])), 2)
        if turn is not None:
            qk_B1HC = rotate(qk_B1HC, *turn)
        qk_BH1C, qkv_BH1C = qk_B1HC.transpose(1, 2), qkv_B1HC.transpose(1, 2)
        keys, values = cache.put(number, qk_BH1C[:, H:], qkv_BH1C[:, H + K :])
        y_BH1C = F.scaled_dot_product_attention(qk_BH1C[:, :H], keys, values, attn_mask=mask, enable_gqa=H != K)
        return y_BH1C.reshape(len(h_BD), -1)


def blocks(model: Decoder) -> list[Block]:
    return [block for block in model.blocks if isinstance(block, Block)]


def product(modules: Sequence[Any], one_row: bool, norm: RMSNorm | None = None) -> Product:
    """x -> the outputs of several linear layers side by side, from a copy of their weights (times those of a norm).

    A layer may be given as its weight alone.
    """
    parts = [m if isinstance(m, Tensor) else m.weight.detach() for m in modules]
    weight_OI = torch.cat(parts) if len(parts) > 1 else parts[0]
    if norm is not None:
        weight_OI = weight_OI * norm.weight.detach()
    biases = [m.bias.detach() for m in modules if getattr(m, "bias", None) is not None]
    bias_O = torch.cat(biases) if biases else None
    if one_row:  # read fastest along the longer axis
        weight_IO = weight_OI.T.contiguous() if len(weight_OI) >= weight_OI.shape[1] else weight_OI.T

        def one(x_1I: Tensor, plus_1O: Tensor | None = None) -> Tensor:
            extra = plus_1O if bias_O is None else bias_O if plus_1O is None else plus_1O + bias_O
            return torch.mm(x_1I, weight_IO) if extra is None else torch.addmm(extra, x_1I, weight_IO)

        return one
    blocked = torch.ops.mkldnn._reorder_linear_weight(weight_OI, 32)

    def several(x_BI: Tensor, plus_BO: Tensor | None = None) -> Tensor:
        if plus_BO is None:
            return torch.ops.mkldnn._linear_pointwise(x_BI, blocked, bias_O, "none", [], "")
        return torch.ops.mkldnn._linear_pointwise.binary(x_BI, plus_BO, blocked, bias_O, "add")

    return several


def _unit(x_BD: Tensor, eps: float) -> Tensor:
    """RMS norm without its weight."""
    return x_BD * inverse_rms(x_BD, eps)


def _key(model: Decoder) -> list[tuple[int, int]]:
    """Changes whenever a weight does."""
    return [(w.data_ptr(), w._version) for w in model.parameters()]


def _plain(model: Decoder) -> bool:
    """Whether every projection is an fp32 matrix on a CPU that nobody watches, and a second copy of all is small."""
    linears: list[Any] = [model.head]
    experts: list[Tensor] = []
    for block in blocks(model):
        mlp: Any = block.mlp
        linears += [block.attn.q, block.attn.k, block.attn.v, block.attn.out]
        if isinstance(mlp, SwiGLU):
            linears += [mlp.gate, mlp.up, mlp.down]
        else:
            experts += mlp.experts.parameters()
    weights: list[Any] = [getattr(m, "weight", None) for m in linears] + experts
    return (
        onednn()
        and all(type(m) in (nn.Linear, Linear, TiedHead) for m in linears)
        and all(type(w) is nn.Parameter for w in weights)
        and all(w.dtype == torch.float32 and w.device.type == "cpu" for w in weights)
        and not any(w.is_inference() for w in model.parameters())  # their changes leave no trace
        and sum(w.nbytes for w in weights) <= LARGEST
        and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    )


_made: WeakKeyDictionary[Decoder, dict[bool, Step]] = WeakKeyDictionary()
