"""Log-mels in the HiFi-GAN manner, which flows make and vocoders turn into sound.

T samples · F frames · M mel channels
"""

import functools

from jaxtyping import Float
from torch import Tensor

from gamut.codecs.mel import filtered, stft


def vocoder_mel(
    wav: Float[Tensor, "*B T"], *, rate: int, n_fft: int, hop: int, mels: int = 80, fmin: float = 0.0,
    fmax: float | None = 8000.0,
) -> Float[Tensor, "*B M F"]:
    """Natural-log magnitude mel in the HiFi-GAN manner: mirrored by (n_fft - hop) / 2, so T // hop frames.

    Source: fact sheet §6.1 and its 22.05 kHz sibling; fixture audio_frontends.
    """
    spectrum = stft(wav, n_fft, hop, pad=(n_fft - hop) // 2)
    magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()
    return filtered(magnitude, rate, n_fft, mels, fmin, fmax).clamp(min=1e-5).log()


RATE24 = 24000  # Hz
mel24 = functools.partial(vocoder_mel, rate=RATE24, n_fft=1920, hop=480)  # 50 Hz, Step-Audio 2's flow and vocoder
mel22 = functools.partial(vocoder_mel, rate=22050, n_fft=1024, hop=256)  # Step-Audio's
