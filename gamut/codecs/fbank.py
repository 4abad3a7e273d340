"""Kaldi's filterbank, which networks that tell speakers apart and streaming recognisers are fed.

T samples · F frames · M mel channels; frames x channels, as its users expect
"""

import functools

import torch
from jaxtyping import Float
from torch import Tensor

from gamut.codecs.mel import mel_filters


@functools.lru_cache(maxsize=8)
def _window(name: str, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        if name == "hamming":
            return torch.hamming_window(length, periodic=False, dtype=dtype, device=device)
        return torch.hann_window(length, periodic=False, dtype=dtype, device=device) ** 0.85


def fbank(
    wav: Float[Tensor, "*B T"], rate: int = 16000, mels: int = 80, *, centred: bool = False, window: str = "povey"
) -> Float[Tensor, "*B F M"]:
    """Kaldi's log filterbank energies without dither: 25 ms frames every 10 ms, only whole frames.

    Args:
        centred: subtract each bin's mean over time (what the CAM++ speaker network is fed).
        window: ``povey`` (Kaldi's own) or ``hamming``.
    Raises:
        ValueError: for sound shorter than one frame, or another window.
    """
    if window not in ("povey", "hamming"):
        raise ValueError(f"window must be 'povey' or 'hamming', got {window!r}")
    size, hop = rate * 25 // 1000, rate // 100
    if wav.shape[-1] < size:
        raise ValueError(f"fbank needs at least {size} samples (25 ms at {rate} Hz), got {wav.shape[-1]}")
    frames = wav.unfold(-1, size, hop)
    frames = frames - frames.mean(-1, keepdim=True)
    frames = frames - 0.97 * torch.cat([frames[..., :1], frames[..., :-1]], -1)
    n_fft = 1 << (size - 1).bit_length()
    power = torch.fft.rfft(frames * _window(window, size, wav.dtype, wav.device), n_fft).abs().square()
    filters = mel_filters(rate, n_fft, mels, 20.0, scale="kaldi", dtype=wav.dtype, device=wav.device)
    energy = (power @ filters.T).clamp(min=torch.finfo(torch.float32).eps).log()
    return energy - energy.mean(-2, keepdim=True) if centred else energy
