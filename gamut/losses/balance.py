"""Load balance of a mixture of experts.

L layers · N tokens of a layer · E experts · K choices per token
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


def balance(
    routing: list[Float[Tensor, "N E"]], top_k: int, mask_N: Bool[Tensor, " N"] | Int[Tensor, " N"] | None = None
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    r"""E · Σ_s Σ_e F[s, e] P[e], over all tokens of all layers together; top_k when perfectly balanced.

    F[s, e] is the share of tokens whose s-th choice is expert e, P[e] the mean router probability of e.

    Args:
        routing: router logits of each MoE layer, as `LM.hidden(routing=[])` collects them.
        mask_N: 0 for padding, flattened like the rows of ``routing`` (mask_BT.flatten()).
    Returns:
        loss (no coefficient), and stats ``busiest`` and ``idlest``: the largest and smallest share of tokens that an
        expert of a layer gets, times E (1 = balanced).
    Raises:
        ValueError: ``routing`` is empty: the model has no MoE layer.
    Source: Switch Transformer (arXiv 2101.03961 §2.2) extended to top-k as in the released Qwen-MoE code.
    """
    if not routing:
        raise ValueError("no router logits: the model has no MoE layer; leave the balance loss out")
    logits_LNE = torch.stack(routing).float()
    if mask_N is not None:
        logits_LNE = logits_LNE[:, mask_N.bool()]
    probs_LNE = logits_LNE.softmax(-1)
    E = probs_LNE.shape[-1]
    chosen_LNKE = F.one_hot(probs_LNE.topk(top_k, dim=-1).indices, E).float()
    loss = E * (chosen_LNKE.mean((0, 1)) * probs_LNE.mean((0, 1))).sum()
    load_LE = chosen_LNKE.sum(2).mean(1) * E / top_k
    return loss, {"busiest": load_LE.max(), "idlest": load_LE.min()}
