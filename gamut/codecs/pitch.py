"""Fundamental frequency of a voice, by YIN (de Cheveigné and Kawahara 2002): a target for predictors of pitch.

B batch · T samples · F frames · W samples of a window · L lags
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def pitch(
    wav_BT: Float[Tensor, "B T"], rate: int, hop: int, *, low: float = 60.0, high: float = 420.0,
    dip: float = 0.15, quiet: float = 1e-3,
) -> Float[Tensor, "B F"]:
    """Hz for each frame, 0 where nothing repeats itself.

    Args:
        hop: samples per frame; frame f is centred on (f + 1/2) * hop, as in ``vocoder_mel``.
        low, high: Hz looked for. dip: how far the normalised difference must fall for voice.
        quiet: RMS of full scale below which a frame is silent.
    Returns:
        T // hop frames.
    Raises:
        ValueError: a range that the rate does not allow, or less than a frame.
    """
    if not 0 < low < high <= rate / 4:
        raise ValueError(f"pitch is looked for in 0 < low < high <= a quarter of {rate} Hz, got {low} and {high}")
    if wav_BT.shape[-1] < hop:
        raise ValueError(f"pitch is found in frames of {hop} samples, got {wav_BT.shape[-1]} samples")
    longest, shortest = int(rate / low) + 1, int(rate / high)
    span = 2 * longest
    frames = wav_BT.shape[-1] // hop
    before = span // 2 - hop // 2
    rows = F.pad(wav_BT, (max(0, before), span + hop))[:, max(0, -before) :]
    x_BFW = rows.unfold(1, span, hop)[:, :frames]
    difference_BFL, power_BF = _difference(x_BFW, longest)
    steps = torch.arange(1, longest, device=wav_BT.device)
    normal = difference_BFL[..., 1:] * steps / difference_BFL[..., 1:].cumsum(-1).clamp(min=1e-9)
    normal = F.pad(normal, (1, 0), value=1.0)
    lag_BF = _first_dip(normal, shortest, dip)
    voiced = (lag_BF > 0) & (power_BF.sqrt() > quiet)
    return torch.where(voiced, rate / lag_BF.clamp(min=1), 0.0)


def _difference(x_BFW: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Squared difference of the first ``longest`` samples and those a lag later, lags 0 .. longest - 1; mean power."""
    head = x_BFW[..., :longest]
    size = 1 << (x_BFW.shape[-1] + longest).bit_length()
    spectrum = torch.fft.rfft(x_BFW, size) * torch.fft.rfft(head, size).conj()
    together = torch.fft.irfft(spectrum, size)[..., :longest]
    energy = F.pad(x_BFW.square().cumsum(-1), (1, 0))
    later = energy[..., longest : 2 * longest] - energy[..., :longest]
    return (head.square().sum(-1, keepdim=True) + later - 2 * together).clamp(min=0), x_BFW.square().mean(-1)


def _first_dip(normal_BFL: Tensor, shortest: int, dip: float) -> Tensor:
    """The first local minimum below ``dip``, between samples by a parabola; 0 if there is none."""
    left, here, right = normal_BFL[..., :-2], normal_BFL[..., 1:-1], normal_BFL[..., 2:]
    low = (here < dip) & (here <= left) & (here < right)
    low[..., : shortest - 1] = False
    at = low.float().argmax(-1, keepdim=True)
    a, b, c = (part.gather(-1, at)[..., 0] for part in (left, here, right))
    bend = a - 2 * b + c
    shift = torch.where(bend > 1e-9, 0.5 * (a - c) / bend.clamp(min=1e-9), 0.0).clamp(-0.5, 0.5)
    return torch.where(low.any(-1), at[..., 0] + 1 + shift, 0.0)
