"""Sound to log-mel, for every model that hears: filters, short-time spectrum, and Step-Audio 2's front-end.

T samples · F frames · K frequency bins · M mel channels · N clips
Mels are channels x frames. Other mels: vocoder_mel.py, fbank.py; the way back to sound: griffin_lim.py.
"""

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gamut.io.media import resample

WHISPER_RATE, WHISPER_HOP, WHISPER_FFT = 16000, 160, 400  # 10 ms frames
PAD = 479  # samples of silence Step-Audio 2 appends before its log-mel


@functools.lru_cache(maxsize=64)
def mel_filters(
    rate: int, n_fft: int, mels: int, fmin: float = 0.0, fmax: float | None = None, *, scale: str = "slaney",
    dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
) -> Float[Tensor, "M K"]:
    """Triangular filters on a mel scale over the n_fft // 2 + 1 bins of a real transform.

    Args:
        rate: Hz. n_fft: samples. fmin, fmax: Hz; fmax None is the Nyquist frequency.
        scale: ``slaney`` (linear below 1 kHz, triangles of equal area), ``htk`` (triangles of height 1) or ``kaldi``
            (htk's scale, triangles straight in mels, nothing at Nyquist).
    The result is cached: do not write to it.
    """
    if scale not in ("slaney", "htk", "kaldi"):
        raise ValueError(f"scale must be 'slaney', 'htk' or 'kaldi', got {scale!r}")
    top = rate / 2 if fmax is None else fmax
    if not 0 <= fmin < top <= rate / 2:
        raise ValueError(f"mel filters need 0 <= fmin < fmax <= {rate / 2:g} Hz (half the rate), got {fmin}, {fmax}")
    with torch.inference_mode(False):  # a cached inference tensor could not take part in a later backward pass
        hz_K = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * rate / n_fft
        ends = _to_mel(torch.tensor([fmin, top], dtype=torch.float64), scale)
        mel_E = torch.linspace(float(ends[0]), float(ends[1]), mels + 2, dtype=torch.float64)
        if scale == "kaldi":
            edge_E, place_K = mel_E, _to_mel(hz_K, scale)
        else:
            edge_E, place_K = _to_hz(mel_E, scale), hz_K
        low_M1, mid_M1, high_M1 = edge_E[:-2, None], edge_E[1:-1, None], edge_E[2:, None]
        rise_MK, fall_MK = (place_K - low_M1) / (mid_M1 - low_M1), (high_M1 - place_K) / (high_M1 - mid_M1)
        weight_MK = torch.minimum(rise_MK, fall_MK).clamp(min=0)
        if scale == "slaney":
            weight_MK = weight_MK * 2 / (high_M1 - low_M1)
        if scale == "kaldi":
            weight_MK[:, -1] = 0
        return weight_MK.to(device, dtype)


def _to_mel(hz: Tensor, scale: str) -> Tensor:
    if scale != "slaney":
        return 1127 * torch.log1p(hz / 700)
    return torch.where(hz < 1000, hz * 3 / 200, 15 + torch.log(hz.clamp(min=1000) / 1000) * 27 / math.log(6.4))


def _to_hz(mel: Tensor, scale: str) -> Tensor:
    if scale != "slaney":
        return 700 * torch.expm1(mel / 1127)
    return torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15).clamp(min=0) * math.log(6.4) / 27))


@functools.lru_cache(maxsize=32)
def hann(length: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, " T"]:
    """The periodic Hann window of so many samples. The result is cached: do not write to it."""
    with torch.inference_mode(False):
        return torch.hann_window(length, dtype=dtype, device=device)


def stft(
    wav: Float[Tensor, "*B T"], n_fft: int, hop: int, *, pad: int | None = None, win: int | None = None
) -> Tensor:
    """Complex spectrum (*B, K, F) under a periodic Hann window of ``win`` (default n_fft) samples.

    The sound is mirrored ``pad`` samples (default n_fft // 2: frames are centred) beyond each end;
    F = 1 + (T + 2 pad - n_fft) // hop. Sound too short to be mirrored is continued by zeros first.
    """
    pad = n_fft // 2 if pad is None else pad
    rows = wav.reshape(-1, wav.shape[-1])
    rows = F.pad(rows, (0, max(0, pad + 1 - rows.shape[-1])))
    rows = F.pad(rows, (pad, pad), mode="reflect")
    window = hann(win or n_fft, wav.dtype, wav.device)
    out = torch.stft(rows, n_fft, hop, win or n_fft, window, center=False, return_complex=True)
    return out.unflatten(0, wav.shape[:-1]) if wav.ndim > 1 else out[0]


def filtered(
    power: Float[Tensor, "*B K F"], rate: int, n_fft: int, mels: int, fmin: float = 0.0, fmax: float | None = None
) -> Float[Tensor, "*B M F"]:
    """Power or magnitude through ``mel_filters``."""
    return mel_filters(rate, n_fft, mels, fmin, fmax, dtype=power.dtype, device=power.device) @ power


def whisper_mel(wav: Float[Tensor, "*B T"], mels: int = 128, pad: int = 0) -> Float[Tensor, "*B M F"]:
    """Whisper's log-mel of 16 kHz sound: 10 ms frames, 8 orders of magnitude below each row's own maximum.

    Args:
        wav: 16 kHz, full scale [-1, 1].
        mels: 128 (Step-Audio 2, S3 tokenizer v2, Whisper large v3) or 80.
        pad: samples of silence appended first: 0 for the S3 tokenizer, 479 for Step-Audio 2.
    Returns:
        (T + pad) // 160 frames (the last frame of the centred transform is dropped), about [-1, 1.5].
    Raises:
        ValueError: if there are fewer than 160 samples.
    """
    if wav.shape[-1] + pad < WHISPER_HOP:
        raise ValueError(f"a log-mel needs at least {WHISPER_HOP} samples (10 ms at 16 kHz), got {wav.shape[-1]}")
    power = stft(F.pad(wav, (0, pad)), WHISPER_FFT, WHISPER_HOP)[..., :-1].abs().square()
    log = filtered(power, WHISPER_RATE, WHISPER_FFT, mels).clamp(min=1e-10).log10()
    return (log.maximum(log.amax((-2, -1), keepdim=True) - 8) + 4) / 4


def step_audio_2_mel(wav: Float[Tensor, "*B T"], mels: int = 128) -> Float[Tensor, "*B M F"]:
    """The Step-Audio 2 front-end: Whisper's log-mel after 479 zeros; (T + 479) // 160 frames, of which the last two
    are not counted (``patches``). Source: fact sheet §2 (repo: utils.py)."""
    return whisper_mel(wav, mels, PAD)


def hear(wav: Float[Tensor, " T"], rate: int) -> Float[Tensor, "M F"]:
    """What Step-Audio 2's encoder is given of a sound at any rate: at 16 kHz, as a log-mel."""
    return step_audio_2_mel(resample(wav, rate, WHISPER_RATE))


def pad_mels(mels: Sequence[Float[Tensor, "M _"]]) -> tuple[Float[Tensor, "N M F"], Int[Tensor, " N"]]:
    """Stack log-mels of several lengths, zeros behind the shorter ones.

    Returns:
        mels, and the usable length of each: its frames minus 2.
    """
    if not mels:
        raise ValueError("pad_mels needs at least one log-mel, got none")
    frames = max(mel.shape[-1] for mel in mels)
    stacked = torch.stack([F.pad(mel, (0, frames - mel.shape[-1])) for mel in mels])
    return stacked, torch.tensor([mel.shape[-1] - 2 for mel in mels], device=stacked.device)


def patches(frames: int) -> int:
    """How many ``<audio_patch>`` positions a log-mel of so many frames takes (12.5 a second).

    Two frames are not counted, then two convolutions of stride 2 and a pooling of 2; sound under 21 ms takes none.
    Source: fact sheet §2 (repo: utils.py, compute_token_num).

    >>> [patches((round(s * 16000) + 479) // 160) for s in (0.08, 1, 25)]
    [1, 13, 313]
    """
    encoded = (frames - 2 + 1) // 2 // 2
    return (encoded - 1) // 2 + 1


def levelled(wav: Float[Tensor, " T"], level: float = 0.06) -> Float[Tensor, " T"]:
    """The sound at one RMS (0.06 is -24 dB of full scale); silence stays silence."""
    rms = wav.square().mean().sqrt() if wav.numel() else wav.new_zeros(())
    return wav * (level / rms) if rms > 1e-5 else wav
