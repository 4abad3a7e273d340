"""Critics of sound: they tell the real from the made, by its periods and by its spectra.

B batch · T samples · P samples of a period · Q periods · K bins · F frames
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

SLOPE = 0.1


class PeriodCritic(nn.Module):
    """Looks at every ``period``-th sample: convolutions along the columns of the sound written in rows of a period.

    Source: HiFi-GAN (Kong, Kim, Bae 2020), whose widths are ``fraction`` 1.
    """

    def __init__(self, period: int, fraction: float = 1.0):
        super().__init__()
        self.period = period
        widths = [1, *(max(4, round(width * fraction)) for width in (32, 128, 512, 1024, 1024))]
        strides = (3, 3, 3, 3, 1)
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), (stride, 1), (2, 0)))
            for a, b, stride in zip(widths, widths[1:], strides, strict=False)
        )
        self.last = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, wav_BT: Float[Tensor, "B T"]) -> tuple[Tensor, list[Tensor]]:
        """Scores of parts of each sound, and what each layer holds; T must be a period at least."""
        wav_BT = F.pad(wav_BT, (0, -wav_BT.shape[-1] % self.period), mode="reflect")
        return _through(wav_BT.unflatten(1, (-1, self.period))[:, None], self.convs, self.last)


class SpectrumCritic(nn.Module):
    """Looks at magnitudes at one resolution, frames x bins. Source: UnivNet (Jang et al. 2021), 32 channels."""

    def __init__(self, size: int, fraction: float = 1.0):
        super().__init__()
        self.size, width = size, max(4, round(32 * fraction))
        strides = (1, 2, 2, 2)
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(1 if i == 0 else width, width, (3, 9), (1, stride), (1, 4)))
            for i, stride in enumerate(strides)
        )
        self.convs.append(weight_norm(nn.Conv2d(width, width, (3, 3), padding=1)))
        self.last = weight_norm(nn.Conv2d(width, 1, (3, 3), padding=1))

    def forward(self, wav_BT: Float[Tensor, "B T"]) -> tuple[Tensor, list[Tensor]]:
        """Scores of parts of each sound, and what each layer holds."""
        window = torch.hann_window(self.size, device=wav_BT.device)
        spectrum = torch.stft(wav_BT, self.size, self.size // 4, window=window, return_complex=True)
        magnitude_BFK = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt().transpose(1, 2)
        return _through(magnitude_BFK[:, None], self.convs, self.last)


class Critics(nn.Module):
    """A critic for each period and each size of spectrum.

    Args:
        fraction: of the published widths: 1 for the paper's size, 1/8 for a small machine.
    """

    def __init__(
        self, periods: Sequence[int] = (2, 3, 5, 7, 11), sizes: Sequence[int] = (512, 1024, 2048), fraction: float = 1.0
    ):
        super().__init__()
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction of the critics' widths must lie in (0, 1], got {fraction}")
        self.shortest = max(*periods, max(sizes) // 2 + 1)  # samples: what is mirrored at the ends must be there
        self.critics = nn.ModuleList([PeriodCritic(period, fraction) for period in periods])
        self.critics.extend(SpectrumCritic(size, fraction) for size in sizes)

    def forward(self, wav_BT: Float[Tensor, "B T"]) -> tuple[list[Tensor], list[list[Tensor]]]:
        """(scores, features), an entry for each critic. Raises ValueError for sounds shorter than ``shortest``."""
        if wav_BT.shape[-1] < self.shortest:
            raise ValueError(f"these critics need sounds of at least {self.shortest} samples, got {wav_BT.shape[-1]}")
        said = [critic(wav_BT) for critic in self.critics]
        return [score for score, _ in said], [features for _, features in said]


def _through(x: Tensor, convs: nn.ModuleList, last: nn.Module) -> tuple[Tensor, list[Tensor]]:
    features = []
    for conv in convs:
        x = F.leaky_relu(conv(x), SLOPE)
        features.append(x)
    return last(x), features
