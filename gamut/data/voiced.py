"""Strings of digits, each by one person, as speech tokens, mels and timbre: what a flow learns from.

B rows · N tokens (25 a second) · M mel bins · T mel frames (50) · S channels of a timbre
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gamut.codecs.flow import Voice
from gamut.codecs.mel import WHISPER_RATE, whisper_mel
from gamut.codecs.s3_tokenizer import S3Tokenizer
from gamut.codecs.timbre import timbre
from gamut.codecs.vocoder_mel import RATE24, mel24
from gamut.data.disguise import warped
from gamut.data.spoken import RATE, Digits
from gamut.io.media import resample

TOKEN = RATE // 25  # samples of a recording per token
WARP = (0.86, 1.16)  # of the bands that a tokenizer hears in `varied`; ours


class Voiced(NamedTuple):
    """ids (B, N) and mel (B, M, T) of the same sounds, so many tokens of each row (B,), and the timbre (B, S) of other
    recordings of the same people."""

    ids: Int[Tensor, "B N"]
    mel: Float[Tensor, "B M T"]
    timbre: Float[Tensor, "B S"]
    counts: Int[Tensor, " B"]


def whole(wav_T: Float[Tensor, " T"]) -> Float[Tensor, " _"]:
    """Silence added to a whole number of tokens."""
    return F.pad(wav_T, (0, -len(wav_T) % TOKEN))


def speech_mel(wav_T: Float[Tensor, "*B T"]) -> Float[Tensor, "*B M F"]:
    """Of a recording, the mel that flow and vocoder know: two frames a token."""
    return mel24(resample(wav_T, RATE, RATE24))


def voiced(
    digits: Digits, encode: Callable[[Tensor], Tensor], size: int, tokens: int, index: int, seed: int
) -> Voiced:
    """Batch number ``index``: pieces of ``tokens`` tokens out of longer strings. ``encode``: sound at 16 kHz (B, T) to
    token ids."""
    rng = random.Random(f"voiced {seed} {index}")
    names = digits.names
    rows, others = [], []
    for _ in range(size):
        name = rng.choice(names)
        said = digits.say([rng.randrange(10) for _ in range(6)], rng, gap=(0.0, 0.15), speaker=name).wav
        start = rng.randrange(max(1, len(said) - tokens * TOKEN))
        piece = said[start : start + tokens * TOKEN]
        rows.append(F.pad(piece, (0, tokens * TOKEN - len(piece))))
        others.append(sample(digits, name, rng))
    wav_BT = torch.stack(rows)
    ids = encode(resample(wav_BT, RATE, WHISPER_RATE))
    return Voiced(ids, speech_mel(wav_BT), torch.cat(others), torch.full((size,), tokens))


def varied(
    digits: Digits, tokenizer: S3Tokenizer, timbres: Mapping[str, Float[Tensor, "_ S"]], size: int, tokens: int,
    index: int, seed: int,
) -> Voiced:
    """Batch number ``index``: whole strings of one to six digits, cut at ``tokens`` tokens; the shorter, the more rows.

    In half of the rows the tokenizer hears the bands of the mel moved up or down, as if somebody else spoke
    (vocal-tract perturbation): who speaks must be taken from the timbre, not from the tokens.

    Args:
        timbres: of everybody, see ``timbres``; a row's is the mean of one to twenty of them.
    """
    rng = random.Random(f"varied {seed} {index}")
    count, widest = rng.choice((1, 1, 2, 3, 5)), rng.choice((0.0, 0.15, 0.3))
    heard, mels, others = [], [], []
    for _ in range(size * max(1, 4 - count)):
        name = rng.choice(sorted(timbres))
        said = digits.say([rng.randrange(10) for _ in range(count)], rng, gap=(0.0, widest), speaker=name).wav
        start = rng.randrange(max(1, len(said) - tokens * TOKEN))
        wav = whole(said[start : start + tokens * TOKEN])
        mel = whisper_mel(resample(wav, RATE, WHISPER_RATE), tokenizer.config.mels)
        heard.append((warped(mel, rng.uniform(*WARP)) if rng.random() < 0.5 else mel).T)
        mels.append(speech_mel(wav).T)
        some = rng.sample(range(len(timbres[name])), min(len(timbres[name]), rng.choice((1, 3, 10, 20))))
        others.append(timbres[name][some].mean(0))
    lens = torch.tensor([len(mel) for mel in heard])
    ids, counts = tokenizer.tokens(pad_sequence(heard, batch_first=True).transpose(1, 2), lens)
    return Voiced(ids, pad_sequence(mels, batch_first=True).transpose(1, 2), torch.stack(others), counts)


def sample(digits: Digits, speaker: str, rng: random.Random, count: int = 3) -> Float[Tensor, "1 S"]:
    """The timbre of ``count`` digits by one of the people."""
    said = digits.say([rng.randrange(10) for _ in range(count)], rng, vary=False, gap=(0.0, 0.1), speaker=speaker).wav
    return timbre(speech_mel(said)[None])


def timbres(digits: Digits, each: int = 20) -> dict[str, Float[Tensor, "_ S"]]:
    """Everybody's timbre in so many strings of digits, by name."""
    rng = random.Random("voices")
    return {name: torch.cat([sample(digits, name, rng) for _ in range(each)])
            for name in digits.names}  # fmt: skip


def voices(digits: Digits, each: int = 20, apart: float = 0.25) -> dict[str, Voice]:
    """Everybody's voice, by name: the mean timbre of so many strings of digits, by ``apart`` of its distance further
    from everybody's mean than it is. A small flow and vocoder bring voices nearer to each other; this undoes it (ours).
    """
    own = {name: rows.mean(0) for name, rows in timbres(digits, each).items()}
    mean = torch.stack(list(own.values())).mean(0)
    return {name: Voice.of(vector + apart * (vector - mean)) for name, vector in own.items()}


def levels(wavs: Sequence[Tensor]) -> tuple[float, float]:
    """Mean and standard deviation of the mels of recordings: what a flow takes out of them."""
    mels = torch.cat([speech_mel(wav) for wav in wavs], 1)
    return float(mels.mean()), float(mels.std())
