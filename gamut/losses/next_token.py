"""Next-token cross entropy from logits, the plain way.

B batch · T tokens · V vocabulary
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from gamut.losses.from_hidden import Stats, targets


def next_token(
    logits_BTV: Float[Tensor, "B T V"],
    ids_BT: Int[Tensor, "B T"],
    mask_BT: Bool[Tensor, "B T"] | Int[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, ""], Stats]:
    """Mean of -log p(ids[t+1] | ids[..t]) over the ids that count, in fp32.

    Args:
        mask_BT: 1 where an id counts as a target: not under padding, not in a prompt, not first in a packed segment.
    Returns:
        loss, and stats: ``targets`` (how many ids counted).
    Raises:
        ValueError: no id counts.
    """
    at_N, target_N = targets(ids_BT, mask_BT)
    loss = F.cross_entropy(logits_BTV.flatten(0, 1)[at_N].float(), target_N)
    return loss, {"targets": torch.tensor(len(target_N))}
