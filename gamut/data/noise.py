"""What is around speech and must not be taken for it: noise, backwards recordings, silence behind shorter sounds."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from gamut.data.spoken import RATE, Digits, white


def not_speech(digits: Digits, rng: random.Random) -> Tensor:
    """Sound that says nothing: a recording played backwards, silence, white or coloured noise, steady or pulsing."""
    kind = rng.random()
    if kind < 0.5:
        return rng.choice(digits.wavs).flip(0)
    length = int(rng.uniform(0.3, 1.2) * RATE)
    if kind < 0.6:
        return torch.zeros(length)
    spectrum = torch.fft.rfft(white(length, rng))
    colour = torch.linspace(1e-2, 1, len(spectrum)) ** rng.uniform(-1, 1)
    wav = torch.fft.irfft(spectrum * colour, length)
    if kind > 0.85:
        wav = wav * torch.linspace(0, rng.uniform(3, 30), length).sin().abs()
    return wav / wav.std() * 10 ** rng.uniform(-3, -0.8)


def padded(wavs: Sequence[Tensor], multiple: int = 1) -> tuple[Tensor, Tensor]:
    """Sounds stacked with silence behind them, to a multiple of samples: (B, T) and their own lengths (B,)."""
    lengths = torch.tensor([len(wav) for wav in wavs])
    rows = torch.zeros(len(wavs), -(-int(lengths.max()) // multiple) * multiple)
    for row, wav in zip(rows, wavs, strict=True):
        row[: len(wav)] = wav
    return rows, lengths
