"""The gated feed-forward layer: down(silu(gate(x)) · up(x)).

D width · F hidden width
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gamut.nn.linear import Linear


class SwiGLU(nn.Module):
    """No biases, as in Qwen and Step-1."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate = Linear(width, hidden, bias=False)
        self.up = Linear(width, hidden, bias=False)
        self.down = Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        return self.down(F.silu(self.gate(x)) * self.up(x))
