"""Convolutional blocks over time.

B batch · W width · T frames
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ConvNeXt(nn.Module):
    """Depth-wise convolution over time, then a pointwise MLP, added to the input (arXiv 2201.03545, in 1-D)."""

    def __init__(self, width: int, kernel: int = 7, expansion: int = 3):
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x_BWT: Float[Tensor, "B W T"]) -> Float[Tensor, "B W T"]:
        y = self.norm(self.depthwise(x_BWT).transpose(1, 2))
        return x_BWT + (self.scale * self.down(F.gelu(self.up(y)))).transpose(1, 2)


class ConvBlock(nn.Module):
    """Dilated convolution with batch norm, added to the input: cheap and quick to learn for small recognisers."""

    def __init__(self, width: int, dilation: int, kernel: int = 5):
        super().__init__()
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2 * dilation, dilation=dilation)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x_BWT: Float[Tensor, "B W T"]) -> Float[Tensor, "B W T"]:
        return x_BWT + F.gelu(self.norm(self.conv(x_BWT)))
