"""How much of a recording is left after a codec: intelligibility and quality as measured, not judged.

T samples
"""

import torch
from jaxtyping import Float
from torch import Tensor

from gamut.evals.metrics import mel_distance
from gamut.io.media import resample

NARROW, WIDE = 8000, 16000  # Hz, the two rates PESQ is defined at
LOWEST = {"stoi": 0.0, "pesq": 1.0}
SILENT = 1e-5  # RMS of full scale up to which nothing is heard; ours


def resynthesis_scores(
    real_T: Float[Tensor, " T"], made_T: Float[Tensor, " _"], rate: int, *, band: int = WIDE
) -> tuple[dict[str, float], dict[str, str]]:
    """Scores of a made sound against the recording it should be, over the shorter length.

    ``mel_distance`` in nats (0 is equal), ``stoi`` (0 to 1, 1 is equal) and ``pesq`` (MOS-LQO, 1 to 4.64). A made sound
    of nothing, or of numbers that are none, has the lowest of both and the distance of silence.

    Args:
        band: rate in Hz that both are brought to first; 8000 where the recording holds no more (PESQ is then the
            narrow-band one), else 16000.
    Returns:
        the scores that could be computed, and for each of the others the reason why it could not.
    Raises:
        ValueError: another band, or sounds shorter than 10 ms.
    """
    if band not in (NARROW, WIDE):
        raise ValueError(f"band must be {NARROW} or {WIDE} Hz, got {band}")
    length = min(len(real_T), len(made_T))
    real, made = (resample(wav[:length].float(), rate, band) for wav in (real_T, made_T))
    if not made.isfinite().all():
        made = torch.zeros_like(made)
    scores, reasons = {"mel_distance": mel_distance(real, made, band)}, {}
    for name, score in (("stoi", _stoi), ("pesq", _pesq)):
        try:
            scores[name] = score(real, made, band)
        except ImportError:
            package = {"stoi": "pystoi"}.get(name, name)
            reasons[name] = f"needs the package {package}: pip install 'gamut[quality]'"
        except Exception as error:  # both give up on too little or too quiet speech, with exceptions of their own
            reasons[name] = f"{type(error).__name__}: {error}"
    return scores, reasons


def _stoi(real: Tensor, made: Tensor, rate: int) -> float:
    import warnings

    from pystoi import stoi

    with warnings.catch_warnings():
        if _silent(made):
            return LOWEST["stoi"]
        warnings.simplefilter("error", RuntimeWarning)  # below 0.4 s of speech it warns and returns 1e-5
        return float(stoi(real.numpy(), made.numpy(), rate, extended=False))


def _pesq(real: Tensor, made: Tensor, rate: int) -> float:
    from pesq import pesq

    if _silent(made):
        return LOWEST["pesq"]
    return float(pesq(rate, real.numpy(), made.numpy(), "nb" if rate == NARROW else "wb"))


def _silent(made: Tensor) -> bool:
    return not made.numel() or float(made.square().mean().sqrt()) <= SILENT
