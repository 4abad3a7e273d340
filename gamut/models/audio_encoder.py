"""Whisper's encoder, which Qwen2-Audio and Step-Audio 2 took over and pool by two.

    mel (100 a second) -> two convolutions (50) -> + positions -> transformer -> pooling (25) -> norm

N clips · M mel channels · F mel frames · T encoder steps · D width
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gamut.io.keys import step_audio_2 as keys
from gamut.io.meta import meta
from gamut.io.pretrained import Plain, Pretrained
from gamut.nn.encoder import Block, sinusoids

EDGES = ("open", "parity", "alone", "closed")


@dataclass(frozen=True)
class AudioEncoderConfig(Plain):
    """Widths are channels, lengths are encoder steps. The defaults are Step-Audio 2 mini's (fact sheet §3)."""

    called = "audio encoder"
    mels: int = 128
    width: int = 1280
    layers: int = 32
    heads: int = 20
    ffn: int = 5120
    positions: int = 1500  # encoder steps before pooling: 30 s
    pool: int = 2  # steps averaged into one; Whisper 1
    norm_eps: float = 1e-5
    edge: str = "parity"  # what a clip feels of the batch behind its end; see AudioEncoder

    def __post_init__(self):
        if self.edge not in EDGES:
            raise ValueError(f"edge must be one of {', '.join(EDGES)}, got {self.edge!r}")
        if self.width % self.heads or self.width % 2 or self.pool < 1:
            raise ValueError(f"heads must divide an even width, and pool must be at least 1; "
                             f"got width={self.width}, heads={self.heads}, pool={self.pool}")


class AudioEncoder(Pretrained, nn.Module):
    """Log-mels to one vector per 40 ms (per 20 ms without pooling).

    ``config.edge`` says what a clip feels of the zeros behind its end when it shares a batch with a longer one:
        open    Qwen2-Audio: attention ends at the clip; its last step still mixes in what the convolutions make
                of the padding.
        parity  Step-Audio 2 as released: as open, but where the padded length is even, a clip of odd length loses
                its last half-pooled step from attention.
        alone   nothing: every clip gets what both of these make of it by itself, in a batch of one, to which its own
                last two frames belong. For tuning released weights.
        closed  ours: nothing crosses the end, so a clip's vectors do not depend on its batch. For new models.
    """

    Config, inside = AudioEncoderConfig, staticmethod(meta)

    def __init__(self, config: AudioEncoderConfig = AudioEncoderConfig()):
        super().__init__()
        c = self.config = config
        self.conv1 = nn.Conv1d(c.mels, c.width, 3, padding=1)
        self.conv2 = nn.Conv1d(c.width, c.width, 3, stride=2, padding=1)
        self.positions = nn.Parameter(torch.empty(c.positions, c.width), requires_grad=False)
        if not self.positions.is_meta:
            self.positions.data.copy_(sinusoids(c.positions, c.width))
        self.blocks = nn.ModuleList(Block(c.width, c.heads, c.ffn, c.norm_eps) for _ in range(c.layers))
        self.norm = nn.LayerNorm(c.width, c.norm_eps)

    def lengths(self, lens_N: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """Vectors of a clip with so many usable mel frames."""
        return (lens_N + 1) // 2 // self.config.pool

    def embed(
        self, mels_NMF: Float[Tensor, "N M F"], lens_N: Int[Tensor, " N"] | None = None
    ) -> Float[Tensor, "N T D"]:
        """What the first block sees: the convolutions' output plus positions.

        Raises:
            ValueError: for another number of mel channels, or more frames than there are positions.
        """
        c, frames = self.config, mels_NMF.shape[-1]
        if mels_NMF.shape[1] != c.mels or not 1 <= frames <= 2 * c.positions:
            raise ValueError(f"this encoder takes {c.mels} mel channels and 1 to {2 * c.positions} frames "
                             f"({c.positions / 50:g} s), got {mels_NMF.shape[1]} and {frames}; cut longer sound with "
                             f"gamut.io.media.pieces")
        keep, x_NMF = 1, mels_NMF.to(self.conv1.weight.dtype)
        if c.edge in ("alone", "closed") and lens_N is not None:
            keep = torch.arange(frames, device=mels_NMF.device) < self._ends(lens_N.to(mels_NMF.device))[:, None, None]
        x_NDF = F.gelu(self.conv1(x_NMF * keep)) * keep
        return F.gelu(self.conv2(x_NDF)).transpose(1, 2) + self.positions[:(frames + 1) // 2]

    def forward(
        self, mels_NMF: Float[Tensor, "N M F"], lens_N: Int[Tensor, " N"] | None = None
    ) -> tuple[Float[Tensor, "N T D"], Int[Tensor, " N"]]:
        """Encode a batch of log-mels.

        Args:
            mels_NMF: zeros behind the shorter clips.
            lens_N: usable frames of each clip (Step-Audio 2: its frames minus 2); None counts all frames of all.
        Returns:
            vectors (N, T, D) with T = (F + 1) // 2 // pool, and how many of them each clip has; the rest mean nothing
            (0 where the edge is closed).
        """
        frames, device = mels_NMF.shape[-1], mels_NMF.device
        if lens_N is None:
            seen_NT, lens_N = None, torch.full(mels_NMF.shape[:1], frames, device=device)
        else:
            lens_N = lens_N.to(device)
            first = (frames + 1) % 2 if self.config.edge == "parity" else 0
            last_N1 = lens_N[:, None].clamp(min=first + 1)  # an empty clip keeps a step: no softmax over nothing
            seen_NT = torch.arange(first, frames, 2, device=device) < last_N1
        x_NTD = self.embed(mels_NMF, lens_N)
        for block in self.blocks:
            x_NTD = block(x_NTD, seen_NT)
        if self.config.pool > 1:
            x_NTD = F.avg_pool1d(x_NTD.transpose(1, 2), self.config.pool).transpose(1, 2)
        x_NTD, count_N = self.norm(x_NTD), self.lengths(lens_N)
        if self.config.edge in ("alone", "closed"):
            last_N = self.lengths(self._ends(lens_N))
            x_NTD = x_NTD * (torch.arange(x_NTD.shape[1], device=count_N.device) < last_N[:, None])[..., None]
        return x_NTD, count_N

    def _ends(self, lens_N: Tensor) -> Tensor:
        """The frame at which nothing may be left of a clip."""
        return lens_N + 2 if self.config.edge == "alone" else lens_N

    @classmethod
    def released(
        cls, stored: dict, tensors: dict[str, Tensor], path: str | Path
    ) -> tuple[AudioEncoderConfig, dict[str, Tensor]]:
        """The encoder out of a Hugging Face Whisper or Qwen2-Audio folder. Raises ValueError: another model_type."""
        return AudioEncoderConfig.from_dict(keys.encoder_config_from_official(stored)), keys.encoder_to_ours(tensors)
