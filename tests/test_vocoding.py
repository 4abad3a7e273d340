"""Training of a vocoder: both stages run, resume and move only what is theirs."""

import pytest
import torch

from gamut.codecs.hift import HiFT, HiFTConfig
from gamut.data.crops import Crops
from gamut.data.sources import Clip
from gamut.io.runs import Run
from gamut.nn.critics import Critics
from gamut.train.vocoding import reconstruction, sung, train_against_critics, train_reconstruction

SMALL = HiFTConfig(width=16, pitch_width=16, pitch_layers=2, block_kernels=(3,), source_kernels=(3, 3, 3),
                   dilations=(1,))


@pytest.fixture(scope="module")
def crops():
    time = torch.arange(6400) / 8000
    clips = [Clip(sum((2 * torch.pi * hz * k * time).sin() for k in (1, 2, 3)), 8000, "") for hz in (120.0, 200.0)]
    return Crops(clips, 24000, 480, HiFT(SMALL).encode)


def test_spectra_and_pitch_come_nearer(crops, tmp_path):
    torch.manual_seed(0)
    hift, run = HiFT(SMALL), Run.create(tmp_path, "v", {})
    fit = train_reconstruction(hift, crops, run, steps=25, batch=2, frames=9, lr=5e-3)
    assert sum(fit.loss[-3:]) < 0.7 * sum(fit.loss[:3])
    again = HiFT(SMALL)
    train_reconstruction(again, crops, run, steps=25, batch=2, frames=9, lr=5e-3)
    assert all(torch.equal(a, b) for a, b in zip(hift.parameters(), again.parameters(), strict=True))


def test_critics_and_vocoder_take_turns(crops):
    torch.manual_seed(0)
    hift, critics = HiFT(SMALL), Critics((2,), (240,), 1 / 8)
    fit = train_against_critics(hift, critics, crops, None, steps=3, batch=2, frames=9)
    assert {"critics/told", "critics/loss", "vocoder/fool", "vocoder/features", "vocoder/mel_l1"} <= fit.stats.keys()
    assert fit.stats["vocoder/relative"] <= 2 * 0.04


def test_the_source_sings_as_it_is_told(crops):
    torch.manual_seed(0)
    hift, crop = HiFT(SMALL), crops.batch(0, 2, 9)
    torch.manual_seed(1)
    taught, guess = sung(hift, crop, teach=True)
    loss, stats = reconstruction(hift, crop, taught, guess)
    torch.manual_seed(1)
    alone, _ = sung(hift, crop, teach=False)
    assert taught.shape == crop.wav.shape and not torch.equal(taught, alone)
    loss.backward()
    assert all(p.grad is not None for p in hift.parameters())
    assert float(stats["audio_s"]) == pytest.approx(2 * 9 * 0.02)
