"""Self-attention with memory, read chunk by chunk: each chunk sees a few chunks back and a little of its neighbour.

B streams · T steps of the window at hand · D width · H heads · C channels per head
Source: SAN-M, arXiv 2006.01713; chunks as in the Step-Audio fact sheet §2.2 (repo: funasr, SANMEncoderChunkOpt).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gamut.nn.fsmn import Memory

EPS = 1e-12
Kept = tuple[Tensor, Tensor]  # keys and values of earlier chunks, B H T C


class SANM(nn.Module):
    """Attention over the window and what is kept of the past, plus a memory over the window's own values.

    Args:
        given: width of the input; another than ``width`` only in a first block.
        taps, shift: of the memory.
    """

    def __init__(self, given: int, width: int, heads: int, taps: int, shift: int = 0):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(given, 3 * width), nn.Linear(width, width)
        self.memory = Memory(width, taps, shift)

    def forward(
        self, x_BTD: Float[Tensor, "B T I"], kept: Kept | None, later: int, keep: int | None
    ) -> tuple[Float[Tensor, "B T D"], Kept | None]:
        """The output, and what the next chunk shall see.

        Args:
            later: steps at the window's end that come again in the next window, hence are not kept.
            keep: steps to keep; 0 keeps none, None all.
        """
        q_BTD, k_BTD, v_BTD = self.qkv(x_BTD).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q_BTD, k_BTD, v_BTD))
        if keep != 0:
            new = k[:, :, :-later], v[:, :, :-later]
            if kept is None:
                kept = new  # the first window's are kept whole
            else:
                k, v = torch.cat([kept[0], k], 2), torch.cat([kept[1], v], 2)
                last = slice(-keep if keep else None, None)
                kept = torch.cat([kept[0], new[0]], 2)[:, :, last], torch.cat([kept[1], new[1]], 2)[:, :, last]
        y_BHTC = F.scaled_dot_product_attention(q, k, v)
        return self.out(y_BHTC.transpose(1, 2).flatten(2)) + self.memory(v_BTD), kept


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)); a block that changes the width does not add its input."""

    def __init__(self, given: int, width: int, heads: int, ffn: int, taps: int, shift: int = 0):
        super().__init__()
        self.added = given == width
        self.norm1, self.attn = nn.LayerNorm(given, EPS), SANM(given, width, heads, taps, shift)
        self.norm2, self.up, self.down = nn.LayerNorm(width, EPS), nn.Linear(width, ffn), nn.Linear(ffn, width)

    def forward(
        self, x_BTD: Float[Tensor, "B T I"], kept: Kept | None, later: int, keep: int | None
    ) -> tuple[Float[Tensor, "B T D"], Kept | None]:
        """As ``SANM.forward``."""
        y_BTD, kept = self.attn(self.norm1(x_BTD), kept, later, keep)
        y_BTD = x_BTD + y_BTD if self.added else y_BTD
        return y_BTD + self.down(F.relu(self.up(self.norm2(y_BTD)))), kept
