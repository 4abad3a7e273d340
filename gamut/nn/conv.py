"""Convolutional blocks over time.

B batch · W width · T frames
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ConvBlock(nn.Module):
    """Dilated convolution with batch norm, added to the input: cheap and quick to learn for small recognisers."""

    def __init__(self, width: int, dilation: int, kernel: int = 5):
        super().__init__()
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2 * dilation, dilation=dilation)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x_BWT: Float[Tensor, "B W T"]) -> Float[Tensor, "B W T"]:
        return x_BWT + F.gelu(self.norm(self.conv(x_BWT)))
