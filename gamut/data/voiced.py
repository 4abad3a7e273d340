"""Strings of digits, each by one person, as speech tokens, mels and timbre: what a flow learns from.

B rows · N tokens (25 a second) · M mel bins · T mel frames (50) · S channels of a timbre
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gamut.codecs.flow import Voice
from gamut.codecs.timbre import timbre
from gamut.codecs.vocoder_mel import mel24
from gamut.data.spoken import RATE, Digits
from gamut.io.media import resample

TOKEN = RATE // 25  # samples of a recording per token


class Voiced(NamedTuple):
    """ids (B, N) and mel (B, M, T) of the same sounds, and the timbre (B, S) of other recordings of the same people."""

    ids: Int[Tensor, "B N"]
    mel: Float[Tensor, "B M T"]
    timbre: Float[Tensor, "B S"]


def voiced(
    digits: Digits, encode: Callable[[Tensor], Tensor], size: int, tokens: int, index: int, seed: int
) -> Voiced:
    """Batch number ``index``. ``encode``: sound at 16 kHz (B, T) to token ids."""
    rng = random.Random(f"voiced {seed} {index}")
    names = sorted(set(digits.speakers))
    rows, others = [], []
    for _ in range(size):
        name = rng.choice(names)
        said = digits.say([rng.randrange(10) for _ in range(6)], rng, gap=(0.0, 0.15), speaker=name).wav
        start = rng.randrange(max(1, len(said) - tokens * TOKEN))
        piece = said[start : start + tokens * TOKEN]
        rows.append(F.pad(piece, (0, tokens * TOKEN - len(piece))))
        others.append(sample(digits, name, rng))
    wav_BT = torch.stack(rows)
    return Voiced(encode(resample(wav_BT, RATE, 16000)), mel24(resample(wav_BT, RATE, 24000)), torch.cat(others))


def sample(digits: Digits, speaker: str, rng: random.Random, count: int = 3) -> Float[Tensor, "1 S"]:
    """The timbre of ``count`` digits by one of the people."""
    said = digits.say([rng.randrange(10) for _ in range(count)], rng, vary=False, gap=(0.0, 0.1), speaker=speaker).wav
    return timbre(mel24(resample(said, RATE, 24000))[None])


def voices(digits: Digits, each: int = 20) -> dict[str, Voice]:
    """Everybody's voice, by name: the mean timbre of so many strings of digits."""
    rng = random.Random("voices")
    return {name: Voice.of(torch.cat([sample(digits, name, rng) for _ in range(each)]).mean(0))
            for name in sorted(set(digits.speakers))}  # fmt: skip


def levels(wavs: Sequence[Tensor]) -> tuple[float, float]:
    """Mean and standard deviation of the mels of recordings: what a flow takes out of them."""
    mels = torch.cat([mel24(resample(wav, RATE, 24000)) for wav in wavs], 1)
    return float(mels.mean()), float(mels.std())
