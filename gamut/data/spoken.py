"""Spoken numbers whose truth is known: strings of single recorded digits."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gamut.codecs.mel import levelled
from gamut.data.sources import Clip

RATE = 8000  # Hz


@dataclass(frozen=True)
class Said:
    """A string of digits as sound: wav (T,) at 8 kHz, what is said, where (samples) each digit lies, who says it."""

    wav: Tensor
    digits: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    speakers: tuple[str, ...] = ()


class Digits:
    """Recorded digits held in memory at one loudness, ready to be strung together.

    Args:
        clips: utterances of one digit each (``sources.digits``).
        speakers: keep only these; all if empty.
    """

    def __init__(self, clips: Sequence[Clip], speakers: Sequence[str] = ()):
        kept = [clip for clip in clips if not speakers or clip.speaker in speakers]
        if not kept:
            there = sorted({clip.speaker for clip in clips})
            raise ValueError(f"no clip of the speakers {list(speakers)}; there are {there}")
        self.clips, self.wavs = kept, [levelled(clip.wav) for clip in kept]
        self.digits = [int(clip.labels["digit"]) for clip in kept]
        self.speakers = [clip.speaker for clip in kept]
        self.by_digit = {d: [i for i, digit in enumerate(self.digits) if digit == d] for d in range(10)}
        self.by_voice = {(name, d): [i for i in ids if self.speakers[i] == name]
                         for name in sorted(set(self.speakers)) for d, ids in self.by_digit.items()}  # fmt: skip

    def __len__(self) -> int:
        return len(self.wavs)

    @property
    def names(self) -> list[str]:
        """Everybody who speaks."""
        return sorted(set(self.speakers))

    def keep(self, which: Sequence[int]) -> "Digits":
        """Only these recordings, by their place."""
        return Digits([self.clips[i] for i in which])

    def first(self, each: int) -> "Digits":
        """Of every digit the first ``each`` recordings."""
        return self.keep([i for ids in self.by_digit.values() for i in ids[:each]])

    def say(
        self, digits: Sequence[int], rng: random.Random, *, vary: bool = True, gap: tuple[float, float] = (0.02, 0.3),
        rest: tuple[float, float] = (0.0, 0.0), speaker: str = "",
    ) -> Said:
        """Each digit by a recording drawn at random, silence between and around.

        Args:
            vary: change speed by up to 13 % (pitch goes with it) and loudness by up to 5 dB per digit.
            gap: least and greatest silence in seconds, between digits and at the ends.
            rest: seconds of further silence before and behind.
            speaker: who says all of it; anybody, digit by digit, if empty.
        """
        ends = [torch.zeros(int(seconds * RATE)) for seconds in rest]
        parts, spans, names, at = [torch.cat((ends[0], _silence(rng, gap)))], [], [], 0
        for digit in digits:
            take = rng.choice(self.by_voice[speaker, digit] if speaker else self.by_digit[digit])
            wav = self.wavs[take]
            names.append(self.speakers[take])
            if vary:
                wav = wav * 10 ** rng.uniform(-0.25, 0.25)
                if rng.random() < 0.5:
                    wav = stretched(wav, rng.uniform(0.88, 1.14))
            at += len(parts[-1])
            spans.append((at, at + len(wav)))
            at += len(wav)
            parts += [wav, _silence(rng, gap)]
        return Said(torch.cat((*parts, ends[1])), tuple(digits), tuple(spans), tuple(names))


def _silence(rng: random.Random, seconds: tuple[float, float]) -> Tensor:
    return torch.zeros(int(rng.uniform(*seconds) * RATE))


def stretched(wav: Tensor, factor: float) -> Tensor:
    """Played slower (factor > 1) or faster, by linear interpolation."""
    return F.interpolate(wav[None, None], scale_factor=factor, mode="linear")[0, 0]


def noisy(wav: Tensor, rng: random.Random, quiet: float = -4.5, loud: float = -2.0) -> Tensor:
    """White noise of RMS 10^quiet to 10^loud added; three times in ten none. Seeded by ``rng``."""
    if rng.random() < 0.3:
        return wav
    return wav + white(len(wav), rng) * 10 ** rng.uniform(quiet, loud)


def white(length: int, rng: random.Random) -> Tensor:
    """White noise of RMS 1, seeded by ``rng``."""
    return torch.randn(length, generator=torch.Generator().manual_seed(rng.getrandbits(32)))
