"""Vectors to whole numbers: finite scalar quantisation (each coordinate is rounded to a few levels, together they
spell the code's number), and the nearest of a list of codewords.

B batch · N tokens · D coordinates
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class FSQ(nn.Module):
    """Rounds each of D coordinates to ``levels[d]`` values in [-1, 1]; gradients pass straight through the rounding.

    Source: finite scalar quantisation, arXiv 2309.15505 §3. Needs inputs of about unit variance: without a batch norm
    in front a few codes take everything (measured: 9 of 1000 in use).

    Args:
        spread: half the range that is rounded, in levels beyond the first: 0.5 reaches the outermost levels only at
            infinity. The S3 tokenizer has 0.4995.

    >>> FSQ((3, 3)).ids_to_codes(torch.tensor([[0, 4, 8]])).tolist()
    [[[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]]]
    """

    levels: Tensor
    radix: Tensor

    def __init__(self, levels: Sequence[int], spread: float = 0.5005):
        super().__init__()
        self.spread = spread
        if not levels or min(levels) < 2:
            raise ValueError(f"each FSQ coordinate needs at least 2 levels, got levels={tuple(levels)}")
        if close := [count for count in levels if count % 2 == 0 and (count - 1) * spread <= 0.5]:
            raise ValueError(f"{close[0]} levels are not reached with a spread of {spread}: an even count needs "
                             f"(levels - 1) * spread above 0.5; take an odd one, or a spread above "
                             f"{0.5 / (close[0] - 1):g}")
        self.vocab = math.prod(levels)
        radix = [math.prod(levels[:d]) for d in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("radix", torch.tensor(radix), persistent=False)

    def forward(self, z_BND: Float[Tensor, "B N D"]) -> tuple[Float[Tensor, "B N D"], Int[Tensor, "B N"]]:
        """(codes in [-1, 1], ids in [0, vocab))."""
        half = (self.levels - 1) * self.spread
        shift = torch.where(self.levels % 2 == 0, 0.5, 0.0)  # an even count has no level at zero: round around -1/2
        bounded = torch.tanh(z_BND + torch.atanh(shift / half)) * half - shift
        rounded = bounded + (bounded.round() - bounded).detach()
        digits = bounded.detach().round().long() + self.levels // 2
        return rounded / (self.levels // 2), (digits * self.radix).sum(-1)

    def ids_to_codes(self, ids_BN: Int[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        """The codes that ``forward`` gave with these ids.

        Raises:
            ValueError: for an id outside [0, vocab).
        """
        _inside(ids_BN, self.vocab)
        digits = ids_BN[..., None] // self.radix % self.levels
        return (digits - self.levels // 2) / (self.levels // 2)


class VQ(nn.Module):
    """The nearest of a list of codewords to the input scaled to length 1; gradients pass straight through.

    Source: S3 tokenizer v1 (Step-Audio fact sheet §2.3): distances are Euclidean, codewords of any length.
    Its codewords are read, not learned: no gradient reaches them.
    """

    def __init__(self, vocab: int, width: int):
        super().__init__()
        self.vocab = vocab
        self.words = nn.Parameter(torch.nn.functional.normalize(torch.randn(vocab, width), dim=-1))

    def forward(self, z_BND: Float[Tensor, "B N D"]) -> tuple[Float[Tensor, "B N D"], Int[Tensor, "B N"]]:
        """(codewords, ids in [0, vocab))."""
        unit = torch.nn.functional.normalize(z_BND, dim=-1)
        ids = (unit @ self.words.T - self.words.square().sum(-1) / 2).argmax(-1)
        return unit + (self.words[ids] - unit).detach(), ids

    def ids_to_codes(self, ids_BN: Int[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        """The codewords of these ids. Raises ValueError for an id outside [0, vocab)."""
        _inside(ids_BN, self.vocab)
        return self.words[ids_BN]


def _inside(ids: Tensor, vocab: int) -> None:
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocab:
        raise ValueError(f"audio codes must lie in [0, {vocab}), got {int(ids.min())}..{int(ids.max())}")
