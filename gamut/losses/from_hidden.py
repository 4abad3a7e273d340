"""Next-token cross entropy straight from hidden states, without ever holding all logits; its twin: next_token.py.

B batch · T tokens · D width · V vocabulary · N counted targets
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gamut.nn.linear import linear

Stats = dict[str, Tensor]


def next_token_from_hidden(
    x_BTD: Float[Tensor, "B T D"], head_VD: Float[Tensor, "V D"], ids_BT: Int[Tensor, "B T"],
    mask_BT: Bool[Tensor, "B T"] | Int[Tensor, "B T"] | None = None, *, chunk: int = 512,
) -> tuple[Float[Tensor, ""], Stats]:
    """`next_token(x @ head.T, ...)`, computed `chunk` targets at a time, each with its gradient.

    Logits are made only where an id counts, and never all at once: memory is chunk · V instead of B · T · V.
    """
    at_N, target_N = targets(ids_BT, mask_BT)
    x_ND = x_BTD.flatten(0, 1)[at_N]
    loss: Tensor = _FromHidden.apply(x_ND, head_VD, target_N, chunk, torch.is_grad_enabled())  # type: ignore[assignment]
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
    def forward(ctx, x_ND: Tensor, head_VD: Tensor, target_N: Tensor, chunk: int, grad: bool) -> Tensor:
        want_x, want_head = (grad and need for need in ctx.needs_input_grad[:2])
        dx_ND = torch.empty_like(x_ND) if want_x else None
        dhead_DV = x_ND.new_zeros(*head_VD.T.shape, dtype=torch.float32) if want_head else None
        total = x_ND.new_zeros((), dtype=torch.float32)
        for start in range(0, len(x_ND), chunk):
            x_nD, index_n1 = x_ND[start : start + chunk], target_N[start : start + chunk, None]
            logp_nV = linear(x_nD, head_VD).float()
            torch.log_softmax(logp_nV, -1, out=logp_nV)  # in place: fresh pages cost as much as the arithmetic
            total -= logp_nV.gather(1, index_n1).sum()
            if not (want_x or want_head):
                continue
            grad_nV = logp_nV.exp_().scatter_add_(1, index_n1, torch.full_like(index_n1, -1, dtype=logp_nV.dtype))
            grad_nV = grad_nV.to(x_ND.dtype)
            if dx_ND is not None:
                dx_ND[start : start + chunk] = linear(grad_nV, head_VD.T)
            if dhead_DV is not None:
                dhead_DV += linear(x_nD.T, grad_nV.T)
        ctx.save_for_backward(dx_ND, dhead_DV)
        ctx.scale, ctx.dtype = 1 / len(x_ND), head_VD.dtype
        return total * ctx.scale

    @staticmethod
    def backward(ctx, grad: Tensor):
        dx_ND, dhead_DV = ctx.saved_tensors
        scale = grad * ctx.scale
        dx_ND = None if dx_ND is None else dx_ND * scale
        dhead_VD = None if dhead_DV is None else (dhead_DV.T * scale).to(ctx.dtype)
        return dx_ND, dhead_VD, None, None, None
