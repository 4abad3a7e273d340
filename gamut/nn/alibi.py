"""Square-root ALiBi: attention scores lose slope · sqrt(distance) instead of carrying positions.

H heads · Q queries · S keys
Source: Step-1, the language model of Step-Audio (arXiv 2502.11946); slopes as in StepFun's vLLM branch add-step1-model.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def slopes(heads: int, interp_ratio: float = 1.0) -> list[float]:
    """One slope per head: a geometric row for the largest power of two, the rest from the odd powers of its finer row.

    Args:
        interp_ratio: r != 1 stretches the context: slope_h is divided by sqrt(r^w_h), where w_h runs from 0 for the
            steepest head to 1 for the flattest, linearly in log slope.
    """
    if heads < 1 or interp_ratio <= 0:
        raise ValueError(f"heads must be >= 1 and interp_ratio > 0; got heads={heads}, interp_ratio={interp_ratio}")
    whole = 1 << (heads.bit_length() - 1)
    row = [2 ** (-8 * i / whole) for i in range(1, whole + 1)]
    row += [2 ** (-4 * i / whole) for i in range(1, 2 * (heads - whole), 2)]
    if interp_ratio == 1 or heads == 1:
        return row
    log = [math.log2(s) for s in row]
    top, bottom = max(log), min(log)
    return [s / math.sqrt(interp_ratio ** ((top - x) / (top - bottom))) for s, x in zip(row, log, strict=True)]


def sqrt_bias(
    slopes_H: Float[Tensor, " H"], query: Int[Tensor, "*B Q"], key_S: Int[Tensor, " S"]
) -> Float[Tensor, "*B H Q S"]:
    """-slope · sqrt(query - key), and -inf where the key lies ahead of the query. Positions count tokens."""
    distance = (query[..., :, None] - key_S).to(slopes_H.dtype)[..., None, :, :]
    bias = -slopes_H[:, None, None] * distance.clamp(min=0).sqrt()
    return bias.masked_fill(distance < 0, -torch.inf)
