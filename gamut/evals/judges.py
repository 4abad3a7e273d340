"""Listeners apart from the model: what they hear in a sound, and how far they can be trusted.

T samples at 8 kHz · M mel bins · F mel frames (100 a second)
"""

import random

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gamut.codecs.mel import levelled
from gamut.data.listening import judge_mel
from gamut.data.noise import not_speech
from gamut.data.spoken import RATE, Digits
from gamut.io.fsdd import DIGITS
from gamut.io.media import resample
from gamut.models.judge import DigitJudge, best_path

SURE = 0.9  # a confidence from which the judge counts as convinced; ours


@torch.no_grad()
def hear(judge: DigitJudge, wav_T: Float[Tensor, " T"]) -> tuple[list[int], float]:
    """(digits heard, confidence in [0, 1] of the least sure one); nothing heard, or samples that are no numbers, is
    ([], 0).

    The sound is brought to one loudness and set between two tenths of a second of silence first.
    """
    if not wav_T.isfinite().all():
        return [], 0.0
    wav_T = F.pad(levelled(wav_T), (RATE // 10,) * 2)
    return best_path(judge(judge_mel(wav_T, judge.config.mels)[None])[0], blank=judge.config.classes)


def trust(judge: DigitJudge, digits: Digits, seed: int = 0) -> dict[str, float]:
    """How good the judge is on recordings it was not trained on: three shares in [0, 1].

    ``judge/accuracy``: single clips heard as exactly their digit. ``judge/fooled``: backwards clips, noise and silence
    on which it is convinced (confidence >= 0.9) of hearing any digit. ``judge/sure``: the same of real clips.
    """
    rng = random.Random(seed)
    real = [hear(judge, wav) for wav in digits.wavs]
    other = [hear(judge, not_speech(digits, rng)) for _ in digits.wavs]
    right = sum(heard == [digit] for (heard, _), digit in zip(real, digits.digits, strict=True))
    return {
        "judge/accuracy": right / len(real),
        "judge/fooled": sum(confidence >= SURE for _, confidence in other) / len(other),
        "judge/sure": sum(confidence >= SURE for _, confidence in real) / len(real),
    }


@torch.no_grad()
def who(judge: DigitJudge, wav_T: Float[Tensor, " T"]) -> tuple[str, float]:
    """(who speaks, confidence in [0, 1]) of 8 kHz sound; where nobody does, or samples are no numbers, ("", 0).

    The frames in which somebody speaks vote with their probabilities. Confidence is the winner's share of them, lowered
    where fewer than 0.16 s of the sound are anybody's.
    """
    if not wav_T.isfinite().all():
        return "", 0.0
    wav_T = F.pad(levelled(wav_T), (RATE // 10,) * 2)
    p_PC = judge(judge_mel(wav_T, judge.config.mels)[None])[0].exp()
    spoken = p_PC[:, -1] < 0.5
    if not spoken.any():
        return "", 0.0
    votes = p_PC[spoken, :-1].sum(0)
    best = int(votes.argmax())
    return judge.config.names[best], float(votes[best] / spoken.sum()) * min(1.0, int(spoken.sum()) / 8)


def trust_speakers(judge: DigitJudge, digits: Digits, seed: int = 0) -> dict[str, float]:
    """`trust` for a judge of speakers: ``speakers/accuracy``, ``speakers/fooled`` and ``speakers/sure``."""
    rng = random.Random(seed)
    real = [who(judge, wav) for wav in digits.wavs]
    other = [who(judge, not_speech(digits, rng)) for _ in digits.wavs]
    return {
        "speakers/accuracy": sum(n == m for (n, _), m in zip(real, digits.speakers, strict=True)) / len(real),
        "speakers/fooled": sum(confidence >= SURE for _, confidence in other) / len(other),
        "speakers/sure": sum(confidence >= SURE for _, confidence in real) / len(real),
    }


class Sphinx:
    """An outside opinion: pocketsphinx, told how many digits to expect. Rough (68 % of single clips), but not ours."""

    def __init__(self):
        try:
            import pocketsphinx
        except ImportError as error:
            raise ImportError("the outside judge needs pocketsphinx: pip install 'gamut[judge]'") from error
        self.decoder, self.known = pocketsphinx.Decoder(samprate=16000, loglevel="FATAL"), set[int]()

    def hear(self, wav_T: Float[Tensor, " T"], count: int) -> list[int]:
        """The likeliest string of ``count`` digits in 8 kHz sound; [] if none fits, or samples are no numbers."""
        if not wav_T.isfinite().all():
            return []
        if count not in self.known:
            words = f"( {' | '.join(DIGITS)} ) " * count
            self.decoder.add_jsgf_string(f"digits{count}", f"#JSGF V1.0; grammar digits; public <digits> = {words};")
            self.known.add(count)
        self.decoder.activate_search(f"digits{count}")
        wav = resample(F.pad(levelled(wav_T, 0.05), (RATE // 2,) * 2), RATE, 16000)
        self.decoder.start_utt()
        self.decoder.process_raw((wav.clamp(-1, 1) * 32767).short().numpy().tobytes(), full_utt=True)
        self.decoder.end_utt()
        hypothesis = self.decoder.hyp()
        return [DIGITS.index(word) for word in hypothesis.hypstr.split()] if hypothesis else []
