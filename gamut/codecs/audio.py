"""A first speech codec: 25 tokens a second out of a log-mel, and Griffin-Lim back to sound.

Stands where Step-Audio 2 has its S3 tokenizer, flow and vocoder (ours; 250 bit/s keep spoken digits intelligible).

B batch · T samples · M mel bins · F mel frames (100 a second) · N tokens (25 a second)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gamut.codecs.griffin_lim import griffin_lim, log_mel
from gamut.io.pretrained import Plain, Pretrained
from gamut.nn.conv import ConvNeXt
from gamut.nn.quantise import FSQ

MEL_MEAN, MEL_STD = -5.0, 3.0  # of natural-log mels of speech at -24 dB; ours


@dataclass(frozen=True)
class MelCodecConfig(Plain):
    """Rates in Hz, lengths in samples, ``patch`` in mel frames; every number is ours."""

    rate: int = 8000
    mels: int = 64
    n_fft: int = 512
    win: int = 320
    hop: int = 80
    patch: int = 4
    width: int = 160
    blocks: int = 2
    levels: tuple[int, ...] = (8, 5, 5, 5)


class MelCodec(Pretrained, nn.Module):
    """Mel autoencoder around an FSQ bottleneck; decoding ends in Griffin-Lim, so it needs no vocoder."""

    Config = MelCodecConfig

    def __init__(self, config: MelCodecConfig = MelCodecConfig()):
        super().__init__()
        self.config = config
        width, patch, dims = config.width, config.patch, len(config.levels)
        self.quantise, self.rate = FSQ(config.levels), config.rate
        self.stride, self.channels, self.vocab, self.causal = (config.hop * patch,), 1, self.quantise.vocab, False

        def blocks() -> list[nn.Module]:
            return [ConvNeXt(width) for _ in range(config.blocks)]

        self.encoder = nn.Sequential(
            nn.Conv1d(config.mels, width, 5, padding=2), *blocks(),
            nn.Conv1d(width, width, patch, stride=patch), *blocks(), nn.Conv1d(width, dims, 1),
            nn.BatchNorm1d(dims))  # without it a handful of codes takes everything
        self.decoder = nn.Sequential(
            nn.Conv1d(dims, width, 1), *blocks(), nn.ConvTranspose1d(width, width, patch, stride=patch), *blocks(),
            *blocks(), nn.Conv1d(width, config.mels, 5, padding=2))

    def _spectrum(self) -> dict[str, Any]:
        return {name: getattr(self.config, name) for name in ("rate", "n_fft", "hop", "win")}

    def mel(self, wav_BT: Float[Tensor, "B T"]) -> Float[Tensor, "B M F"]:
        """Log-mel of sound at ``config.rate``, extended by silence to a whole number of tokens."""
        extra = -wav_BT.shape[-1] % self.stride[0]
        return log_mel(nn.functional.pad(wav_BT, (0, extra)), mels=self.config.mels, **self._spectrum())

    def forward(self, mel_BMF: Float[Tensor, "B M F"]) -> tuple[Float[Tensor, "B M F"], Int[Tensor, "B N"]]:
        """(reconstruction, token ids); F must be a multiple of ``config.patch``."""
        latent = self.encoder((mel_BMF - MEL_MEAN) / MEL_STD)
        codes, ids = self.quantise(latent.transpose(1, 2))
        return self._decode_codes(codes), ids

    def _decode_codes(self, codes_BND: Tensor) -> Tensor:
        return self.decoder(codes_BND.transpose(1, 2)) * MEL_STD + MEL_MEAN

    @torch.no_grad()
    def encode(self, signal: Float[Tensor, "B T"]) -> Int[Tensor, "B N"]:
        """Sound at ``config.rate`` to token ids, one per started 320 samples (at the default rates)."""
        return self.forward(self.mel(signal))[1]

    @torch.no_grad()
    def decode_mel(self, ids_BN: Int[Tensor, "B N"]) -> Float[Tensor, "B M F"]:
        return self._decode_codes(self.quantise.ids_to_codes(ids_BN))

    def distance(self, signal: Float[Tensor, "B T"]) -> float:
        """Mean distance of the log-mels of a sound and of what its tokens give back."""
        return float((self.decode_mel(self.encode(signal)) - self.mel(signal)).abs().mean())

    @torch.no_grad()
    def decode(self, latent: Int[Tensor, "B N"]) -> Float[Tensor, "B T"]:
        """Token ids to sound, ``stride[0]`` samples each."""
        return griffin_lim(self.decode_mel(latent), **self._spectrum())

    @contextmanager
    def streaming(self, batch: int = 1, chunk: int = 12) -> Iterator["MelStream"]:
        """A decoder that takes tokens as they come; see ``MelStream``."""
        yield MelStream(self, batch, chunk)


class MelStream:
    """Decodes ``chunk`` tokens at a time, each within what came before and ``AHEAD`` tokens of what follows.

    What is returned depends on ``chunk`` alone, never on how the tokens were cut into calls; lengths add up to
    the offline length. Griffin-Lim of a chunk holds the sound already sent fixed, so phases run on over the joint.
    """

    BACK, AHEAD = 12, 4  # tokens; the convolutions see 9 back, the rest is for the joint. Ours

    def __init__(self, codec: MelCodec, batch: int, chunk: int):
        if chunk < 1:
            raise ValueError(f"a stream needs chunk >= 1 token, got {chunk}")
        self.codec, self.chunk = codec, chunk
        self.ids_BN = torch.zeros(batch, 0, dtype=torch.long)
        self.wav_BT = torch.zeros(batch, 0)
        self.sent = 0  # tokens whose sound has been returned

    def decode(self, ids_BN: Int[Tensor, "B N"]) -> Float[Tensor, "B T"]:
        """Take more tokens, return the sound that is ready (often none)."""
        self.ids_BN = torch.cat([self.ids_BN, ids_BN], 1)
        ready = []
        while self.ids_BN.shape[1] - self.sent >= self.chunk + self.AHEAD:
            ready.append(self._next(self.chunk))
        return self._joined(ready)

    def flush(self) -> Float[Tensor, "B T"]:
        """The sound of the tokens still held back; the stream is then empty of them."""
        ready = []
        while self.sent < self.ids_BN.shape[1]:
            ready.append(self._next(min(self.chunk, self.ids_BN.shape[1] - self.sent)))
        return self._joined(ready)

    def _joined(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, 1) if parts else self.wav_BT[:, :0]

    @torch.no_grad()
    def _next(self, count: int) -> Tensor:
        first = max(0, self.sent - self.BACK)
        mel = self.codec.decode_mel(self.ids_BN[:, first : self.sent + count + self.AHEAD])
        hop = self.codec.stride[0]
        known = self.wav_BT[:, first * hop : self.sent * hop]
        wav = griffin_lim(mel, known=known, **self.codec._spectrum())[:, known.shape[1] :][:, : count * hop]
        self.sent += count
        self.wav_BT = torch.cat([self.wav_BT, wav], 1)
        return wav
