"""Log-mels made different, so that a model that learns from few people understands others. Ours, but for ``hidden``.

M mel bins · F mel frames
"""

import random

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def disguised(mel: Float[Tensor, "M F"], rng: random.Random) -> Float[Tensor, "M F"]:
    """As if said by another throat, through another microphone: nobody's voice any more."""
    gains = torch.tensor([[[rng.gauss(0, 0.1) for _ in range(5)]]])  # 0.1 of a Whisper log-mel is 4 dB
    curve_1M = F.interpolate(gains, len(mel), mode="linear", align_corners=True)[0]
    return warped(mel, rng.uniform(0.85, 1.18)) + curve_1M.T


def warped(mel: Float[Tensor, "M F"], factor: float) -> Float[Tensor, "M F"]:
    """Bin m takes what lay at m x factor: formants as of a longer (> 1: lower) or shorter vocal tract."""
    at_M = (torch.arange(len(mel)) * factor).clamp(max=len(mel) - 1)
    low_M = at_M.long()
    return torch.lerp(mel[low_M], mel[(low_M + 1).clamp(max=len(mel) - 1)], (at_M - low_M)[:, None])


def hidden(mel: Float[Tensor, "M F"], rng: random.Random) -> Float[Tensor, "M F"]:
    """Two bands and two moments of a log-mel set to its mean, as SpecAugment does (arXiv 1904.08779)."""
    mel = mel.clone()
    for _ in range(2):
        band, moment = rng.randrange(mel.shape[0] - 12), rng.randrange(max(1, mel.shape[1] - 15))
        mel[band : band + rng.randint(0, 12)], mel[:, moment : moment + rng.randint(0, 15)] = mel.mean(), mel.mean()
    return mel
