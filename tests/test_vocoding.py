"""Training of a vocoder: both stages run, resume and move only what is theirs."""

import pytest
import torch

from gamut.codecs.hift import HiFT, HiFTConfig
from gamut.data.crops import Crops, cuts
from gamut.data.sources import Clip
from gamut.io.runs import Run
from gamut.nn.critics import Critics
from gamut.train.vocoding import reconstruction, train_against_critics, train_on_mels, train_reconstruction

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


def test_the_sound_of_a_made_mel_has_that_mel(crops):
    torch.manual_seed(0)
    hift, mels = HiFT(SMALL), [crops.batch(0, 1, 30).mel[0] - 1, torch.zeros(80, 4)]
    fit = train_on_mels(hift, crops, mels, None, steps=20, batch=2, frames=9, lr=5e-3)
    assert fit.stats["given_l1"] < 1.5 and sum(fit.loss[-3:]) < 0.8 * sum(fit.loss[:3])


def test_cuts_are_pieces_of_mels():
    mels = [torch.arange(30.0).expand(80, 30), torch.zeros(80, 4)]
    rows = cuts(mels, 3, 5, 9)
    assert rows.shape == (5, 80, 9) and torch.equal(rows.diff(dim=2), torch.ones(5, 80, 8))
    assert torch.equal(rows, cuts(mels, 3, 5, 9)) and not torch.equal(rows, cuts(mels, 4, 5, 9))
    with pytest.raises(ValueError, match=r"crops of 31 frames need a mel of as many; got \[30, 4\]"):
        cuts(mels, 0, 1, 31)


def test_the_source_sings_as_it_is_told(crops):
    torch.manual_seed(0)
    hift, crop = HiFT(SMALL), crops.batch(0, 2, 9)
    torch.manual_seed(1)
    taught, loss, stats = reconstruction(hift, crop, teach=True)
    torch.manual_seed(1)
    alone, _, _ = reconstruction(hift, crop, teach=False)
    assert taught.shape == crop.wav.shape and not torch.equal(taught, alone)
    loss.backward()
    assert all(p.grad is not None for p in hift.parameters())
    assert float(stats["audio_s"]) == pytest.approx(2 * 9 * 0.02)
