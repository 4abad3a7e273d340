"""Scores of resynthesis: equal sounds, worse sounds, missing packages."""

import sys

import pytest
import torch

from gamut.evals.audio import resynthesis_scores


def speech(seconds: float = 2.0, rate: int = 8000) -> torch.Tensor:
    """Noise through three resonances, loud and soft by turns: enough of speech for the scores."""
    time = torch.arange(int(seconds * rate)) / rate
    draw = torch.randn(len(time), generator=torch.Generator().manual_seed(0))
    voice = sum((2 * torch.pi * 120 * k * time).sin() / k for k in range(1, 20)) + 0.3 * draw
    return 0.05 * voice * (0.6 + 0.4 * (2 * torch.pi * 3 * time).sin())


def test_equal_sounds_are_near_in_mel_whatever_is_installed():
    wav = speech()
    scores, reasons = resynthesis_scores(wav, wav, 8000, band=8000)
    assert scores["mel_distance"] == 0 and {*scores, *reasons} == {"mel_distance", "stoi", "pesq"}
    noisy, _ = resynthesis_scores(wav, wav + 0.03 * torch.randn(len(wav)), 8000, band=8000)
    assert noisy["mel_distance"] > 0.1


@pytest.mark.parametrize("name, package, best", [("stoi", "pystoi", 1.0), ("pesq", "pesq", 4.5)])
def test_noise_lowers_what_is_installed(name, package, best):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install 'gamut[quality]'")
    wav = speech()
    equal, noisy = (
        resynthesis_scores(wav, wav + level * torch.randn(len(wav)), 8000, band=8000)[0] for level in (0, 0.05)
    )
    assert equal[name] == pytest.approx(best, abs=0.1) and noisy[name] < equal[name] - 0.1


@pytest.mark.parametrize("name, package, lowest", [("stoi", "pystoi", 0.0), ("pesq", "pesq", 1.0)])
def test_silence_and_what_is_no_number_score_lowest(name, package, lowest):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install 'gamut[quality]'")
    wav, broken = speech(), speech()
    broken[100] = float("nan")
    found = [resynthesis_scores(wav, made, 8000, band=8000)[0] for made in (torch.zeros_like(wav), broken)]
    assert found[0] == found[1] and found[0][name] == lowest and found[0]["mel_distance"] > 1


def test_missing_packages_and_too_short_sounds_are_reasons_not_errors(monkeypatch):
    monkeypatch.setitem(sys.modules, "pesq", None)
    monkeypatch.setitem(sys.modules, "pystoi", None)
    scores, reasons = resynthesis_scores(speech(), speech(), 8000, band=8000)
    assert list(scores) == ["mel_distance"]
    assert reasons["stoi"] == "needs the package pystoi: pip install 'gamut[quality]'"
    assert "package pesq" in reasons["pesq"]
    monkeypatch.undo()
    _, reasons = resynthesis_scores(speech(0.05), speech(0.05), 8000)
    assert set(reasons) == {"stoi", "pesq"}
    with pytest.raises(ValueError, match="band must be 8000 or 16000 Hz, got 24000"):
        resynthesis_scores(speech(), speech(), 8000, band=24000)
