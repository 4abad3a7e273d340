"""Strings of digits for a speech tokenizer to learn on: log-mels, and what every token of them should say.

N clips · M mel channels · F mel frames (100 a second) · T tokens
"""

import random
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gamut.codecs.mel import WHISPER_HOP, WHISPER_RATE, whisper_mel
from gamut.data.noise import padded
from gamut.data.spoken import RATE, Digits, noisy
from gamut.io.media import resample


class Read(NamedTuple):
    """Log-mels, their frames, the digit each token lies in (10: none, -100: padding), and the digits in order."""

    mels: Float[Tensor, "N M F"]
    lens: Int[Tensor, " N"]
    labels: Int[Tensor, "N T"]
    said: list[list[int]]


def strings(
    digits: Digits, size: int, index: int, seed: int, *, mels: int = 80, stride: int = 4, longest: int = 3
) -> Read:
    """Batch number ``index``: strings of one to ``longest`` digits, three in ten of them without noise.

    Args:
        mels: of Whisper's log-mel. stride: its frames per token.
    """
    rng = random.Random(f"reading {seed} {index}")
    said = [digits.say([rng.randrange(10) for _ in range(rng.randint(1, longest))], rng) for _ in range(size)]
    step = stride * WHISPER_HOP * RATE // WHISPER_RATE  # samples of the recording per token
    rows, lengths = padded([noisy(one.wav, rng) for one in said], multiple=step)
    lens = lengths * WHISPER_RATE // RATE // WHISPER_HOP
    labels_NT = torch.full((size, rows.shape[1] // step), -100)
    for row, frames, one in zip(labels_NT, lens.tolist(), said, strict=True):
        row[: -(-frames // stride)] = 10
        for (start, end), digit in zip(one.spans, one.digits, strict=True):
            row[start // step : min(-(-end // step), -(-frames // stride))] = digit
    mel = torch.stack([whisper_mel(wav, mels) for wav in resample(rows, RATE, WHISPER_RATE)])
    return Read(mel, lens, labels_NT, [list(one.digits) for one in said])
