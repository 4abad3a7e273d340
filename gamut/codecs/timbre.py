"""Who is speaking, as numbers that need no training: the long-term spectrum of a recording.

Stands where the released codec has CAM++'s vector. It tells the voices of a few people apart (and their microphones).

B batch · M mel bins · F mel frames · S channels, 2 M
"""

import torch
from jaxtyping import Float
from torch import Tensor

QUIET = 4.0  # nats below the loudest frame: less is a pause and says nothing about the voice. Ours
SPREAD = 2.0  # of natural-log mels of speech; ours


def timbre(mel_BMF: Float[Tensor, "B M F"]) -> Float[Tensor, "B S"]:
    """Mean and standard deviation over time of every mel channel, over the frames in which somebody speaks.

    Loudness is taken out: the vector of a louder recording is the same.
    """
    level_BF = mel_BMF.exp().mean(1).log()
    spoken_B1F = (level_BF > level_BF.amax(1, keepdim=True) - QUIET)[:, None]
    count_B1 = spoken_B1F.sum(2)
    mel_BMF = mel_BMF - ((level_BF[:, None] * spoken_B1F).sum(2) / count_B1)[..., None]
    mean_BM = (mel_BMF * spoken_B1F).sum(2) / count_B1
    variance_BM = ((mel_BMF - mean_BM[..., None]).square() * spoken_B1F).sum(2) / count_B1
    return torch.cat([mean_BM / SPREAD, variance_BM.sqrt() / SPREAD], 1)
