"""Root-mean-square normalisation, as every decoder here uses it.

D width, the last axis; it may be a head's channels (QK-norm).
"""

import functools

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

SMALLEST = 1 << 14  # elements; below, Python in the backward pass costs more than it saves


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight. Half precision is normalised in fp32, as the official decoders do."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        if x.dtype != torch.float32:
            return self.weight * F.rms_norm(x.float(), self.weight.shape, eps=self.eps).to(x.dtype)
        if x.device.type == "cpu" and x.numel() >= SMALLEST and type(self.weight) is nn.Parameter:
            return _RMSNorm.apply(x, self.weight, self.eps)  # torch has no fused kernel there
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def inverse_rms(x: Float[Tensor, "... D"], eps: float) -> Float[Tensor, "... 1"]:
    """1 / sqrt(mean(x²) + eps) of every row, without gradients."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.addcmul(_constant(eps), length, length, value=1 / x.shape[-1]).rsqrt_()


@functools.cache
def _constant(value: float) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor([value])


class _RMSNorm(torch.autograd.Function):
    """With z = x · inverse:  dx = inverse · (g w - z · mean(g w z)),  dw = sum of g z."""

    @staticmethod
    def forward(ctx, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        inverse = inverse_rms(x, eps)
        ctx.save_for_backward(x, weight_D, inverse)
        return (x * inverse).mul_(weight_D)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight_D, inverse = ctx.saved_tensors
        z = x * inverse
        slope = grad * weight_D
        mean = torch.linalg.vecdot(slope, z)[..., None].div_(-x.shape[-1])
        return torch.addcmul(slope, z, mean).mul_(inverse), (grad * z).flatten(0, -2).sum(0), None
