"""Mixture of experts: a softmax router picks top_k of E gated feed-forward experts per token.

N tokens (all rows together) · D width · E experts · F hidden width of an expert · P = N · top_k (token, expert) pairs
"""

import functools

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
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
        """Sum of the picked experts' outputs, weighted. Pairs are sorted by expert: one gather, one scatter-add."""
        pair_P = pick_NK.flatten().argsort(stable=True)
        token_P = pair_P // pick_NK.shape[1]
        count_E = pick_NK.flatten().bincount(minlength=len(self.gate))
        run = self.grouped if grouped_works(x_ND.device.type, x_ND.dtype) else self.each
        y_PD = run(x_ND[token_P], count_E) * weight_NK.flatten()[pair_P, None]
        return torch.zeros_like(x_ND).index_add(0, token_P, y_PD.to(x_ND.dtype))

    def each(self, x_PD: Float[Tensor, "P D"], count_E: Int[Tensor, " E"]) -> Float[Tensor, "P D"]:
        """One chain of products per expert that has tokens."""
        parts, weights = [], zip(self.gate.unbind(), self.up.unbind(), self.down.unbind(), strict=True)
        for x_pD, (gate_FD, up_FD, down_DF) in zip(x_PD.split(count_E.tolist()), weights, strict=True):
            if len(x_pD):
                parts.append(linear(F.silu(linear(x_pD, gate_FD)) * linear(x_pD, up_FD), down_DF))
        return torch.cat(parts)

    def grouped(self, x_PD: Float[Tensor, "P D"], count_E: Int[Tensor, " E"]) -> Float[Tensor, "P D"]:
        """All experts in one kernel per matrix; the host never waits for the counts."""
        stop_E = count_E.cumsum(0).int()
        gate_PF = F.grouped_mm(x_PD, self.gate.mT, offs=stop_E)
        return F.grouped_mm(F.silu(gate_PF) * F.grouped_mm(x_PD, self.up.mT, offs=stop_E), self.down.mT, offs=stop_E)


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
        experts = Experts(3, 32, 48).to(device, dtype)
        x_PD = torch.randn(20, 32).to(device, dtype).requires_grad_()
        for run in (experts.each, experts.grouped):
            y_PD = run(x_PD, count_E)
            results.append([y_PD.detach(), *torch.autograd.grad(y_PD.square().sum(), [x_PD, *experts.parameters()])])
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
        logits_NE = self.router(x_ND)
        weight_NK, pick_NK = logits_NE.float().softmax(-1).topk(self.top_k, dim=-1)
        if self.renormalise:
            weight_NK = weight_NK / weight_NK.sum(-1, keepdim=True)
        y_ND = self.experts(x_ND, pick_NK, weight_NK.to(x.dtype))
        if self.shared is not None and self.shared_gate is not None:
            y_ND = y_ND + self.shared_gate(x_ND).sigmoid() * self.shared(x_ND)
        return y_ND.view_as(x), logits_NE
