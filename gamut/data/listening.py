"""What judges learn from: sounds of which it is known what is said, or who, if anybody, speaks in every frame.

B sounds · M mel bins · F mel frames (100 a second) · P frames of the judge (50 a second)
"""

import random
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gamut.codecs.vocoder_mel import log_mel
from gamut.data.noise import not_speech, padded
from gamut.data.spoken import RATE, Digits, noisy

STRIDE = 160  # samples of one frame of the judge


def judge_mel(wav: Float[Tensor, "*B T"], mels: int = 64) -> Float[Tensor, "*B M F"]:
    """The log-mel that ``DigitJudge`` takes, of sound at 8 kHz."""
    return log_mel(wav, rate=RATE, n_fft=512, win=320, hop=80, mels=mels)


def digit_batch(digits: Digits, size: int, index: int, seed: int) -> tuple[Tensor, Tensor, list[list[int]]]:
    """Log-mels with bands and moments hidden, their frames after the judge's stride, and what is said, if anything."""
    rng = random.Random(f"judge {seed} {index}")
    wavs, labels = [], []
    for _ in range(size):
        if rng.random() < 0.3:
            said, wav = [], not_speech(digits, rng) * 10 ** rng.uniform(-0.25, 0.25)
        else:
            said = [rng.randrange(10) for _ in range(rng.choice((1, 1, 2, 3, 4)))]
            wav = digits.say(said, rng).wav
        wavs.append(noisy(wav, rng))
        labels.append(said)
    rows, lengths = padded(wavs, multiple=STRIDE)
    return _hidden(judge_mel(rows), rng), (lengths + STRIDE - 1) // STRIDE, labels


def _hidden(mel_BMF: Tensor, rng: random.Random) -> Tensor:
    """In half of the sounds, in place, eight bands and five frames replaced by the mean."""
    for row in mel_BMF:
        if rng.random() < 0.5:
            band, moment = rng.randrange(mel_BMF.shape[1] - 8), rng.randrange(mel_BMF.shape[2])
            row[band : band + 8], row[:, moment : moment + 5] = row.mean(), row.mean()
    return mel_BMF


def speaker_batch(
    digits: Digits, names: Sequence[str], size: int, index: int, seed: int
) -> tuple[Float[Tensor, "B M F"], Int[Tensor, "B P"]]:
    """Log-mels and who speaks in each frame: the place in ``names``, ``len(names)`` for nobody, -100 for padding.

    Speakers change from digit to digit, so that a frame must be judged by what is around it; three sounds in ten have
    no speech in them. The colour of each sound is tilted at random: a voice is more than the microphone it is known by.
    """
    rng = random.Random(f"speakers {seed} {index}")
    wavs, marks = [], []
    for _ in range(size):
        if rng.random() < 0.3:
            wavs.append(noisy(not_speech(digits, rng) * 10 ** rng.uniform(-0.25, 0.25), rng))
            marks.append(())
            continue
        said = digits.say([rng.randrange(10) for _ in range(rng.choice((1, 1, 2, 3)))], rng)
        wavs.append(noisy(_tilted(said.wav, rng), rng))
        marks.append([(a, b, names.index(who)) for (a, b), who in zip(said.spans, said.speakers, strict=True)])
    rows, lengths = padded(wavs, multiple=STRIDE)
    labels_BP = torch.full((size, rows.shape[1] // STRIDE), -100)
    for row, length, spans in zip(labels_BP, lengths.tolist(), marks, strict=True):
        row[: -(-length // STRIDE)] = len(names)
        for start, end, who in spans:
            row[start // STRIDE : -(-end // STRIDE)] = who
    return _hidden(judge_mel(rows), rng), labels_BP


def _tilted(wav: Tensor, rng: random.Random) -> Tensor:
    """Up to 6 dB more or less at the top of the band than at its bottom."""
    spectrum = torch.fft.rfft(wav)
    gain = 10 ** (torch.linspace(-0.5, 0.5, len(spectrum)) * rng.uniform(-0.3, 0.3))
    return torch.fft.irfft(spectrum * gain, len(wav))
