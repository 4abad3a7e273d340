"""The judge of spoken digits: reading CTC by hand, its loss, and what the shipped one is worth."""

import math
import os
from pathlib import Path

import pytest
import torch

from gamut.data import sources
from gamut.data.spoken import Digits
from gamut.evals.judges import Sphinx, hear, trust, who
from gamut.models.judge import DigitJudge, DigitJudgeConfig, best_path, ctc

SHIPPED = Path(__file__).resolve().parent.parent / "weights" / "step_audio_2_codec"
recordings = pytest.mark.skipif(
    not Path(os.environ.get("GAMUT_DATA", "/nowhere"), "speech", "fsdd_8k.npz").exists(),
    reason="needs the recorded digits: set GAMUT_DATA to a folder with speech/fsdd_8k.npz",
)


def frames(labels: list[int], sure: list[float], classes: int = 4) -> torch.Tensor:
    """Log-probabilities in which each frame gives its label that much, the others share the rest."""
    rows = torch.stack([torch.full((classes,), (1 - p) / (classes - 1)) for p in sure])
    for row, label, p in zip(rows, labels, sure, strict=True):
        row[label] = p
    return rows.log()


def test_runs_are_one_symbol_and_blanks_part_them():
    """blank 3: 1 1 - 1 0 0 - reads 1, 1, 0; the least sure symbol is the second 1."""
    heard, confidence = best_path(frames([1, 1, 3, 1, 0, 0, 3], [0.7, 0.9, 0.9, 0.6, 0.8, 0.5, 0.9]), blank=3)
    assert heard == [1, 1, 0]
    assert confidence == pytest.approx(0.6)
    assert best_path(frames([3, 3], [0.9, 0.9]), blank=3) == ([], 0.0)


def test_ctc_by_hand():
    """Two frames, one symbol: paths "0 0", "0 -" and "- 0"; an empty label has only blanks."""
    logp = frames([0, 1], [0.5, 0.5], classes=2)[None]  # each frame is half and half
    assert ctc(logp, torch.tensor([2]), [[0]]).item() == pytest.approx(-math.log(0.75), abs=1e-5)
    assert ctc(logp, torch.tensor([2]), [[]]).item() == pytest.approx(-math.log(0.25), abs=1e-5)


def test_it_hears_nothing_in_silence_and_survives_it():
    torch.manual_seed(0)
    judge = DigitJudge(DigitJudgeConfig(width=8, dilations=(1,))).eval()
    for wav in (torch.zeros(0), torch.zeros(1), torch.zeros(4000)):
        heard, confidence = hear(judge, wav)
        assert 0 <= confidence <= 1 and all(0 <= digit < 10 for digit in heard)


def test_what_is_no_number_says_nothing():
    """Whatever the weights: each of them would name a digit and a person in any sound."""
    torch.manual_seed(0)
    judge = DigitJudge(DigitJudgeConfig(width=8, dilations=(1,), classes=2, names=("a", "b"))).eval()
    judge.last.bias.data = torch.tensor([9.0, 0.0, -9.0])
    wav = torch.randn(4000)
    assert hear(judge, wav)[0] and who(judge, wav)[0] == "a"
    wav[5] = math.nan
    assert hear(judge, wav) == ([], 0.0) and who(judge, wav) == ("", 0.0)


def test_loudness_does_not_matter():
    torch.manual_seed(0)
    judge = DigitJudge(DigitJudgeConfig(width=8, dilations=(1,))).eval()
    wav = torch.randn(4000)
    assert hear(judge, wav * 0.01)[0] == hear(judge, wav)[0]


@recordings
def test_the_shipped_judge_hears_held_out_recordings():
    """Claims: >= 97 % of held-out clips right, convinced by <= 15 % of what says nothing."""
    found = trust(DigitJudge.from_pretrained(SHIPPED / "digitjudge"), Digits(sources.digits("test")))
    assert found["judge/accuracy"] >= 0.97
    assert found["judge/fooled"] <= 0.15
    assert found["judge/sure"] >= 0.9


@recordings
def test_the_outside_judge_agrees_on_most_recordings():
    sphinx, digits = Sphinx(), Digits(sources.digits("test")[::10])
    right = sum(sphinx.hear(wav, 1) == [digit] for wav, digit in zip(digits.wavs, digits.digits, strict=True))
    assert right >= 0.5 * len(digits)  # five times chance
