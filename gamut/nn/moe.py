"""Mixture of experts: a softmax router picks top_k of E gated feed-forward experts per token.

N tokens (all rows together) · D width · E experts · F hidden width of an expert · P = N · top_k (token, expert) pairs
"""

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
        """Pairs sorted by expert: one gather, one matmul chain per non-empty expert, one scatter-add."""
        pair_P, count_E = by_expert(pick_NK, len(self.gate))
        token_P = pair_P // pick_NK.shape[1]
        parts = []
        weights = zip(self.gate.unbind(), self.up.unbind(), self.down.unbind(), strict=True)
        for x_pD, (gate_FD, up_FD, down_DF) in zip(x_ND[token_P].split(count_E), weights, strict=True):
            if len(x_pD):
                parts.append(linear(F.silu(linear(x_pD, gate_FD)) * linear(x_pD, up_FD), down_DF))
        y_PD = torch.cat(parts) * weight_NK.flatten()[pair_P, None]
        return torch.zeros_like(x_ND).index_add(0, token_P, y_PD.to(x_ND.dtype))


def by_expert(pick_NK: Int[Tensor, "N K"], experts: int) -> tuple[Int[Tensor, " P"], list[int]]:
    """Indices of the (token, choice) pairs in expert order, and how many each expert got."""
    flat_P = pick_NK.flatten()
    return flat_P.argsort(stable=True), flat_P.bincount(minlength=experts).tolist()


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
