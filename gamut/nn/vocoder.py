"""Pieces of a neural vocoder: weight norm, snake blocks, and sines that follow a pitch.

B batch · W channels · F frames · T samples or steps · H sines (the fundamental and its overtones)
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

M = TypeVar("M", bound=nn.Module)


def normed(conv: M, on: bool = True) -> M:
    """The convolution with its weight as length (axis 0) times direction, where ``on``."""
    return weight_norm(conv) if on else conv  # pyright: ignore[reportReturnType]  (the same module)


def fold(module: nn.Module) -> None:
    """Turn every normed weight below ``module`` into a plain one: equal outputs, no norm to compute in each call."""
    for part in module.modules():
        if parametrize.is_parametrized(part, "weight"):
            kind = type(part)  # torch made it for this part, but deep copies share it and would lose their weight too
            part.__class__ = type(kind.__name__, kind.__bases__, dict(kind.__dict__))
            parametrize.remove_parametrizations(part, "weight")


class Snake(nn.Module):
    """x + sin²(a x) / a with an a for each channel (Ziyin et al. 2020): a nonlinearity with a period."""

    def __init__(self, width: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(width))

    def forward(self, x_BWT: Float[Tensor, "B W T"]) -> Float[Tensor, "B W T"]:
        alpha = self.alpha[:, None]
        return x_BWT + (x_BWT * alpha).sin().square() / (alpha + 1e-9)


class SnakeUnit(nn.Module):
    """Snake, dilated convolution, snake, convolution; added to the input."""

    def __init__(self, width: int, kernel: int, dilation: int, *, norm: bool):
        super().__init__()
        pad = (kernel - 1) // 2
        self.snake1, self.snake2 = Snake(width), Snake(width)
        self.conv1 = normed(nn.Conv1d(width, width, kernel, dilation=dilation, padding=pad * dilation), norm)
        self.conv2 = normed(nn.Conv1d(width, width, kernel, padding=pad), norm)

    def forward(self, x_BWT: Float[Tensor, "B W T"]) -> Float[Tensor, "B W T"]:
        return x_BWT + self.conv2(self.snake2(self.conv1(self.snake1(x_BWT))))


class SnakeBlock(nn.Sequential):
    """A unit for each dilation. Kernels are odd, so lengths stay."""

    def __init__(self, width: int, kernel: int, dilations: Sequence[int], *, norm: bool):
        if not kernel % 2:
            raise ValueError(f"kernels of snake blocks must be odd, got {kernel}")
        super().__init__(*[SnakeUnit(width, kernel, dilation, norm=norm) for dilation in dilations])


class Noise(NamedTuple):
    """What chance there is in a source: unit normal numbers, and where each sine begins (turns, 0 is a zero)."""

    sine_BTH: Tensor
    phase_BH: Tensor

    @classmethod
    def draw(cls, batch: int, length: int, sines: int, generator: torch.Generator | None = None) -> "Noise":
        """Numbers for ``length`` samples, on the CPU; the fundamental begins at 0."""
        phase = torch.rand(batch, sines, generator=generator) - 0.5
        phase[:, 0] = 0
        return cls(torch.randn(batch, length, sines, generator=generator), phase)


class HarmonicSource(nn.Module):
    """Pitch -> one signal of sines at its multiples where there is voice, of noise where there is none.

    Args:
        hop: samples per frame of pitch. rate: Hz. harmonics: overtones beside the fundamental.
        smooth: phases run in straight lines between frames' middles, whatever their beginning (SineGen2, the 24 kHz
            release); otherwise they advance sample by sample with the pitch of the frame (SineGen, 22.05 kHz).
        amplitude: of a sine. breath: standard deviation of the noise in voiced sound; unvoiced: amplitude / 3.
        voiced: Hz from which a pitch counts as voice.
    """

    def __init__(
        self, hop: int, rate: int, harmonics: int, *, smooth: bool, amplitude: float = 0.1, breath: float = 0.003,
        voiced: float = 10.0,
    ):  # fmt: skip
        super().__init__()
        self.hop, self.rate, self.sines, self.smooth = hop, rate, harmonics + 1, smooth
        self.amplitude, self.breath, self.voiced = amplitude, breath, voiced
        self.mix = nn.Linear(harmonics + 1, 1)

    def forward(self, f0_BF: Float[Tensor, "B F"], noise: Noise) -> Float[Tensor, "B T"]:
        """F * hop samples in (-1, 1). Gradients reach the mixing weights, not the pitch."""
        with torch.no_grad():
            voice_BT1 = (f0_BF > self.voiced).float().repeat_interleave(self.hop, 1)[..., None]
            spread = voice_BT1 * self.breath + (1 - voice_BT1) * self.amplitude / 3
            sines = self.amplitude * self._phase(f0_BF, noise.phase_BH).sin().transpose(1, 2)
            sines = sines * voice_BT1 + spread * noise.sine_BTH.to(f0_BF)
        return F.linear(sines, self.mix.weight.to(sines), self.mix.bias.to(sines))[..., 0].tanh()

    def _phase(self, f0_BF: Tensor, phase_BH: Tensor) -> Float[Tensor, "B H T"]:
        """Radians at each sample; float32 as released, which at a minute is still good to 0.16."""
        times_H1 = torch.arange(1, self.sines + 1, device=f0_BF.device)[:, None]
        if self.smooth:
            turns = (f0_BF[:, None] * times_H1 / self.rate % 1).cumsum(-1)
            return F.interpolate(turns * 2 * math.pi * self.hop, scale_factor=self.hop, mode="linear")
        turns = (f0_BF.repeat_interleave(self.hop, 1)[:, None] * times_H1 / self.rate).cumsum(-1) % 1
        return 2 * math.pi * (turns + phase_BH.to(f0_BF)[..., None])
