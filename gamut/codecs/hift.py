"""HiFT: mel -> sound, by sines that follow a predicted pitch, convolutions, and a short inverse Fourier transform.

The vocoder of Step-Audio 2 (24 kHz) and of Step-Audio (22.05 kHz). Source: fact sheets step_audio_2 §6.4 and step_audio
§4.3; HiFTNet (Li, Han, Mesgarani 2023).

B batch · M mel bins · F mel frames · T samples · K values of a short spectrum · W channels
"""

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gamut.codecs.mel import hann
from gamut.codecs.vocoder_mel import vocoder_mel
from gamut.io.pretrained import Plain, Pretrained
from gamut.nn.vocoder import HarmonicSource, Noise, SnakeBlock, fold, normed


@dataclass(frozen=True)
class HiFTConfig(Plain):
    """The released 24 kHz sizes; lengths in samples of the signal they are about, widths in channels."""

    called = "HiFT"

    rate: int = 24000
    mels: int = 80
    width: int = 512  # halved by each upsampling
    upsample: tuple[int, ...] = (8, 5, 3)
    kernels: tuple[int, ...] = (16, 11, 7)  # of the upsampling convolutions
    block_kernels: tuple[int, ...] = (3, 7, 11)  # of the blocks behind each, which are averaged
    source_kernels: tuple[int, ...] = (7, 7, 11)  # of the block through which the source joins each
    dilations: tuple[int, ...] = (1, 3, 5)
    n_fft: int = 16
    fft_hop: int = 4
    pitch_width: int = 512
    pitch_layers: int = 5
    harmonics: int = 8
    smooth: bool = True  # the source's phases; see nn/vocoder.py
    amplitude: float = 0.1
    breath: float = 0.003
    voiced: float = 10.0  # Hz
    slope: float = 0.1
    limit: float = 0.99
    norm: bool = True  # weights are kept as length and direction, as for training

    def __post_init__(self):
        sizes = tuple(map(len, (self.upsample, self.kernels, self.source_kernels)))
        misfits = [(r, k) for r, k in zip(self.upsample, self.kernels, strict=False) if k < r or (k - r) % 2]
        if len(set(sizes)) > 1 or misfits:
            raise ValueError(f"a HiFT needs a kernel and a source kernel for each rate of upsampling, and kernels that "
                             f"exceed their rates by an even number; got upsample={self.upsample}, "
                             f"kernels={self.kernels}, source_kernels={self.source_kernels}")

    @property
    def hop(self) -> int:
        """Samples of sound per mel frame."""
        return math.prod(self.upsample) * self.fft_hop


class PitchPredictor(nn.Module):
    """Mel -> fundamental frequency in Hz, one number a frame; near 0 where nobody sings."""

    def __init__(self, mels: int, width: int, layers: int, *, norm: bool):
        super().__init__()
        inputs = [mels] + [width] * (layers - 1)
        self.convs = nn.ModuleList(normed(nn.Conv1d(n, width, 3, padding=1), norm) for n in inputs)
        self.head = nn.Linear(width, 1)

    def forward(self, mel_BMF: Float[Tensor, "B M F"]) -> Float[Tensor, "B F"]:
        x = mel_BMF
        for conv in self.convs:
            x = F.elu(conv(x))
        return self.head(x.transpose(1, 2))[..., 0].abs()


class HiFT(Pretrained, nn.Module):
    """Log-mel (``vocoder_mel``) to sound; ``fold`` it before it only speaks."""

    Config = HiFTConfig

    def __init__(self, config: HiFTConfig = HiFTConfig()):
        super().__init__()
        self.config, c = config, config
        self.stride, self.channels, self.vocab, self.causal = (c.hop,), c.mels, None, False
        self.pitch = PitchPredictor(c.mels, c.pitch_width, c.pitch_layers, norm=c.norm)
        self.source = HarmonicSource(
            c.hop, c.rate, c.harmonics, smooth=c.smooth, amplitude=c.amplitude, breath=c.breath, voiced=c.voiced
        )
        self.pre = normed(nn.Conv1d(c.mels, c.width, 7, padding=3), c.norm)
        self.ups, self.downs = nn.ModuleList(), nn.ModuleList()
        self.source_blocks, self.blocks = nn.ModuleList(), nn.ModuleList()
        for i, (rate, kernel, source_kernel) in enumerate(zip(c.upsample, c.kernels, c.source_kernels, strict=True)):
            width, later = c.width >> i + 1, math.prod(c.upsample[i + 1 :])
            up = nn.ConvTranspose1d(2 * width, width, kernel, rate, padding=(kernel - rate) // 2)
            self.ups.append(normed(up, c.norm))
            wide = (2 * later, later, later // 2) if later > 1 else (1, 1, 0)
            self.downs.append(nn.Conv1d(c.n_fft + 2, width, *wide))
            self.source_blocks.append(SnakeBlock(width, source_kernel, c.dilations, norm=c.norm))
            same = (SnakeBlock(width, kernel, c.dilations, norm=c.norm) for kernel in c.block_kernels)
            self.blocks.append(nn.ModuleList(same))
        self.post = normed(nn.Conv1d(c.width >> len(c.upsample), c.n_fft + 2, 7, padding=3), c.norm)

    def fold(self) -> "HiFT":
        """Make the weights plain, in place: what is to be trained further is loaded anew. Returns itself."""
        fold(self)
        self.config = replace(self.config, norm=False)
        return self

    def encode(self, signal: Float[Tensor, "B T"]) -> Float[Tensor, "B M F"]:
        """The mel that ``decode`` takes, of sound at ``config.rate``; T // hop frames, at least 1. Bands end at
        8 kHz, or where the sound does. Raises ValueError for no sample."""
        rate, hop = self.config.rate, self.config.hop
        top = min(8000.0, rate / 2)
        return vocoder_mel(signal, rate=rate, n_fft=4 * hop, hop=hop, mels=self.config.mels, fmax=top)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights. Source and spectra are fp32 all the same, and so is the sound."""
        return self.pre.bias.dtype  # pyright: ignore[reportReturnType, reportOptionalMemberAccess]

    def noise(self, batch: int, frames: int, seed: int | None = 0) -> Noise:
        """Numbers for a source of so many frames: the same for each row, so that its sound does not depend on the
        batch; drawn from the global state, row by row, where ``seed`` is None."""
        length, sines = frames * self.config.hop, self.source.sines
        if seed is None:
            return Noise.draw(batch, length, sines)
        one = Noise.draw(1, length, sines, torch.Generator().manual_seed(seed))
        return Noise(*(part.expand(batch, *part.shape[1:]) for part in one))

    def forward(
        self, mel_BMF: Float[Tensor, "B M F"], source_BT: Float[Tensor, "B T"]
    ) -> Float[Tensor, "B T"]:
        """Sound of a mel and a source of F * hop samples."""
        c = self.config
        dtype = self.dtype
        window = hann(c.n_fft, source_BT.dtype, source_BT.device)
        spectrum = torch.stft(source_BT, c.n_fft, c.fft_hop, window=window, return_complex=True)
        spectrum_BKT = torch.cat([spectrum.real, spectrum.imag], 1).to(dtype)
        x, stages = cast(Any, (self.pre(mel_BMF.to(dtype)), self.blocks))
        for i, blocks in enumerate(stages):
            x = self.ups[i](F.leaky_relu(x, c.slope))
            if i == len(self.ups) - 1:
                x = F.pad(x, (1, 0), mode="reflect")  # a spectrum has a frame more than steps
            x = x + self.source_blocks[i](self.downs[i](spectrum_BKT))
            x = cast(Tensor, sum(block(x) for block in blocks) / len(blocks))
        out = self.post(F.leaky_relu(x)).float()  # 0.01 here, as released
        half = c.n_fft // 2 + 1
        spectrum = torch.polar(out[:, :half].exp().clamp(max=100), out[:, half:].sin())
        return torch.istft(spectrum, c.n_fft, c.fft_hop, window=window.float()).clamp(-c.limit, c.limit)

    @torch.no_grad()
    def decode(
        self, latent: Float[Tensor, "B M F"], noise: Noise | None = None, before: Float[Tensor, "B _"] | None = None
    ) -> Float[Tensor, "B T"]:
        """Log-mel to sound, F * hop samples in [-0.99, 0.99].

        Args:
            noise: of the source; drawn from seed 0 if None.
            before: samples that replace the beginning of the source.
        """
        return self.decode_with_source(latent, noise, before)[0]

    @torch.no_grad()
    def decode_with_source(
        self, mel_BMF: Float[Tensor, "B M F"], noise: Noise | None = None, before: Float[Tensor, "B _"] | None = None
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """``decode``, and the source it used. Raises ValueError for no frame."""
        if not mel_BMF.shape[-1]:
            raise ValueError("a vocoder needs at least 1 mel frame, got none")
        noise = noise or self.noise(len(mel_BMF), mel_BMF.shape[-1])
        source_BT = self.source(self.pitch(mel_BMF.to(self.dtype)).float(), noise)
        if before is not None:
            source_BT[:, : before.shape[-1]] = before
        return self(mel_BMF, source_BT), source_BT
