"""Next-token cross entropy: from logits, and straight from hidden states without ever holding all logits.

B batch · T tokens · D width · V vocabulary · N counted targets
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

Stats = dict[str, Tensor]


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


def next_token_from_hidden(
    x_BTD: Float[Tensor, "B T D"],
    head_VD: Float[Tensor, "V D"],
    ids_BT: Int[Tensor, "B T"],
    mask_BT: Bool[Tensor, "B T"] | Int[Tensor, "B T"] | None = None,
    *,
    chunk: int = 256,
) -> tuple[Float[Tensor, ""], Stats]:
    """`next_token(x @ head.T, ...)`, computed `chunk` targets at a time, each with its gradient while it is in cache.

    Logits are made only where an id counts, and never all at once: memory is chunk · V instead of B · T · V.
    """
    at_N, target_N = targets(ids_BT, mask_BT)
    x_ND = x_BTD.flatten(0, 1)[at_N]
    loss: Tensor = _FromHidden.apply(x_ND, head_VD, target_N, chunk)  # type: ignore[assignment]
    return loss, {"targets": torch.tensor(len(target_N))}


def targets(ids_BT: Int[Tensor, "B T"], mask_BT: Tensor | None = None) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """Flat positions whose next id counts, and those ids. Raises ValueError where none does."""
    B, T = ids_BT.shape
    counted = torch.ones_like(ids_BT, dtype=torch.bool) if mask_BT is None else mask_BT.bool()
    row_N, column_N = counted[:, 1:].nonzero(as_tuple=True)
    if not len(row_N):
        raise ValueError(f"no target: the mask of {B} x {T} ids is 0 after the first column; check the batch")
    return row_N * T + column_N, ids_BT[row_N, column_N + 1]


class _FromHidden(torch.autograd.Function):
    """Gradients are made in the forward pass (they cost no second look at the logits) and scaled in the backward."""

    @staticmethod
    def forward(ctx, x_ND: Tensor, head_VD: Tensor, target_N: Tensor, chunk: int) -> Tensor:
        want = any(ctx.needs_input_grad)
        dx_ND = torch.empty_like(x_ND) if want else None
        dhead_VD = torch.zeros_like(head_VD, dtype=torch.float32) if want else None
        total = x_ND.new_zeros((), dtype=torch.float32)
        for start in range(0, len(x_ND), chunk):
            part = slice(start, start + chunk)
            logits = (x_ND[part] @ head_VD.T).float()
            index = target_N[part, None]
            peak = logits.amax(-1, keepdim=True)
            picked = logits.gather(1, index) - peak
            weight = logits.sub_(peak).exp_()
            norm = weight.sum(-1, keepdim=True)
            total += (norm.log() - picked).sum()
            if want:
                grad = weight.div_(norm).scatter_add_(1, index, -torch.ones_like(norm)).to(x_ND.dtype)
                torch.mm(grad, head_VD, out=dx_ND[part])
                dhead_VD.addmm_(grad.T, x_ND[part]) if grad.dtype == torch.float32 else dhead_VD.add_(
                    grad.T @ x_ND[part]
                )
        ctx.save_for_backward(dx_ND, dhead_VD)
        ctx.scale, ctx.dtype = 1 / len(x_ND), head_VD.dtype
        return total * ctx.scale

    @staticmethod
    def backward(ctx, grad: Tensor):
        dx_ND, dhead_VD = ctx.saved_tensors
        scale = grad * ctx.scale
        return dx_ND * scale, (dhead_VD * scale).to(ctx.dtype), None, None
