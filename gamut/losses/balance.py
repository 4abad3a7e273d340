"""Load balance of a mixture of experts.

L layers · N tokens of a layer · E experts · P = N · top_k choices
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def balance(
    routing: list[Float[Tensor, "N E"]], top_k: int, mask_N: Bool[Tensor, " N"] | Int[Tensor, " N"] | None = None
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """E · Σ_e F[e] P[e], over all tokens of all layers together; top_k when perfectly balanced.

    F[e] is the share of tokens that choose expert e, P[e] the mean router probability of e.

    Args:
        routing: router logits of each MoE layer, as `LM.hidden(routing=[])` collects them.
        mask_N: 0 for padding, flattened like the rows of ``routing`` (mask_BT.flatten()).
    Returns:
        loss (no coefficient), and stats ``busiest`` and ``idlest``: largest and smallest `load`.
    Raises:
        ValueError: ``routing`` is empty: the model has no MoE layer.
    Source: Switch Transformer (arXiv 2101.03961 §2.2) extended to top-k as in the released Qwen-MoE code.
    """
    if not routing:
        raise ValueError("no router logits: the model has no MoE layer; leave the balance loss out")
    logits_LNE = torch.stack(routing).float()
    if mask_N is not None:
        logits_LNE = logits_LNE[:, mask_N.bool()]
    load_LE = load(logits_LNE, top_k)
    loss = top_k * (load_LE.mean(0) * logits_LNE.softmax(-1).mean((0, 1))).sum()
    return loss, {"busiest": load_LE.max(), "idlest": load_LE.min()}


@torch.no_grad()
def load(logits_LNE: Float[Tensor, "L N E"], top_k: int) -> Float[Tensor, "L E"]:
    """Tokens that each expert of a layer gets, as a part of an even share (1 = balanced, 0 = dead)."""
    _, N, E = logits_LNE.shape
    pick_LP = logits_LNE.topk(top_k, dim=-1).indices.flatten(1)
    count_LE = torch.zeros(len(pick_LP), E, device=pick_LP.device).scatter_add_(
        1, pick_LP, torch.ones_like(pick_LP, dtype=torch.float32)
    )
    return count_LE * E / (N * top_k)
