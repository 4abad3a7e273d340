"""The S3 speech tokenizers: the first half of a speech recogniser, cut where its vectors are made whole numbers.

    log-mel (100 a second) -> two convolutions -> 25 vectors a second -> transformer -> FSQ 3^8 (v2) or VQ (v1)

Step-Audio 2 speaks and is prompted in the tokens of version 2; Step-Audio's semantic branch is version 1. Tokens are
25 a second; they hold what is said, and little of who says it.

N clips · M mel channels · F mel frames · T tokens · D width · C coordinates of a code
Source: Step-Audio 2 fact sheet §5, Step-Audio §2.3 (repo: S3Tokenizer, model_v2.py and model.py); training
arXiv 2407.05407 §2.1 (v1), arXiv 2412.10117 §2.1 (v2).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gamut.codecs.mel import WHISPER_HOP, whisper_mel
from gamut.io.keys import s3_tokenizer as keys
from gamut.io.pretrained import Plain, Pretrained
from gamut.nn.encoder import Block, sinusoids
from gamut.nn.fsmn import Memory
from gamut.nn.quantise import FSQ, VQ
from gamut.nn.rope import Angles

WINDOW, OVERLAP = 3000, 400  # mel frames: 30 s at a time, each 4 s over the one before
AT_ONCE = 8  # windows in one batch: 2 hours of sound take the memory of four minutes
FSQ_SPREAD = 0.9990000128746033 / 2  # of the released weights: ±1 needs |tanh| above 0.5005


@dataclass(frozen=True)
class S3Config(Plain):
    """Widths are channels. The defaults are those of the released 25 Hz version 2 (fact sheet §5)."""

    called = "S3 tokenizer"
    version: int = 2  # 2: rotary positions, memory beside attention, FSQ; 1: sinusoids, VQ
    mels: int = 128
    width: int = 1280
    layers: int = 6
    heads: int = 20
    ffn: int = 5120
    levels: tuple[int, ...] = (3,) * 8  # version 2: levels of each coordinate of a code
    codebook: int = 4096  # version 1: codewords
    memory: int = 31  # version 2: taps
    positions: int = 1500  # version 1: steps of the stored table
    stride: int = 4  # mel frames per token: 4 is 25 Hz; version 1 was released with 2 as well
    norm_eps: tuple[float, ...] = (1e-6, 1e-5)  # before attention, before the feed-forward layer; version 1: 1e-5, 1e-5

    def __post_init__(self):
        if self.version not in (1, 2):
            raise ValueError(f"version of an S3 tokenizer must be 1 or 2, got {self.version}")
        if self.stride not in (2, 4):
            raise ValueError(f"stride must be 4 mel frames per token (25 Hz) or 2 (50 Hz), got {self.stride}")
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(f"heads must divide width into even parts, got width={self.width}, heads={self.heads}")


class S3Tokenizer(Pretrained, nn.Module):
    """Speech to tokens. A clip's tokens do not depend on the batch it is in."""

    Config = S3Config

    def __init__(self, config: S3Config = S3Config()):
        super().__init__()
        c = self.config = config
        self.conv1 = nn.Conv1d(c.mels, c.width, 3, stride=c.stride // 2, padding=1)
        self.conv2 = nn.Conv1d(c.width, c.width, 3, stride=2, padding=1)
        memories = [Memory(c.width, c.memory) if c.version == 2 else None for _ in range(c.layers)]
        eps = (c.norm_eps[0], c.norm_eps[1])
        self.blocks = nn.ModuleList(Block(c.width, c.heads, c.ffn, eps, memory) for memory in memories)
        if c.version == 1:
            self.positions = nn.Parameter(sinusoids(c.positions, c.width), requires_grad=False)
            self.codes = VQ(c.codebook, c.width)
        else:
            self.turn = Angles(c.width // c.heads, 1e4)
            self.project, self.codes = nn.Linear(c.width, len(c.levels)), FSQ(c.levels, FSQ_SPREAD)
        self.vocab, self.channels, self.causal = self.codes.vocab, 1, False
        self.stride = (c.stride * WHISPER_HOP,)  # samples at 16 kHz per token

    def lengths(self, lens_N: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """Tokens of a clip with so many mel frames: one per started ``config.stride`` frames."""
        return (lens_N + self.config.stride - 1) // self.config.stride

    def hidden(
        self, mels_NMF: Float[Tensor, "N M F"], lens_N: Int[Tensor, " N"] | None = None
    ) -> tuple[Float[Tensor, "N T D"], Int[Tensor, " N"]]:
        """The vectors that are to be quantised, and how many each clip has; those behind mean nothing.

        Args:
            mels_NMF: Whisper's log-mels, at most 30 s (``tokens`` takes more), anything behind the shorter clips.
            lens_N: frames of each clip; None counts all frames of all.
        Raises:
            ValueError: for another number of mel channels, no frame, or more steps than version 1 has positions.
        """
        c, device, frames = self.config, self.conv1.weight.device, mels_NMF.shape[-1]
        if mels_NMF.shape[1] != c.mels or not frames:
            raise ValueError(f"this tokenizer takes {c.mels} mel channels and at least 1 frame, got "
                             f"{mels_NMF.shape[1]} and {frames}; make them with whisper_mel(wav, {c.mels})")
        if lens_N is None:
            lens_N = torch.full(mels_NMF.shape[:1], frames, device=device)
        x, lens = mels_NMF.to(self.conv1.weight), lens_N.to(device)
        for conv in (self.conv1, self.conv2):  # nothing behind a clip's end is heard
            x = F.gelu(conv(x * _below(lens, x.shape[-1])[:, None]))
            lens = (lens - 1) // conv.stride[0] + 1
        x_NTD, steps = x.transpose(1, 2), x.shape[-1]
        if c.version == 1 and steps > len(self.positions):
            raise ValueError(f"version 1 has positions for {len(self.positions)} steps, got {steps}; use tokens()")
        turn = None
        if c.version == 1:
            x_NTD = x_NTD + self.positions[:steps]
        else:
            turn = self.turn(slice(0, steps), steps, device)
        seen_NT = _below(lens.clamp(min=1), steps)  # an empty clip keeps a step: no softmax over nothing
        for block in self.blocks:
            x_NTD = block(x_NTD, seen_NT, turn)
        return x_NTD, lens

    def quantise(
        self, hidden_NTD: Float[Tensor, "N T D"]
    ) -> tuple[Float[Tensor, "N T C"], Int[Tensor, "N T"]]:
        """(codes, ids). Codes are what the other half of a recogniser sees: in version 2 coordinates in [-1, 1], in
        version 1 the codeword; gradients pass straight through."""
        return self.codes(self.latent(hidden_NTD))

    def latent(self, hidden_NTD: Float[Tensor, "N T D"]) -> Float[Tensor, "N T C"]:
        """What is rounded (version 2) or compared with the codewords (version 1)."""
        return hidden_NTD if self.config.version == 1 else self.project(hidden_NTD).float()

    def forward(
        self, mels_NMF: Float[Tensor, "N M F"], lens_N: Int[Tensor, " N"] | None = None
    ) -> tuple[Float[Tensor, "N T C"], Int[Tensor, "N T"]]:
        """(codes, ids) of log-mels of at most 30 s; ``lengths`` says how many of them count."""
        return self.quantise(self.hidden(mels_NMF, lens_N)[0])

    @torch.no_grad()
    def tokens(
        self, mels_NMF: Float[Tensor, "N M F"], lens_N: Int[Tensor, " N"] | None = None, *, cut_tail: bool = False
    ) -> tuple[Int[Tensor, "N T"], Int[Tensor, " N"]]:
        """Token ids of log-mels of any length, and how many each clip has; zeros behind where any is over 30 s.

        A clip over 30 s is read in windows of 30 s that overlap by 4 s; at a joint each gives half of the overlap.

        Args:
            cut_tail: as releases up to 0.3.0 of the public package: where the last 4 s at most remain they open one
                more window, whose neighbour then gives up 2 s that nothing replaces.
        """
        if lens_N is None:
            lens_N = torch.full(mels_NMF.shape[:1], mels_NMF.shape[-1])
        lens = lens_N.tolist()
        if max(lens) > mels_NMF.shape[-1]:
            raise ValueError(f"a clip of {max(lens)} frames cannot lie in mels of {mels_NMF.shape[-1]}")
        if max(lens) <= WINDOW:
            return self.forward(mels_NMF, lens_N)[1], self.lengths(lens_N.to(mels_NMF.device))
        spans = [(row, *span) for row, frames in enumerate(lens) for span in windows(frames, cut_tail)]
        kept: list[list[Tensor]] = [[] for _ in lens]
        half = OVERLAP // 2 // self.config.stride
        for at in range(0, len(spans), AT_ONCE):
            batch = spans[at : at + AT_ONCE]
            cut = [mels_NMF[row, :, start:end] for row, start, end in batch]
            widest = max(1, *(mel.shape[-1] for mel in cut))
            inside = torch.tensor([mel.shape[-1] for mel in cut])
            ids_NT = self.forward(torch.stack([F.pad(mel, (0, widest - mel.shape[-1])) for mel in cut]), inside)[1]
            for i, (row, start, _) in enumerate(batch):
                ids = ids_NT[i, : int(self.lengths(inside[i : i + 1]))]
                last = at + i + 1 == len(spans) or spans[at + i + 1][0] != row
                kept[row].append(ids[half if start else 0 : len(ids) if last else max(0, len(ids) - half)])
        rows = [torch.cat(parts) for parts in kept]
        counts = torch.tensor([len(row) for row in rows], device=mels_NMF.device)
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), counts

    @torch.no_grad()
    def encode(self, signal: Float[Tensor, "B T"]) -> Int[Tensor, "B N"]:
        """Sound at 16 kHz, full scale [-1, 1], to token ids, ``stride[0]`` samples each.

        Raises:
            ValueError: for fewer than 160 samples.
        """
        mels = torch.stack([whisper_mel(wav, self.config.mels) for wav in signal])  # loudness counts by the row
        return self.tokens(mels.to(self.conv1.weight.device))[0]

    def decode(self, latent: Int[Tensor, "B N"]) -> Tensor:
        """Raises ValueError: tokens become sound in a flow and a vocoder."""
        raise ValueError("an S3 tokenizer only makes tokens; tokens become sound in two further parts, a flow "
                         "(tokens -> mel) and a HiFT vocoder (mel -> sound), which lie beside it in a codec's folder")

    def streaming(self, batch: int = 1) -> AbstractContextManager:
        """Raises ValueError, as ``decode`` does."""
        raise ValueError("an S3 tokenizer does not decode, so there is nothing to stream; stream the flow and vocoder")

    @classmethod
    def released(
        cls, stored: dict, tensors: dict[str, Tensor], path: str | Path
    ) -> tuple[S3Config, dict[str, Tensor]]:
        """The tokenizer out of a folder with the public package's names (see io/keys/s3_tokenizer.py)."""
        fields = keys.config_from_official(stored, tensors)
        return S3Config.from_dict(fields, path), keys.NAMES.to_ours(tensors)


def windows(frames: int, cut_tail: bool = False) -> Iterator[tuple[int, int]]:
    """(start, end) of the windows of a clip of so many mel frames; see ``S3Tokenizer.tokens``.

    >>> list(windows(3000)), list(windows(5300)), list(windows(5300, cut_tail=True))
    ([(0, 3000)], [(0, 3000), (2600, 5300)], [(0, 3000), (2600, 5300), (5200, 5300)])
    """
    start = 0
    while True:
        yield start, min(start + WINDOW, frames)
        start += WINDOW - OVERLAP
        if start + (0 if cut_tail and frames > WINDOW else OVERLAP) >= frames:
            return


def _below(lens_N: Tensor, steps: int) -> Tensor:
    return torch.arange(steps, device=lens_N.device) < lens_N[:, None]
