"""How far a made signal is from the real one: mels, spectra, and what critics say of the two.

B batch · T samples · N signals of any shape
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Stats = dict[str, Tensor]
Scores = Sequence[Tensor]  # one tensor per critic, of any shape
Features = Sequence[Sequence[Tensor]]  # per critic, what its layers hold


def mel_l1(
    made_BT: Float[Tensor, "B T"], real_BT: Float[Tensor, "B T"], mel: Callable[[Tensor], Tensor]
) -> tuple[Float[Tensor, ""], Stats]:
    """Mean absolute difference of log-mels, in nats. ``mel``: sound (B, T) to log-mel (B, M, F)."""
    loss = (mel(made_BT) - mel(real_BT)).abs().mean()
    return loss, {"mel_l1": loss.detach()}


def stft_distance(
    made_BT: Float[Tensor, "B T"], real_BT: Float[Tensor, "B T"], sizes: Sequence[int] = (512, 1024, 2048),
    floor: float = 1e-5,
) -> tuple[Float[Tensor, ""], Stats]:
    """Spectral convergence and log magnitude L1, the mean over several resolutions (Yamamoto, Song, Kim 2020).

    Convergence is that of the batch as a whole: by rows, those of silence would outweigh all others.

    Args:
        sizes: samples of the transforms, whose hop is a quarter.
        floor: magnitudes below it count as it; of full scale.
    """
    converge, magnitude = made_BT.new_zeros(()), made_BT.new_zeros(())
    for size in sizes:
        window = torch.hann_window(size, device=made_BT.device)
        scale = window.sum() / 2  # a sine of full scale has magnitude 1
        made, real = (torch.stft(wav, size, size // 4, window=window, return_complex=True) / scale
                      for wav in (made_BT, real_BT))  # fmt: skip
        made, real = ((x.real.square() + x.imag.square() + floor**2).sqrt() for x in (made, real))
        converge = converge + (real - made).norm() / real.norm() / len(sizes)
        magnitude = magnitude + (real.log() - made.log()).abs().mean() / len(sizes)
    return converge + magnitude, {"stft_converge": converge.detach(), "stft_log": magnitude.detach()}


def feature_matching(made: Features, real: Features) -> tuple[Float[Tensor, ""], Stats]:
    """L1 between what critics' layers hold of both, the mean over layers; the real one is a target without gradient."""
    gaps = [(a - b.detach()).abs().mean() for rows in zip(made, real, strict=True) for a, b in zip(*rows, strict=True)]
    loss = torch.stack(gaps).mean()
    return loss, {"features": loss.detach()}


def fool(made: Scores) -> tuple[Float[Tensor, ""], Stats]:
    """Least-squares GAN, the generator's side: critics should say 1 of what was made. Mean over critics."""
    loss = torch.stack([(1 - score).square().mean() for score in made]).mean()
    return loss, {"fool": loss.detach()}


def tell_apart(made: Scores, real: Scores) -> tuple[Float[Tensor, ""], Stats]:
    """Least-squares GAN, the critics' side: 1 of the real, 0 of the made. Mean over critics; 0.5 is guessing.

    Returns:
        loss, and stats ``told``: the share of scores on the right side of one half.
    """
    pairs = list(zip(made, real, strict=True))
    loss = torch.stack([(1 - b).square().mean() + a.square().mean() for a, b in pairs]).mean()
    told = torch.stack([((a < 0.5).float().mean() + (b > 0.5).float().mean()) / 2 for a, b in pairs]).mean()
    return loss, {"told": told.detach()}


def relative(made: Scores, real: Scores, margin: float = 0.04) -> tuple[Float[Tensor, ""], Stats]:
    """Truncated pointwise relativistic loss: where ``real`` is not above ``made`` by the median, pull it there.

    For the critics as it is; for the generator with the two swapped (ours: there both sides have one order). Each
    critic's part is at most ``margin``.
    Source: fact sheet step_audio_2 §6.5 (repo: CosyVoice, utils/losses.py).
    """
    parts = []
    for a, b in zip(made, real, strict=True):
        lead = b - a
        middle = lead.median()
        behind = lead < middle
        gap = (lead - middle).square()
        value = (gap * behind).sum() / behind.sum().clamp(min=1)
        parts.append(margin - F.relu(margin - value))
    loss = torch.stack(parts).sum()
    return loss, {"relative": loss.detach()}
