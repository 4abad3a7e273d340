"""Low-rank adapters on linear layers: y = W x + (alpha / rank) · B A x, with W frozen (arXiv 2106.09685).

R rank · I input width · O output width
Adapted layers keep the names of their weights, so checkpoints of the base model still fit; adapters add lora_A, lora_B.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gamut.io.meta import meta
from gamut.nn.linear import Linear, linear

DECODER = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.gate", "mlp.up", "mlp.down")


class LoRALinear(nn.Linear):
    """A linear layer that shares another's weight and adds an adapter. Half-precision layers get fp32 adapters."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float = 0.0):
        nn.Module.__init__(self)  # not nn.Linear's: it would allocate a weight
        if rank < 1:
            raise ValueError(f"lora rank must be at least 1, got {rank}")
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.rank, self.alpha, self.scale = rank, float(alpha), alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.plain: Tensor | None = None  # the weight as it was before `merge`
        like = {"device": base.weight.device, "dtype": torch.promote_types(base.weight.dtype, torch.float32)}
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, **like))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, **like))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, input: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        y = linear(input, self.weight, self.bias)
        if self.plain is not None:
            return y
        low = F.linear(self.dropout(input.to(self.lora_A.dtype)), self.lora_A)
        return y + (F.linear(low, self.lora_B) * self.scale).to(y.dtype)

    @torch.no_grad()
    def merged(self) -> Float[Tensor, "O I"]:
        """The weight with the adapter in it; the sum is taken in fp32."""
        weight = self.weight if self.plain is None else self.plain
        return (weight.to(self.lora_A.dtype) + self.scale * (self.lora_B @ self.lora_A)).to(weight.dtype)


def add_lora(
    model: nn.Module,
    targets: Sequence[str] = DECODER,
    *,
    rank: int = 16,
    alpha: float | None = None,
    dropout: float = 0.0,
) -> list[str]:
    """Give every linear layer whose name matches an adapter, and freeze everything else. Outputs do not change yet.

    Args:
        targets: patterns of names, from the right: "attn.q" is blocks.0.attn.q, "blocks.3.*" all of block 3.
        alpha: the adapter is scaled by alpha / rank; None means 2 · rank.
        dropout: on the adapter's input, while training.
    Returns:
        the names of the adapted layers.
    Raises:
        ValueError: nothing matches, the model has adapters already, or a head matches: losses read its weight directly
            and would pass an adapter by.
    """
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    if any(isinstance(m, LoRALinear) for m in linears.values()):
        raise ValueError("the model has adapters already; fold_lora(model) puts them into the weights first")
    names = [n for n in linears if any(fnmatch(n, p) or fnmatch(n, f"*.{p}") for p in targets)]
    if not names:
        raise ValueError(f"no linear layer matches {list(targets)}; there are for example {list(linears)[:8]}")
    if heads := [name for name in names if name.split(".")[-1] == "head"]:
        raise ValueError(
            f"{', '.join(heads)} cannot be adapted, losses read its weight directly; narrow {list(targets)}"
        )
    model.requires_grad_(False)
    for name in names:
        _replace(model, name, LoRALinear(linears[name], rank, 2.0 * rank if alpha is None else alpha, dropout))
    return names


def attach_lora(model: nn.Module, tensors: Mapping[str, Tensor], alphas: Mapping[str, float]) -> None:
    """Adapters from tensors ("blocks.0.attn.q.lora_A" and "...lora_B"); ranks are read off their shapes.

    Raises:
        ValueError: a name that is no linear layer of the model, half a pair, or a shape that does not fit.
    """
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    names = list(dict.fromkeys(key.rpartition(".")[0] for key in tensors))
    problems = []
    for name in names:
        a, b, base = tensors.get(f"{name}.lora_A"), tensors.get(f"{name}.lora_B"), linears.get(name)
        if base is None:
            problems.append(f"{name} is no linear layer here")
        elif a is None or b is None:
            problems.append(f"{name} has only one of lora_A, lora_B")
        elif (a.shape[1], b.shape[0], b.shape[1]) != (base.in_features, base.out_features, a.shape[0]):
            problems.append(
                f"{name} has A {tuple(a.shape)} and B {tuple(b.shape)} for {base.in_features} -> {base.out_features}"
            )
    if problems:
        more = f" ... and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(f"adapter does not fit {type(model).__name__}: {'; '.join(problems[:8])}{more}")
    model.requires_grad_(False)
    for name in names:
        layer = LoRALinear(linears[name], len(tensors[f"{name}.lora_A"]), alphas[name])
        with torch.no_grad():
            layer.lora_A.copy_(tensors[f"{name}.lora_A"])
            layer.lora_B.copy_(tensors[f"{name}.lora_B"])
        _replace(model, name, layer)


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """(name, layer) of every adapted layer."""
    return ((name, m) for name, m in model.named_modules() if isinstance(m, LoRALinear))


def lora_state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The adapters' tensors by name, and each layer's alpha: what `attach_lora` and `io/adapters.py` take."""
    layers = dict(lora_layers(model))
    tensors = {f"{n}.{k}": getattr(m, k).detach() for n, m in layers.items() for k in ("lora_A", "lora_B")}
    return tensors, {name: layer.alpha for name, layer in layers.items()}


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Put the adapters into the weights, as generation wants them. The plain weights are kept for `unmerge_lora`."""
    for _, layer in lora_layers(model):
        if layer.plain is None:
            merged, layer.plain = layer.merged(), layer.weight.data
            layer.weight.data = merged


@torch.no_grad()
def unmerge_lora(model: nn.Module) -> None:
    """Take the adapters out again: the weights are those from before, to the bit."""
    for _, layer in lora_layers(model):
        if layer.plain is not None:
            layer.weight.data, layer.plain = layer.plain, None


@torch.no_grad()
def fold_lora(model: nn.Module) -> None:
    """Adapters into the weights for good: the layers are plain ones again, and nothing is frozen."""
    for name, layer in list(lora_layers(model)):
        with meta():
            plain = Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        plain.weight, plain.bias = nn.Parameter(layer.merged()), layer.bias
        _replace(model, name, plain)
    model.requires_grad_(True)


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    layer.train(model.training)
    setattr(model.get_submodule(parent), child, layer)
