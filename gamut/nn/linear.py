"""Matrix products on the CPU through oneDNN, where its kernels beat the default library.

torch sends fp32 products to MKL, which on AMD cores reaches 70-90 GFLOP/s where oneDNN reaches 95-105 (dev/LOG.md).

I inputs · O outputs · N rows (all leading axes together)
"""

import functools

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

SMALLEST = 1 << 26  # multiplications; below, the detour costs more than it saves
ONE_ROW = 1 << 19, 1 << 14  # most and fewest weights for which one row's dot products beat the library's product


def linear(
    x: Float[Tensor, "... I"], weight_OI: Float[Tensor, "O I"], bias_O: Float[Tensor, " O"] | None = None
) -> Float[Tensor, "... O"]:
    """x @ weight.T + bias, like `F.linear`: same values to rounding, same gradients (also of gradients)."""
    large, row = x.numel() * len(weight_OI) >= SMALLEST, _one_row(x, weight_OI)
    if (
        not (large or row)
        or x.dtype != torch.float32
        or weight_OI.dtype != torch.float32
        or x.device.type != "cpu"
        or type(weight_OI) not in (Tensor, nn.Parameter)  # a sharded weight, say
        or torch.is_autocast_enabled("cpu")
        or not onednn()
    ):
        return F.linear(x, weight_OI, bias_O)
    if row:
        y_O = torch.linalg.vecdot(weight_OI, x.flatten())
        return (y_O if bias_O is None else y_O + bias_O).view(*x.shape[:-1], -1)
    y_NO = _Product.apply(x.reshape(-1, x.shape[-1]), weight_OI)
    y_NO = y_NO if bias_O is None else y_NO + bias_O
    return y_NO.view(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """`nn.Linear` through `linear`."""

    def forward(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        return linear(x, self.weight, self.bias)


@functools.cache
def onednn() -> bool:
    """Whether this build has oneDNN's product, on a CPU with AVX-512, and it gives the right numbers."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    try:
        x, weight = torch.arange(240.0).sin().view(5, 48), torch.arange(768.0).cos().view(16, 48)
        return torch.allclose(_call(x, weight), x @ weight.T, atol=1e-4)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


def _one_row(x: Tensor, weight_OI: Tensor) -> bool:
    """A weight with more outputs than inputs is read twice as fast by `vecdot`, while its products fit the cache."""
    most, fewest = ONE_ROW
    outputs, inputs = weight_OI.shape
    return x.numel() == inputs < outputs and fewest <= weight_OI.numel() <= most and not torch.is_grad_enabled()


def _call(x_NI: Tensor, weight_OI: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, None, "none", [], "")


class _Product(torch.autograd.Function):
    """x @ weight.T; the backward pass is made of the same product, so it can be differentiated again."""

    @staticmethod
    def forward(ctx, x_NI: Tensor, weight_OI: Tensor) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI)
        return _call(x_NI, weight_OI)

    @staticmethod
    def backward(ctx, grad_NO: Tensor):
        x_NI, weight_OI = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = _Product.apply(grad_NO, weight_OI.T)
        if ctx.needs_input_grad[1]:
            long_output = len(weight_OI) > weight_OI.shape[1]  # oneDNN is faster with the long axis in front
            grad_weight = _Product.apply(x_NI.T, grad_NO.T).T if long_output else _Product.apply(grad_NO.T, x_NI.T)
        return grad_x, grad_weight
