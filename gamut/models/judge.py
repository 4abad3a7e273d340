"""A small recogniser of spoken digits that judges other models' speech: convolutions and CTC, no memory of language.

B batch · M mel bins · F mel frames (100 a second) · P frames out (50 a second) · C classes
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gamut.io.pretrained import Plain, Pretrained
from gamut.nn.conv import ConvBlock


@dataclass(frozen=True)
class DigitJudgeConfig(Plain):
    """Every number is ours."""

    rate: int = 8000
    mels: int = 64
    width: int = 64
    dilations: tuple[int, ...] = (1, 2, 4, 1, 2)
    classes: int = 10
    floor: float = -5.0  # natural-log mel below which nothing is heard: silence and faint noise look alike
    names: tuple[str, ...] = ()  # what the classes are called, where they are not digits


class DigitJudge(Pretrained, nn.Module):
    """Sound -> string of digits with a confidence; trained apart from every model it judges."""

    Config = DigitJudgeConfig

    def __init__(self, config: DigitJudgeConfig = DigitJudgeConfig()):
        super().__init__()
        self.config = config
        self.first = nn.Conv1d(config.mels, config.width, 5, stride=2, padding=2)
        self.norm = nn.BatchNorm1d(config.width)
        self.blocks = nn.Sequential(*[ConvBlock(config.width, dilation) for dilation in config.dilations])
        self.last = nn.Conv1d(config.width, config.classes + 1, 1)  # the last class is CTC's blank

    def forward(self, mel_BMF: Float[Tensor, "B M F"]) -> Float[Tensor, "B P C"]:
        """Log-probabilities; P = ceil(F / 2). Mels are natural logs of magnitudes (``data.listening.judge_mel``)."""
        x = self.first(mel_BMF.to(self.last.weight).clamp(min=self.config.floor))
        x = F.dropout(F.gelu(self.norm(x)), 0.1, self.training)
        x = F.dropout(self.blocks(x), 0.2, self.training)
        return self.last(x).transpose(1, 2).log_softmax(-1)


def best_path(logp_PC: Float[Tensor, "P C"], blank: int) -> tuple[list[int], float]:
    """CTC's greedy reading: runs of one class are one symbol; its confidence is its surest frame."""
    surest, winner = logp_PC.exp().max(-1)
    symbols: list[int] = []
    sure: list[float] = []
    before = blank
    for label, probability in zip(winner.tolist(), surest.tolist(), strict=True):
        if label == blank:
            pass
        elif label == before:
            sure[-1] = max(sure[-1], probability)
        else:
            symbols.append(label)
            sure.append(probability)
        before = label
    return symbols, min(sure, default=0.0)


def ctc(logp_BPC: Float[Tensor, "B P C"], lengths_B: Int[Tensor, " B"], labels: list[list[int]]) -> Tensor:
    """Mean CTC loss per symbol; ``labels`` may be empty (nothing is said)."""
    flat = torch.tensor([symbol for row in labels for symbol in row], dtype=torch.long, device=logp_BPC.device)
    counts = torch.tensor([len(row) for row in labels], device=logp_BPC.device)
    return F.ctc_loss(
        logp_BPC.transpose(0, 1), flat, lengths_B, counts, blank=logp_BPC.shape[-1] - 1, zero_infinity=True)
