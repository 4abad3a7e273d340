"""Mixture of experts: a softmax router picks top_k of E gated feed-forward experts per token.

N tokens (all rows together) · D width · E experts · F hidden width of an expert · P = N · top_k (token, expert) pairs
p pairs of one expert
"""

import functools
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from gamut.nn.linear import linear
from gamut.nn.mlp import SwiGLU


class Experts(nn.Module):
    """E gated feed-forward networks in three tensors."""

    def __init__(self, experts: int, width: int, hidden: int):
        super().__init__()
        self.gate = nn.Parameter(torch.empty(experts, hidden, width))
        self.up = nn.Parameter(torch.empty(experts, hidden, width))
        self.down = nn.Parameter(torch.empty(experts, width, hidden))
        for weight in self.parameters():
            nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)

    def forward(
        self, x_ND: Float[Tensor, "N D"], pick_NK: Int[Tensor, "N K"], weight_NK: Float[Tensor, "N K"]
    ) -> Float[Tensor, "N D"]:
        """Sum of the picked experts' outputs, weighted. Pairs are sorted by expert, so that each works on one block."""
        pair_P = pick_NK.flatten().argsort(stable=True)
        token_P, weight_P = pair_P // pick_NK.shape[1], weight_NK.flatten().gather(0, pair_P)
        count_E = pick_NK.flatten().bincount(minlength=len(self.gate))
        weights, device = (self.gate, self.up, self.down), x_ND.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            x_ND, weights = x_ND.to(dtype), tuple(weight.to(dtype) for weight in weights)
        run = grouped if grouped_works(device, x_ND.dtype) else one_by_one
        return run(x_ND, token_P, weight_P, count_E, *weights)


def one_by_one(
    x_ND: Float[Tensor, "N D"], token_P: Int[Tensor, " P"], weight_P: Float[Tensor, " P"], count_E: Int[Tensor, " E"],
    gate_EFD: Float[Tensor, "E F D"], up_EFD: Float[Tensor, "E F D"], down_EDF: Float[Tensor, "E D F"],
) -> Float[Tensor, "N D"]:  # fmt: skip
    """One expert after the other; those without tokens cost nothing."""
    args = x_ND, token_P, weight_P, gate_EFD, up_EFD, down_EDF
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in args)
    return _OneByOne.apply(count_E.tolist(), keep, *args)  # type: ignore[return-value]


def grouped(
    x_ND: Float[Tensor, "N D"], token_P: Int[Tensor, " P"], weight_P: Float[Tensor, " P"], count_E: Int[Tensor, " E"],
    gate_EFD: Float[Tensor, "E F D"], up_EFD: Float[Tensor, "E F D"], down_EDF: Float[Tensor, "E D F"],
) -> Float[Tensor, "N D"]:  # fmt: skip
    """All experts in one kernel per matrix; the host never waits for the counts."""
    stop_E, x_PD = count_E.cumsum(0).int(), x_ND[token_P]
    h_PF = F.silu(F.grouped_mm(x_PD, gate_EFD.mT, offs=stop_E)) * F.grouped_mm(x_PD, up_EFD.mT, offs=stop_E)
    y_PD = F.grouped_mm(h_PF, down_EDF.mT, offs=stop_E) * weight_P[:, None]
    return torch.zeros_like(x_ND, dtype=y_PD.dtype).index_add(0, token_P, y_PD)


class _OneByOne(torch.autograd.Function):
    """Kept for the backward pass: what each expert's three products returned. Inputs are gathered once more and the
    product of silu(gate) and up is made again: cheaper than memory for them, and an expert's block stays in the cache.
    """

    @staticmethod
    def forward(ctx, counts, keep, x_ND, token_P, weight_P, gate_EFD, up_EFD, down_EDF):
        out_ND, kept = torch.zeros_like(x_ND, dtype=weight_P.dtype), []
        for e, token_p, weight_p in _blocks(counts, token_P, weight_P):
            x_pD = x_ND[token_p]
            gate_pF, up_pF = linear(x_pD, gate_EFD[e]), linear(x_pD, up_EFD[e])
            y_pD = linear(F.silu(gate_pF).mul_(up_pF), down_EDF[e])
            out_ND.index_add_(0, token_p, y_pD * weight_p[:, None])
            kept += [gate_pF, up_pF, y_pD] if keep else []
        ctx.counts = counts
        ctx.save_for_backward(x_ND, token_P, weight_P, gate_EFD, up_EFD, down_EDF, *kept)
        return out_ND

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_ND):
        x_ND, token_P, weight_P, gate_EFD, up_EFD, down_EDF, *kept = ctx.saved_tensors
        want_x, want_experts = ctx.needs_input_grad[2], any(ctx.needs_input_grad[5:])
        dx_ND, dweight_P = torch.zeros_like(x_ND) if want_x else None, torch.empty_like(weight_P)
        dgate_EFD, dup_EFD, ddown_EDF = (
            (torch.zeros_like if 0 in ctx.counts else torch.empty_like)(w) if want_experts else None
            for w in (gate_EFD, up_EFD, down_EDF)
        )
        each = zip(_blocks(ctx.counts, token_P, weight_P, dweight_P), kept[::3], kept[1::3], kept[2::3], strict=True)
        for (e, token_p, weight_p, dweight_p), gate_pF, up_pF, y_pD in each:
            dy_pD = grad_ND[token_p]
            dweight_p.copy_(torch.linalg.vecdot(dy_pD, y_pD.to(dy_pD.dtype)))
            dy_pD = (dy_pD * weight_p[:, None]).to(y_pD.dtype)
            swish_pF, dh_pF = F.silu(gate_pF), linear(dy_pD, down_EDF[e].T)
            if ddown_EDF is not None:
                torch.mm(dy_pD.T, swish_pF * up_pF, out=ddown_EDF[e])
            dup_pF = swish_pF.mul_(dh_pF)
            dgate_pF = torch.ops.aten.silu_backward(dh_pF.mul_(up_pF), gate_pF)
            if dgate_EFD is not None and dup_EFD is not None:
                x_pD = x_ND[token_p]
                torch.mm(dgate_pF.T, x_pD, out=dgate_EFD[e])
                torch.mm(dup_pF.T, x_pD, out=dup_EFD[e])
            if dx_ND is not None:
                dx_ND.index_add_(0, token_p, linear(dgate_pF, gate_EFD[e].T).add_(linear(dup_pF, up_EFD[e].T)))
        return None, None, dx_ND, None, dweight_P, dgate_EFD, dup_EFD, ddown_EDF


def _blocks(counts: list[int], *tensors: Tensor):
    """(expert, its part of each tensor) for every expert that has pairs."""
    parts = zip(*(tensor.split(counts) for tensor in tensors), strict=True)
    return [(e, *part) for e, part in enumerate(parts) if counts[e]]


@functools.cache
def grouped_works(device: str, dtype: torch.dtype) -> bool:
    """Whether grouped products run there, forward and backward, with the right numbers. Tried once, on a small case.

    On a CPU they are not asked for: they run, but one expert after the other is faster (dev/LOG.md).
    """
    if device == "cpu" or not hasattr(F, "grouped_mm"):
        return False
    try:
        return _grouped_error(device, dtype) < 0.05
    except RuntimeError:
        return False


def _grouped_error(device: str, dtype: torch.dtype) -> float:
    """Largest relative difference, in values and gradients, between both ways; one expert stays without tokens."""
    results, count_E = [], torch.tensor([13, 0, 7], device=device)
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        experts, token_P = Experts(3, 32, 48).to(device, dtype), torch.arange(20, device=device) % 12
        x_ND, weight_P = (torch.rand(*size).to(device, dtype).requires_grad_() for size in ((12, 32), (20,)))
        for run in (one_by_one, grouped):
            y_ND = run(x_ND, token_P, weight_P, count_E, experts.gate, experts.up, experts.down)
            grads = torch.autograd.grad(y_ND.square().sum(), [x_ND, weight_P, *experts.parameters()])
            results.append([y_ND.detach(), *grads])
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-6)) for a, b in zip(*results, strict=True))


class MoE(nn.Module):
    """`renormalise`: the chosen experts' weights sum to 1; `shared`: width of a gated expert that sees every token."""

    def __init__(self, width: int, experts: int, top_k: int, hidden: int, *, shared: int = 0, renormalise: bool = True):
        super().__init__()
        if not 1 <= top_k <= experts:
            raise ValueError(f"top_k must lie in 1 .. experts; got top_k={top_k}, experts={experts}")
        self.top_k, self.renormalise = top_k, renormalise
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = Experts(experts, width, hidden)
        self.shared = SwiGLU(width, shared) if shared else None
        self.shared_gate = nn.Linear(width, 1, bias=False) if shared else None

    def forward(self, x: Float[Tensor, "... D"]) -> tuple[Float[Tensor, "... D"], Float[Tensor, "N E"]]:
        """The layer's output, and the router's logits for the balance loss."""
        x_ND = x.flatten(0, -2)
        weight_NK, pick_NK, logits_NE = self.route(x_ND)
        y_ND = self.experts(x_ND, pick_NK, weight_NK)
        y_ND = y_ND if self.shared is None else y_ND + self.common(x_ND)
        return y_ND.view_as(x), logits_NE

    def route(
        self, x_ND: Float[Tensor, "N D"]
    ) -> tuple[Float[Tensor, "N K"], Int[Tensor, "N K"], Float[Tensor, "N E"]]:
        """Weights and numbers of the chosen experts, and the router's logits."""
        logits_NE = self.router(x_ND)
        weight_NK, pick_NK = logits_NE.float().softmax(-1).topk(self.top_k, dim=-1)
        if self.renormalise:
            weight_NK = weight_NK / weight_NK.sum(-1, keepdim=True)
        return weight_NK.to(x_ND.dtype), pick_NK, logits_NE

    def common(self, x_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """What the shared expert adds for every token."""
        assert self.shared is not None and self.shared_gate is not None
        return self.shared_gate(x_ND).sigmoid() * self.shared(x_ND)

    def laid_out(self, product: Callable[..., Callable[..., Tensor]]) -> "LaidOut":
        """For decoding: each expert's weights through ``product`` (generate/step.py)."""
        return LaidOut(self, product)


class LaidOut:
    """The layer for one token per row, from copies of the experts in the order in which few rows read them fastest."""

    def __init__(self, moe: MoE, product: Callable[..., Callable[..., Tensor]]):
        self.moe, e = moe, moe.experts
        self.up = [product(pair) for pair in zip(e.gate.detach(), e.up.detach(), strict=True)]
        self.down = [product([down_DF]) for down_DF in e.down.detach()]

    def __call__(self, x_ND: Float[Tensor, "N D"], plus_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """The output, and ``plus_ND`` added to it."""
        weight_NK, pick_NK, _ = self.moe.route(x_ND)
        y_ND = plus_ND.clone() if self.moe.shared is None else plus_ND + self.moe.common(x_ND)
        pairs: dict[int, list[tuple[int, int]]] = {}
        for n, row in enumerate(pick_NK.tolist()):
            for k, e in enumerate(row):
                pairs.setdefault(e, []).append((n, k))
        for e in sorted(pairs):
            row_p, choice_p = torch.tensor(pairs[e]).unbind(1)
            gate_pF, up_pF = self.up[e](x_ND[row_p]).chunk(2, -1)
            y_pD = self.down[e](F.silu(gate_pF).mul_(up_pF)) * weight_NK[row_p, choice_p, None]
            y_ND.index_add_(0, row_p, y_pD)
        return y_ND
