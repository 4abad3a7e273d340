"""Natural-log mels: in the HiFi-GAN manner, which flows make and vocoders turn into sound; and with centred frames.

T samples · F frames · M mel channels
"""

import functools

from jaxtyping import Float
from torch import Tensor

from gamut.codecs.mel import filtered, stft


def vocoder_mel(
    wav: Float[Tensor, "*B T"], *, rate: int, n_fft: int, hop: int, mels: int = 80, fmin: float = 0.0,
    fmax: float | None = 8000.0, win: int | None = None,
) -> Float[Tensor, "*B M F"]:
    """Natural-log magnitude mel in the HiFi-GAN manner: mirrored by (n_fft - hop) / 2, so T // hop frames; frame f is
    centred on (f + 1/2) hop.

    Raises:
        ValueError: n_fft - hop is odd, or there is no sample.
    Source: fact sheet §6.1 and its 22.05 kHz sibling; fixture audio_frontends.
    """
    if (n_fft - hop) % 2 or not wav.shape[-1]:
        raise ValueError(f"this mel needs an even n_fft - hop and at least 1 sample, got n_fft={n_fft}, hop={hop} and "
                         f"{wav.shape[-1]} samples")
    spectrum = stft(wav, n_fft, hop, win=win, pad=(n_fft - hop) // 2)
    magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()
    return filtered(magnitude, rate, n_fft, mels, fmin, fmax).clamp(min=1e-5).log()


RATE24 = 24000  # Hz
mel24 = functools.partial(vocoder_mel, rate=RATE24, n_fft=1920, hop=480)  # 50 Hz, Step-Audio 2's flow and vocoder
mel22 = functools.partial(vocoder_mel, rate=22050, n_fft=1024, hop=256)  # Step-Audio's


def log_mel(
    wav: Float[Tensor, "*B T"], *, rate: int, n_fft: int, hop: int, mels: int, win: int | None = None,
    fmin: float = 0.0, fmax: float | None = None,
) -> Float[Tensor, "*B M F"]:
    """Natural-log magnitude mel with centred frames, floored at 1e-5: the one ``griffin_lim`` undoes. Ours.

    Returns:
        T // hop frames, at least 1; frame f is centred on sample f * hop.
    Raises:
        ValueError: for sound shorter than one hop.
    """
    if wav.shape[-1] < hop:
        raise ValueError(f"a log-mel needs at least one hop of {hop} samples, got {wav.shape[-1]}")
    magnitude = stft(wav, n_fft, hop, win=win)[..., :wav.shape[-1] // hop].abs()
    return filtered(magnitude, rate, n_fft, mels, fmin, fmax).clamp(min=1e-5).log()
