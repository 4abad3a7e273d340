"""Step-Audio's linguistic tokens: what a streaming recogniser's encoder makes of speech, by the nearest centroid.

    fbank (100 a second) -> 7 frames side by side, every 6th (16.7 a second) -> SAN-M encoder in chunks -> centroids

One token per 60 ms, in chunks of 240 ms that wait for no later sound.

B streams · T samples · F fbank frames · N tokens · I input width · D width
Source: Step-Audio fact sheet §2.2 (repo: tokenizer.py, funasr_detach WavFrontendOnline and SANMEncoderChunkOpt).
"""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gamut.codecs.fbank import fbank
from gamut.io.keys import linguistic as keys
from gamut.io.pretrained import Plain, Pretrained
from gamut.nn.sanm import EPS, Block, Kept

RATE, SIZE, HOP = 16000, 400, 160  # 25 ms frames every 10 ms
STEP = 960  # samples per token
LEAST = 480  # samples at the end that are still read, as released
SCALE = 1 << 15  # the recogniser was trained on 16-bit samples as they are


@dataclass(frozen=True)
class LinguisticConfig(Plain):
    """Widths are channels. Defaults: the template of the released recogniser (fact sheet §2.2; inferred)."""

    called = "linguistic tokenizer"
    mels: int = 80
    side: int = 7  # fbank frames side by side
    skip: int = 6  # fbank frames from one stack to the next
    width: int = 512
    heads: int = 4
    ffn: int = 2048
    layers: int = 50
    taps: int = 11  # of the memory
    shift: int = 0  # steps the memory is moved into the past
    chunk: tuple[int, int, int] = (0, 4, 5)  # steps seen again before, steps at a time, steps seen again after
    look_back: int = 4  # chunks; -1: all
    centroids: int = 1024

    def __post_init__(self):
        before, at_once, after = self.chunk
        if at_once < 1 or after < 1 or before < 0 or self.look_back < -1 or self.layers < 1:
            raise ValueError(f"chunk needs (>= 0, >= 1, >= 1) steps, look_back >= -1 chunks and layers >= 1; got "
                             f"chunk={self.chunk}, look_back={self.look_back}, layers={self.layers}")


class LinguisticTokenizer(Pretrained, nn.Module):
    """Speech to linguistic tokens, whole or as it comes (``stream``)."""

    Config = LinguisticConfig
    shift: Tensor
    scale: Tensor
    centroids: Tensor

    def __init__(self, config: LinguisticConfig = LinguisticConfig()):
        super().__init__()
        c = self.config = config
        given = c.mels * c.side
        self.first = Block(given, c.width, c.heads, c.ffn, c.taps, c.shift)
        self.blocks = nn.ModuleList(
            Block(c.width, c.width, c.heads, c.ffn, c.taps, c.shift) for _ in range(c.layers - 1))
        self.norm = nn.LayerNorm(c.width, EPS)
        self.register_buffer("shift", torch.zeros(given))  # added to, and
        self.register_buffer("scale", torch.ones(given))  # multiplied with, the stacked features
        self.register_buffer("centroids", torch.randn(c.centroids, c.width))
        self.stride, self.channels, self.vocab, self.causal = (STEP,), 1, c.centroids, False

    def nearest(self, encoded_BND: Float[Tensor, "B N D"]) -> Int[Tensor, "B N"]:
        """The number of the centroid that lies nearest."""
        return torch.cdist(encoded_BND.float(), self.centroids.float()[None]).argmin(-1)

    @torch.no_grad()
    def encode(self, signal: Float[Tensor, "B T"]) -> Int[Tensor, "B N"]:
        """Sound at 16 kHz, full scale [-1, 1], to token ids; an end of less than 55 ms may be dropped."""
        stream = self.stream(len(signal))
        return torch.cat([stream.encode(signal), stream.flush()], 1)

    def stream(self, batch: int = 1) -> "LinguisticStream":
        """A tokenizer of ``batch`` sounds that takes them piece by piece."""
        return LinguisticStream(self, batch)

    def decode(self, latent: Int[Tensor, "B N"]) -> Tensor:
        """Raises ValueError: tokens become sound in a flow and a vocoder."""
        raise ValueError("a linguistic tokenizer only makes tokens; woven with semantic ones they become sound in two "
                         "further parts, a flow (tokens -> mel) and a HiFT vocoder (mel -> sound)")

    def streaming(self, batch: int = 1) -> AbstractContextManager:
        """Raises ValueError, as ``decode`` does."""
        raise ValueError("a linguistic tokenizer does not decode; to feed it sound piece by piece use stream(batch)")

    @classmethod
    def released(
        cls, stored: dict, tensors: dict[str, Tensor], path: str | Path
    ) -> tuple[LinguisticConfig, dict[str, Tensor]]:
        """From the recogniser's encoder and its front-end's config (see io/keys/linguistic.py)."""
        fields = keys.config_from_official(stored, tensors)
        return LinguisticConfig.from_dict(fields, path), keys.to_ours(tensors)


class LinguisticStream:
    """Sounds as they come in. What is returned never depends on how they were cut into calls.

    ``features`` and ``encoded`` keep what was made on the way when ``keep`` is set (for comparisons).
    """

    def __init__(self, tokenizer: LinguisticTokenizer, batch: int = 1, keep: bool = False):
        self.tokenizer, self.keep = tokenizer, keep
        self.features: list[Tensor] = []
        self.encoded: list[Tensor] = []
        self._begin(torch.zeros(batch, 0, device=tokenizer.centroids.device))

    def _begin(self, nothing_BT: Tensor) -> None:
        c = self.tokenizer.config
        self.wav_BT = self.heard_BT = nothing_BT  # not yet a chunk; of chunks, not yet a frame
        self.frames_BFM: Tensor | None = None  # not yet stacked
        self.seen_BNI = self.tokenizer.norm.weight.new_zeros(len(nothing_BT), c.chunk[0] + c.chunk[2], c.mels * c.side)
        self.kept: list[Kept | None] = [None] * c.layers
        self.step = 0

    @torch.no_grad()
    def encode(self, wav_BT: Float[Tensor, "B T"]) -> Int[Tensor, "B N"]:
        """Take more sound at 16 kHz, return the tokens of the chunks that it completes (often none)."""
        self.wav_BT = torch.cat([self.wav_BT, wav_BT.to(self.wav_BT)], 1)
        size, made = self.tokenizer.config.chunk[1] * STEP, []
        while self.wav_BT.shape[1] >= size:
            chunk, self.wav_BT = self.wav_BT[:, :size], self.wav_BT[:, size:]
            made.append(self._tokens(chunk, last=False))
        return torch.cat(made, 1) if made else self._none()

    @torch.no_grad()
    def flush(self) -> Int[Tensor, "B N"]:
        """The tokens of the last, unfinished chunk. Sound that ends with a whole chunk, or by less than 480 samples
        behind one, has none, as released. The stream then begins anew."""
        rest = self._tokens(self.wav_BT, last=True) if self.wav_BT.shape[1] >= LEAST else self._none()
        self._begin(self.wav_BT[:, :0])
        return rest

    def _none(self) -> Tensor:
        return self.wav_BT.new_zeros(len(self.wav_BT), 0, dtype=torch.long)

    def _tokens(self, chunk_BT: Tensor, last: bool) -> Tensor:
        stacked = self._stacked(chunk_BT, last)
        if stacked is None or not stacked.shape[1]:
            return self._none()
        features = (stacked + self.tokenizer.shift.float()) * self.tokenizer.scale.float()
        encoded = self._encoded(features)
        if self.keep:
            self.features.append(features)
            self.encoded.append(encoded)
        return self.tokenizer.nearest(encoded)

    def _stacked(self, chunk_BT: Tensor, last: bool) -> Tensor | None:
        """Frames of the chunk, laid side by side; what does not fill a stack waits for the next chunk."""
        c = self.tokenizer.config
        heard = torch.cat([self.heard_BT, chunk_BT], 1)
        count = max(0, (heard.shape[1] - SIZE) // HOP + 1)
        self.heard_BT = heard[:, count * HOP :]
        if count:
            new = fbank(heard[:, : (count - 1) * HOP + SIZE] * SCALE, RATE, c.mels, window="hamming")
            if self.frames_BFM is None:
                self.frames_BFM = new[:, :1].repeat(1, (c.side - 1) // 2, 1)
            self.frames_BFM = torch.cat([self.frames_BFM, new], 1)
            if self.frames_BFM.shape[1] < c.side:  # dropped at the end of the sound, as released
                return None
        elif self.frames_BFM is None or not last:
            return None
        frames, stacks = self.frames_BFM, []
        total = frames.shape[1]
        for start in range(0, max(0, total - (c.side - 1) // 2), c.skip):
            stack = frames[:, start : start + c.side]
            if stack.shape[1] < c.side:
                if not last:
                    break
                stack = torch.cat([stack, frames[:, -1:].expand(-1, c.side - stack.shape[1], -1)], 1)
            stacks.append(stack.flatten(1))
        self.frames_BFM = frames[:, min(total - 1, len(stacks) * c.skip) :]
        return torch.stack(stacks, 1) if stacks else None

    def _encoded(self, features_BNI: Float[Tensor, "B N I"]) -> Float[Tensor, "B N D"]:
        net, c, new = self.tokenizer, self.tokenizer.config, features_BNI.shape[1]
        at = positions(self.step + 1, new, features_BNI.shape[2])  # counted from 1
        given = features_BNI * math.sqrt(c.width) + at.to(features_BNI)
        self.step += new
        x = torch.cat([self.seen_BNI, given.to(self.seen_BNI)], 1)
        self.seen_BNI = x[:, -self.seen_BNI.shape[1] :]
        keep = None if c.look_back < 0 else c.look_back * c.chunk[1]
        for i, block in enumerate([net.first, *net.blocks]):
            x, self.kept[i] = block(x, self.kept[i], c.chunk[2], keep)
        return net.norm(x)[:, -new:]


def positions(first: int, count: int, width: int) -> Float[Tensor, "T D"]:
    """Sines, then cosines, of ``count`` positions from ``first``; periods of 2π to 2π · 10⁴ steps."""
    rate = torch.exp(-torch.arange(width // 2) * (math.log(1e4) / (width / 2 - 1)))
    angle = torch.arange(first, first + count)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], 1)
