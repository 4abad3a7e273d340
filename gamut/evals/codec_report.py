"""What a codec loses at each of its parts, whether it speaks in the voice it is asked for, and how it sounds.

T samples at 8 kHz
"""

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gamut.codecs.flow import Flow, Voice
from gamut.codecs.griffin_lim import griffin_lim
from gamut.codecs.hift import HiFT
from gamut.codecs.mel import WHISPER_RATE
from gamut.codecs.s3_tokenizer import S3Tokenizer
from gamut.codecs.token2wav import Token2Wav
from gamut.codecs.vocoder_mel import RATE24
from gamut.data.spoken import RATE, Digits
from gamut.data.voiced import speech_mel, voices, whole
from gamut.evals.audio import resynthesis_scores
from gamut.evals.judges import hear, who
from gamut.io.media import resample
from gamut.io.report import Audio, Card, Columns, Heading, Mel
from gamut.models.judge import DigitJudge

HOP = 480  # samples at 24 kHz of a mel frame
AT_ONCE = 30  # recordings in one batch of the flow


def assembled(flow: Flow, hift: HiFT, digits: Digits) -> Token2Wav:
    """Both halves as one decoder, with the voices of ``digits``."""
    return Token2Wav.of(flow, hift, voices(digits))


def tokens(tokenizer: S3Tokenizer, wav_T: Tensor) -> Tensor:
    return tokenizer.encode(resample(whole(wav_T), RATE, WHISPER_RATE)[None])


def through(tokenizer: S3Tokenizer, codec: Token2Wav, wav_T: Tensor, voice: Voice | str) -> Tensor:
    """Sound to tokens and back, in another voice if so asked."""
    return resample(codec.decode(tokens(tokenizer, wav_T), voice)[0], codec.rate, RATE)


def at_every_cut(
    judge: DigitJudge, tokenizer: S3Tokenizer, codec: Token2Wav, digits: Digits
) -> dict[str, float]:
    """Shares of held-out recordings heard right after each part, and how near their sound stays to the recording.

    ``recorded``: as they are; ``vocoder``: mel and back; ``flow``: tokens, flow, Griffin-Lim; ``chain``: tokens, flow,
    vocoder, in the speaker's own voice. STOI and PESQ (narrow band) where installed, as means over the recordings that
    they can score, whose number stands beside them (``chain/stoi_of``): many digits are too short.
    """
    ids = [tokens(tokenizer, wav)[0] for wav in digits.wavs]
    mels = []
    for at in range(0, len(ids), AT_ONCE):
        mels += codec.flow.mels(ids[at : at + AT_ONCE], [codec.chosen(n) for n in digits.speakers[at : at + AT_ONCE]])
    ways: dict[str, Callable[[int], Tensor]] = {
        "recorded": lambda i: digits.wavs[i],
        "vocoder": lambda i: _vocoded(codec, speech_mel(whole(digits.wavs[i]))),
        "flow": lambda i: resample(without_vocoder(mels[i]), RATE24, RATE),
        "chain": lambda i: _vocoded(codec, mels[i]),
    }
    out = {"tokens/used": float(len(torch.cat(ids).unique()))}
    for way, make in ways.items():
        right, near = 0, {"mel_distance": [], "stoi": [], "pesq": []}
        for i, (wav, digit) in enumerate(zip(digits.wavs, digits.digits, strict=True)):
            sound = make(i)
            right += hear(judge, sound)[0] == [digit]
            for score, value in [] if way == "recorded" else _near(wav, sound):
                near[score].append(value)
        out[f"{way}/accuracy"] = right / len(digits)
        for score, values in near.items():
            out |= {f"{way}/{score}": sum(values) / len(values)} if values else {}
            out |= {f"{way}/{score}_of": float(len(values))} if values and score != "mel_distance" else {}
    return out


def without_vocoder(mel_MF: Tensor) -> Tensor:
    """Griffin-Lim's sound of a mel at 24 kHz. Frames of this mel lie half a hop later than those that Griffin-Lim
    takes (``vocoder_mel`` and ``log_mel``), so the sound is brought there."""
    return F.pad(griffin_lim(mel_MF, rate=RATE24, n_fft=4 * HOP, hop=HOP, fmax=8000.0), (HOP // 2, -HOP // 2))


def _vocoded(codec: Token2Wav, mel_MF: Tensor) -> Tensor:
    return resample(codec.hift.decode(mel_MF[None])[0], codec.rate, RATE)


def _near(wav: Tensor, sound: Tensor) -> list[tuple[str, float]]:
    return list(resynthesis_scores(wav, sound, RATE, band=RATE)[0].items())


def switched(
    judge: DigitJudge, ear: DigitJudge, tokenizer: S3Tokenizer, codec: Token2Wav, digits: Digits, each: int = 20,
    seed: int = 0,
) -> dict[str, float]:
    """Strings of digits by one person, spoken again in each other person's voice.

    ``switched/voice``: the asked-for person is recognised; ``switched/digits``: what is said is still heard right;
    ``switched/voice/both``: both at once; ``switched/before``: the share that the original recording already scores;
    ``switched/chance``: one in so many.
    """
    rng = random.Random(f"switched {seed}")
    names = sorted(codec.voices)
    hits, kept, both, before, count = 0, 0, 0, 0, 0
    for target in names:
        for _ in range(each):
            name, said = rng.choice([n for n in names if n != target]), [rng.randrange(10) for _ in range(3)]
            wav = digits.say(said, rng, vary=False, speaker=name).wav
            again = through(tokenizer, codec, wav, target)
            known, heard = who(ear, again)[0] == target, hear(judge, again)[0] == said
            hits, kept, both = hits + known, kept + heard, both + (known and heard)
            before += who(ear, wav)[0] == target
            count += 1
    return {"switched/voice": hits / count, "switched/digits": kept / count, "switched/voice/both": both / count,
            "switched/before": before / count, "switched/chance": 1 / len(names)}  # fmt: skip


def listen(tokenizer: S3Tokenizer, codec: Token2Wav, digits: Digits, count: int = 6) -> list:
    """Blocks of the report: recordings drawn evenly, after each part, and in somebody else's voice."""
    cards, names = [], sorted(codec.voices)
    for i in range(0, len(digits), max(1, len(digits) // count)):
        wav, name = digits.wavs[i], digits.speakers[i]
        other = names[(names.index(name) + 1) % len(names)]
        sounds = {"recorded": wav, f"tokens, flow, vocoder, as {name}": through(tokenizer, codec, wav, name),
                  f"the same as {other}": through(tokenizer, codec, wav, other)}  # fmt: skip
        blocks = []
        for title, sound in sounds.items():
            blocks += [Audio(title, sound, RATE), Mel("", speech_mel(sound), len(sound) / RATE)]
        cards.append(Card(f"{digits.digits[i]}, {name}", blocks))
    return [Heading("Listen", "Held-out recordings, drawn evenly."), Columns(cards)]
