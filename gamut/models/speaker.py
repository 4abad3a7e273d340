"""CAM++: sound to 192 numbers that say who speaks, as Step-Audio's flows are conditioned on.

    fbank (100 a second) -> 2-D convolutions over bins and time -> densely joined layers at half the rate, each weighted
    by what it hears around it -> mean and deviation over time -> embedding

B sounds · F fbank frames · M bins · C channels · T steps
Source: arXiv 2303.00332; layout and names of the public code (repo: 3D-Speaker, speakerlab/models/campplus; the copy in
Step-Audio, funasr_detach/models/campplus). The released campplus.onnx was not at hand: the number of its tensors, their
names and its size, as public code records them, fit this layout; outputs were not compared.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gamut.io.keys import campplus as keys
from gamut.io.pretrained import Plain, Pretrained

SEGMENT = 100  # steps whose mean stands for what is near in time


@dataclass(frozen=True)
class SpeakerNetConfig(Plain):
    """Widths are channels. The defaults are those of the public code, which the release follows."""

    called = "speaker network"
    mels: int = 80
    embedding: int = 192
    head: int = 32  # of the 2-D convolutions
    width: int = 128  # where the dense layers begin
    growth: int = 32  # that a dense layer adds
    squeeze: int = 4  # of growth: what a dense layer looks at
    layers: tuple[int, ...] = (12, 24, 16)
    dilations: tuple[int, ...] = (1, 2, 2)

    def __post_init__(self):
        if self.mels % 8 or len(self.layers) != len(self.dilations):
            raise ValueError(f"mels must be a multiple of 8, and layers and dilations as many; got mels={self.mels}, "
                             f"layers={self.layers}, dilations={self.dilations}")


class Flat(nn.Module):
    """A 2-D convolution without bias, and batch norm; ``stride`` is along the bins."""

    def __init__(self, given: int, width: int, kernel: int = 3, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(given, width, kernel, (stride, 1), kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Float[Tensor, "B C M F"]) -> Float[Tensor, "B D N F"]:
        return self.norm(self.conv(x))


class Residual(nn.Module):
    def __init__(self, width: int, stride: int):
        super().__init__()
        self.a, self.b = Flat(width, width, stride=stride), Flat(width, width)
        self.skip = Flat(width, width, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Float[Tensor, "B C M F"]) -> Float[Tensor, "B C N F"]:
        return F.relu(self.b(F.relu(self.a(x))) + self.skip(x))


class Head(nn.Module):
    """Bins to an eighth, then channels and bins as one axis."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.last = Flat(1, width), Flat(width, width, stride=2)
        self.stages = nn.ModuleDict(
            {number: nn.ModuleList([Residual(width, 2), Residual(width, 1)]) for number in ("1", "2")})

    def forward(self, x_BMF: Float[Tensor, "B M F"]) -> Float[Tensor, "B C F"]:
        x = F.relu(self.first(x_BMF[:, None]))
        for stage in self.stages.values():
            for block in stage:  # type: ignore[attr-defined]
                x = block(x)
        return F.relu(self.last(x)).flatten(1, 2)


class Joined(nn.Module):
    """One dense layer: a narrow look at everything before it, weighted channel by channel by its surroundings."""

    def __init__(self, given: int, growth: int, narrow: int, dilation: int):
        super().__init__()
        self.before, self.squeeze = nn.BatchNorm1d(given), nn.Conv1d(given, narrow, 1, bias=False)
        self.between = nn.BatchNorm1d(narrow)
        self.local = nn.Conv1d(narrow, growth, 3, padding=dilation, dilation=dilation, bias=False)
        self.down, self.up = nn.Conv1d(narrow, narrow // 2, 1), nn.Conv1d(narrow // 2, growth, 1)

    def forward(self, x_BCT: Float[Tensor, "B C T"]) -> Float[Tensor, "B D T"]:
        x = F.relu(self.between(self.squeeze(F.relu(self.before(x_BCT)))))
        near = F.avg_pool1d(x, SEGMENT, ceil_mode=True).repeat_interleave(SEGMENT, -1)[..., : x.shape[-1]]
        around = x.mean(-1, keepdim=True) + near
        return self.local(x) * torch.sigmoid(self.up(F.relu(self.down(around))))


class Narrow(nn.Module):
    """Batch norm, and half the channels."""

    def __init__(self, given: int):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm1d(given), nn.Conv1d(given, given // 2, 1, bias=False)

    def forward(self, x_BCT: Float[Tensor, "B C T"]) -> Float[Tensor, "B D T"]:
        return self.conv(F.relu(self.norm(x_BCT)))


class SpeakerNet(Pretrained, nn.Module):
    """Sound to a speaker vector. Vectors of one voice point the same way (cosine)."""

    Config = SpeakerNetConfig

    def __init__(self, config: SpeakerNetConfig = SpeakerNetConfig()):
        super().__init__()
        c = self.config = config
        self.head, width = Head(c.head), c.width
        self.enter = nn.Conv1d(c.head * c.mels // 8, width, 5, stride=2, padding=2, bias=False)
        self.enter_norm = nn.BatchNorm1d(width)
        self.blocks, self.narrow = nn.ModuleDict(), nn.ModuleDict()  # numbered from 1, as released
        for number, (layers, dilation) in enumerate(zip(c.layers, c.dilations, strict=True), 1):
            dense = {}
            for layer in range(1, layers + 1):
                dense[str(layer)] = Joined(width, c.growth, c.squeeze * c.growth, dilation)
                width += c.growth
            self.blocks[str(number)], self.narrow[str(number)] = nn.ModuleDict(dense), Narrow(width)
            width //= 2
        self.norm = nn.BatchNorm1d(width)
        self.out, self.out_norm = nn.Conv1d(2 * width, c.embedding, 1, bias=False), nn.BatchNorm1d(
            c.embedding, affine=False)

    def forward(self, fbank_BFM: Float[Tensor, "B F M"]) -> Float[Tensor, "B E"]:
        """Embeddings of ``codecs.fbank.fbank(wav, centred=True)``, not scaled to any length.

        Raises:
            ValueError: for another number of bins, or sound of fewer than 3 frames, which has no deviation.
        """
        if fbank_BFM.shape[2] != self.config.mels or fbank_BFM.shape[1] < 3:
            raise ValueError(f"a speaker vector takes at least 3 frames (45 ms) of {self.config.mels} fbank bins, got "
                             f"{fbank_BFM.shape[1]} of {fbank_BFM.shape[2]}")
        x = F.relu(self.enter_norm(self.enter(self.head(fbank_BFM.transpose(1, 2)))))
        for number, dense in self.blocks.items():
            for layer in dense.values():  # type: ignore[operator]
                x = torch.cat([x, layer(x)], 1)
            x = self.narrow[number](x)
        x = F.relu(self.norm(x))
        stats = torch.cat([x.mean(-1), x.std(-1)], 1)
        return self.out_norm(self.out(stats[..., None]))[..., 0]

    @classmethod
    def released(
        cls, stored: dict, tensors: dict[str, Tensor], path: str | Path
    ) -> tuple[SpeakerNetConfig, dict[str, Tensor]]:
        """From a folder with the public code's names."""
        return SpeakerNetConfig.from_dict(keys.config_from_official(stored, tensors), path), keys.NAMES.to_ours(tensors)


def read_vector(file: str | Path) -> Float[Tensor, " E"]:
    """A speaker vector from elsewhere: a file of numbers, as .npy, or as text with spaces, commas or lines between.

    Raises:
        ValueError: no such file, or anything but one row of finite numbers.
    """
    import numpy as np

    file = Path(file)
    try:
        values = np.load(file) if file.suffix == ".npy" else np.array(file.read_text().replace(",", " ").split(), float)
    except (OSError, ValueError) as error:
        raise ValueError(f"'{file}' holds no speaker vector ({error}); give .npy, or numbers as text") from error
    vector = torch.as_tensor(np.asarray(values, np.float32)).flatten()
    if not vector.numel() or not vector.isfinite().all() or max(values.shape) != vector.numel():
        raise ValueError(f"'{file}' must hold one row of finite numbers (192 for Step-Audio 2), got an array of shape "
                         f"{tuple(values.shape)}")
    return vector
