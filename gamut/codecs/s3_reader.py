"""The second half of the speech recogniser that an S3 tokenizer is the first half of: it reads what tokens say.

It exists for training: whatever it can read must be in the tokens. Afterwards the tokenizer stands alone.

N clips · M mel channels · F mel frames · T tokens · C coordinates of a code · V labels
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gamut.codecs.s3_tokenizer import S3Tokenizer
from gamut.nn.encoder import Block
from gamut.nn.fsmn import Memory
from gamut.nn.rope import Angles


class Reading(NamedTuple):
    """logits (N, T, V), the tokens' ids (N, T), how many of them each clip has (N,), and what was quantised."""

    logits: Float[Tensor, "N T V"]
    ids: Int[Tensor, "N T"]
    counts: Int[Tensor, " N"]
    latent: Float[Tensor, "N T C"]


class S3Reader(nn.Module):
    """Codes -> transformer -> a label per token; gradients reach the tokenizer through the codes.

    Args:
        tokenizer: trained along; its sizes are the reader's too.
        labels: letters, phones or digits to tell apart; one more class stands for none (CTC's blank), the last.
        layers: of the reader.
    Source: the quantiser inside an ASR encoder, arXiv 2412.10117 §2.1 (6 layers before it, the rest behind). The
        decoder that the paper puts behind its encoder is left out: CTC or frame labels train the encoder alone (ours).
    """

    def __init__(self, tokenizer: S3Tokenizer, labels: int, layers: int = 2):
        super().__init__()
        c, self.tokenizer = tokenizer.config, tokenizer
        self.up = nn.Linear(c.width if c.version == 1 else len(c.levels), c.width)
        memories = [Memory(c.width, c.memory) for _ in range(layers)]
        self.blocks = nn.ModuleList(Block(c.width, c.heads, c.ffn, memory=memory) for memory in memories)
        self.norm, self.head = nn.LayerNorm(c.width), nn.Linear(c.width, labels + 1)
        self.turn = Angles(c.width // c.heads, 1e4)

    def read(self, codes_NTC: Float[Tensor, "N T C"], counts_N: Int[Tensor, " N"]) -> Float[Tensor, "N T V"]:
        """Logits of what codes say."""
        steps, device = codes_NTC.shape[1], codes_NTC.device
        seen_NT = torch.arange(steps, device=device) < counts_N.to(device).clamp(min=1)[:, None]
        x, turn = self.up(codes_NTC.to(self.up.weight.dtype)), self.turn(slice(0, steps), steps, device)
        for block in self.blocks:
            x = block(x, seen_NT, turn)
        return self.head(self.norm(x))

    def forward(self, mels_NMF: Float[Tensor, "N M F"], lens_N: Int[Tensor, " N"] | None = None) -> Reading:
        """Log-mels of at most 30 s through both halves; ``lens_N`` as in ``S3Tokenizer.hidden``."""
        hidden, counts = self.tokenizer.hidden(mels_NMF, lens_N)
        latent = self.tokenizer.latent(hidden)
        codes, ids = self.tokenizer.codes(latent)
        return Reading(self.read(codes, counts), ids, counts, latent)
