"""Feed-forward sequential memory: what lies near in time, added without attention.

N clips · T steps · D width
Used by nn/encoder.py (S3 tokenizer v2) and nn/sanm.py.
"""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


class Memory(nn.Module):
    """x plus a depth-wise convolution of it over ``taps`` steps, without bias; zeros beyond the ends.

    Args:
        shift: steps by which the window is moved into the past.
    Source: FSMN, arXiv 1803.05030 (there as a network of its own); beside attention: SAN-M, arXiv 2006.01713.
    """

    def __init__(self, width: int, taps: int, shift: int = 0):
        super().__init__()
        left = (taps - 1) // 2 + shift
        if not 0 <= left < taps:
            raise ValueError(f"a memory needs taps >= 1 and a shift within them, got taps={taps}, shift={shift}")
        self.pad = (left, taps - 1 - left)
        self.weight = nn.Parameter(nn.Conv1d(width, width, taps, groups=width, bias=False).weight.detach())

    def forward(
        self, x_NTD: Float[Tensor, "N T D"], seen_NT: Bool[Tensor, "N T"] | None = None
    ) -> Float[Tensor, "N T D"]:
        """Steps outside ``seen_NT`` neither give nor get anything."""
        if seen_NT is not None:
            x_NTD = x_NTD * seen_NT[..., None]
        x_NDT = F.pad(x_NTD.transpose(1, 2), self.pad)
        y_NTD = F.conv1d(x_NDT, self.weight, groups=len(self.weight)).transpose(1, 2) + x_NTD
        return y_NTD if seen_NT is None else y_NTD * seen_NT[..., None]
