"""Griffin-Lim: sound out of a log-mel without a vocoder.

T samples · F frames · M mel channels · P samples known
"""

import functools
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gamut.codecs.mel import hann, mel_filters, stft


@functools.lru_cache(maxsize=16)
def _inverse(rate: int, n_fft: int, mels: int, fmin: float, fmax: float | None, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        filters = mel_filters(rate, n_fft, mels, fmin, fmax, dtype=torch.float64)
        return torch.linalg.pinv(filters).float().to(device)


@torch.no_grad()
def griffin_lim(
    mel: Float[Tensor, "*B M F"], *, rate: int, n_fft: int, hop: int, win: int | None = None, fmin: float = 0.0,
    fmax: float | None = None, iterations: int = 32, momentum: float = 0.99, seed: int = 0,
    known: Float[Tensor, "*B P"] | None = None,
) -> Float[Tensor, "*B T"]:
    """Sound whose ``vocoder_mel.log_mel`` (same settings) is close to ``mel``: pseudo-inverse of the filters, then fast
    Griffin-Lim (Perraudin, Balazs, Søndergaard 2013) from a seeded random phase.

    Args:
        momentum: 0 is the plain algorithm. seed: of the first phase, the same for each row, so that a row's
            sound does not depend on its batch.
        known: the first P samples, held as they are: a stream's earlier sound, so that phases run on from it.
    Returns:
        F * hop samples.
    """
    rows = mel.reshape(-1, *mel.shape[-2:]).float()
    magnitude = (_inverse(rate, n_fft, mel.shape[-2], fmin, fmax, mel.device) @ rows.exp()).clamp(min=0)
    magnitude = F.pad(magnitude, (0, 1), mode="replicate")  # the frame that log_mel drops
    draw = torch.rand(magnitude.shape[1:], generator=torch.Generator().manual_seed(seed)).to(mel.device)
    phase = torch.polar(torch.ones_like(draw), 2 * math.pi * draw).expand_as(magnitude)
    window, length = hann(win or n_fft, torch.float32, mel.device), mel.shape[-1] * hop
    before = torch.zeros_like(phase)
    for _ in range(iterations):
        wav = torch.istft(magnitude * phase, n_fft, hop, win or n_fft, window, length=length)
        if known is not None:
            wav[:, : known.shape[-1]] = known.reshape(len(wav), known.shape[-1])
        now = stft(wav, n_fft, hop, win=win)
        ahead = now + momentum * (now - before)
        phase, before = ahead / ahead.abs().clamp(min=1e-8), now
    wav = torch.istft(magnitude * phase, n_fft, hop, win or n_fft, window, length=length)
    return wav.reshape(*mel.shape[:-2], length)
