"""Short crops of recordings with their mel and pitch, for vocoders to learn on.

B batch · T samples · M mel bins · F mel frames
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gamut.codecs.mel import levelled
from gamut.codecs.pitch import pitch
from gamut.data.sources import Clip
from gamut.io.media import resample


class Crop(NamedTuple):
    """mel (B, M, F) of sound wav (B, F * hop), and the pitch f0 (B, F) in Hz, 0 where there is none."""

    mel: Tensor
    wav: Tensor
    f0: Tensor


class Crops:
    """Recordings held in memory at a vocoder's rate and one loudness, each with its pitch.

    Args:
        rate, hop: of the vocoder. mel: sound (B, T) to its mel (B, M, F).
    """

    EDGE = 4  # frames: a mel's window reaches beyond the crop it is of

    def __init__(self, clips: Sequence[Clip], rate: int, hop: int, mel: Callable[[Tensor], Tensor]):
        self.hop, self.mel = hop, mel
        self.wavs, self.f0s = [], []
        for clip in clips:
            wav = F.pad(resample(levelled(clip.wav), clip.rate, rate), (0, hop))
            self.f0s.append(pitch(wav[None], rate, hop)[0])
            self.wavs.append(wav[: len(self.f0s[-1]) * hop])
        if not self.wavs:
            raise ValueError("crops need at least one recording, got none")

    def batch(self, index: int, size: int, frames: int, seed: int = 0) -> Crop:
        """Batch number ``index``: ``size`` crops at random places and levels (-8 to +5 dB), silence around recordings
        included."""
        rng = random.Random(f"crops {seed} {index}")
        edge, rows, pitches = self.EDGE, [], []
        for _ in range(size):
            which = rng.randrange(len(self.wavs))
            wav, f0 = self.wavs[which], self.f0s[which]
            start = rng.randint(-frames // 3, max(0, len(f0) - frames * 2 // 3))
            wide = frames + 2 * edge
            before, after = max(0, edge - start), max(0, start - edge + wide - len(f0))
            first = max(0, start - edge)
            gain = 10 ** rng.uniform(-0.4, 0.25)
            piece = wav[first * self.hop : (start - edge + wide) * self.hop] * gain
            rows.append(F.pad(piece, (before * self.hop, after * self.hop)))
            pitches.append(F.pad(f0[first : start - edge + wide], (before, after))[edge : edge + frames])
        wav_BT = torch.stack(rows)
        mel = self.mel(wav_BT)[..., edge : edge + frames]
        return Crop(mel, wav_BT[:, edge * self.hop : (edge + frames) * self.hop], torch.stack(pitches))
