"""Linear layers whose weights are int8 with one scale per output channel; activations keep their dtype.

M rows · I input width · O output width
Embeddings and norms stay in floating point: an embedding is looked up, not multiplied, so int8 would buy no speed.
"""

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

BLOCK = 1 << 20  # weights turned back into floats at a time: 4 MB, which stay in the cache
PACKED_ROWS = 8  # up to here torch's packed kernel beats blocks (bf16 on CPU; benchmarks/int8.py)


def quantise(
    weight_OI: Float[Tensor, "O I"], dtype: torch.dtype = torch.bfloat16
) -> tuple[Int8[Tensor, "O I"], Float[Tensor, " O"]]:
    """Symmetric rounding to -127 .. 127; no value moves by more than half a step of its own row.

    Args:
        dtype: of the scales. They are rounded first and the weights with them, so the scales' rounding costs nothing:
            even in bf16 the largest value of a row is at most 127.25 steps.
    """
    out, width = weight_OI.shape
    q_OI = torch.empty(out, width, dtype=torch.int8, device=weight_OI.device)
    scale_O = torch.empty(out, dtype=dtype, device=weight_OI.device)
    room = torch.empty(_rows(width), width, device=weight_OI.device)  # never a second float copy of a large weight
    for part, q_bI, scale_b in zip(*(t.split(_rows(width)) for t in (weight_OI, q_OI, scale_O)), strict=True):
        rows_bI = room[: len(part)].copy_(part)
        scale_b.copy_(torch.linalg.vector_norm(rows_bI, torch.inf, dim=1) / 127)
        step_b1 = scale_b[:, None].float().clamp_min(torch.finfo(torch.float32).tiny)  # rows of zeros
        q_bI.copy_(rows_bI.div_(step_b1).round_())
    return q_OI, scale_O


def _rows(width: int) -> int:
    return max(1, BLOCK // width)


class Int8Linear(nn.Module):
    """y = (x qᵀ) · scale + bias, with q int8. Gradients reach the input, never the weight."""

    def __init__(self, width: int, out: int, bias: bool, dtype: torch.dtype = torch.bfloat16):
        super().__init__()
        self.in_features, self.out_features = width, out
        self.register_buffer("weight", torch.zeros(out, width, dtype=torch.int8))
        self.register_buffer("scale", torch.zeros(out, dtype=dtype))
        self.register_buffer("bias", torch.zeros(out, dtype=dtype) if bias else None)
        self.weight: Tensor
        self.scale: Tensor
        self.bias: Tensor | None

    def forward(self, input: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        x_MI = input.reshape(-1, self.in_features).contiguous()
        scale_O = self.scale.to(x_MI.dtype)
        if len(x_MI) <= PACKED_ROWS and packs(x_MI):
            y_MO = torch.ops.aten._weight_int8pack_mm(x_MI, self.weight, scale_O)
        else:
            y_MO = torch.cat([x_MI @ block_bI.T for block_bI in self._blocks(x_MI)], 1) * scale_O
        y_MO = y_MO if self.bias is None else y_MO + self.bias
        return y_MO.view(*input.shape[:-1], self.out_features)

    def _blocks(self, x_MI: Tensor) -> Iterator[Tensor]:
        """q as floats, some rows at a time, all in one place: fresh memory for each costs up to 15 x in page faults.
        A backward pass needs them all again, so with gradients each gets its own."""
        rows = _rows(self.in_features)
        room = torch.empty(rows, self.in_features, dtype=x_MI.dtype, device=x_MI.device)
        for q_bI in self.weight.split(rows):
            yield q_bI.to(x_MI.dtype) if x_MI.requires_grad else room[: len(q_bI)].copy_(q_bI)


def packs(x_MI: Float[Tensor, "M I"]) -> bool:
    """Whether torch's packed kernel can take it. It asks for whole, aligned vectors of 16 numbers and does not check:
    other widths and places end the process (torch 2.13, AVX-512)."""
    return (
        x_MI.dtype == torch.bfloat16 and x_MI.device.type == "cpu" and not x_MI.requires_grad
        and x_MI.shape[1] % 16 == 0 and x_MI.data_ptr() % 32 == 0
    )  # fmt: skip


def use_int8(model: nn.Module, *, keep: Sequence[str] = (), dtype: torch.dtype = torch.bfloat16) -> list[str]:
    """Replace every nn.Linear by an empty Int8Linear, on its device; `int8_tensors` fills them.

    Args:
        keep: patterns of names that stay as they are.
        dtype: of scales and biases: the one the model computes in.
    Returns:
        names of the replaced layers. Experts of a mixture are not nn.Linear and stay in floating point.
    """
    names = []
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and not any(fnmatch(name, pattern) for pattern in keep):
            with torch.device(layer.weight.device):
                new = Int8Linear(layer.in_features, layer.out_features, layer.bias is not None, dtype)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, new)
            names.append(name)
    return names


def int8_tensors(
    model: nn.Module, tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype = torch.bfloat16
) -> Iterator[tuple[str, Tensor]]:
    """A float checkpoint's (name, tensor) pairs as those of a model after `use_int8`, one tensor at a time.

    Weights of int8 layers come out as q and scale, every other float in ``dtype``; what is int8 already passes through.
    """
    small = {f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, Int8Linear)}
    for name, tensor in tensors:
        if name in small and tensor.is_floating_point() and tensor.dim() == 2:
            yield name, (pair := quantise(tensor, dtype))[0]
            yield name.removesuffix("weight") + "scale", pair[1]
        else:
            # a copy, not a view: a memory-mapped tensor would keep its whole file mapped
            yield name, tensor.to(dtype, copy=True) if tensor.is_floating_point() else tensor.clone()
