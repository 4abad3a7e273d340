"""How much silence lies around what is said, and what the microphone let through. Ours.

T samples
"""

import random

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gamut.data.spoken import white
from gamut.io.media import resample

Span = tuple[float, float]  # seconds, from and to
Rest = tuple[float, float]  # seconds, before and behind
CLOSE: Span = (0.02, 0.3)  # between digits that follow upon one another
APART: Span = (0.1, 1.0)  # between digits that are said one by one
AROUND = 1.5  # seconds at most, before and behind
NONE: Rest = (0.0, 0.0)
NARROW, WIDE = 8000, 16000  # Hz: a telephone's, and all that is listened to


def silences(rng: random.Random) -> tuple[Span, Rest]:
    """Silence between digits and around them, of a recording to learn from: a third is said one by one, half of them
    have rest around."""
    rest = (rng.uniform(0, AROUND), rng.uniform(0, AROUND)) if rng.random() < 0.5 else NONE
    return APART if rng.random() < 1 / 3 else CLOSE, rest


def rested(wav_T: Float[Tensor, " T"], rate: int, rest: Rest) -> Float[Tensor, " U"]:
    """With so much silence before and behind."""
    return F.pad(wav_T, (int(rest[0] * rate), int(rest[1] * rate)))


def microphone(wav_T: Float[Tensor, " T"], rate: int, rng: random.Random) -> tuple[Float[Tensor, " U"], int]:
    """(sound, rate) as another microphone would have it, four times in ten: what a narrow recording lacks is put in,
    what a wide one has above 4 kHz is left out. A model that hears digits narrow and orders wide alone would tell by
    the band what it is asked."""
    if rate not in (NARROW, WIDE) or rng.random() < 0.6:
        return wav_T, rate
    return (widened(wav_T, rng), WIDE) if rate == NARROW else (resample(wav_T, WIDE, NARROW), NARROW)


def widened(wav_T: Float[Tensor, " T"], rng: random.Random) -> Float[Tensor, " U"]:
    """8 kHz sound at 16 kHz, with a band above 4 kHz that follows its loudness, 10 to 35 dB below it: harmonics of a
    rectifier, or noise."""
    wav_T = resample(wav_T, NARROW, WIDE)
    loud_T = wav_T.abs()
    bright_T = loud_T * white(len(loud_T), rng) if rng.random() < 0.5 else loud_T
    bright_T = bright_T - resample(resample(bright_T, WIDE, NARROW), NARROW, WIDE)[: len(bright_T)]
    level = wav_T.square().mean().sqrt() / bright_T.square().mean().sqrt().clamp(min=1e-9)
    return wav_T + bright_T * level * 10 ** (rng.uniform(-35, -10) / 20)
