"""Losses between a made sound and the real one, by hand; critics; the pitch tracker; crops."""

import math

import pytest
import torch

from gamut.codecs.pitch import pitch
from gamut.codecs.vocoder_mel import mel24
from gamut.data.crops import Crops
from gamut.data.sources import Clip
from gamut.losses.reconstruct import feature_matching, fool, mel_l1, relative, stft_distance, tell_apart
from gamut.nn.critics import Critics, PeriodCritic


def tone(hz: float, seconds: float = 0.5, rate: int = 24000) -> torch.Tensor:
    return 0.1 * (2 * math.pi * hz * torch.arange(int(seconds * rate)) / rate).sin()


def test_twice_as_loud_is_a_log_two_away():
    """Magnitudes double everywhere, so both log distances are log 2, and spectral convergence is one half or one."""
    wav = torch.randn(2, 9600, generator=torch.Generator().manual_seed(0)) * 0.1
    loss, stats = mel_l1(2 * wav, wav, mel24)
    assert float(loss) == pytest.approx(math.log(2), abs=1e-3) == pytest.approx(float(stats["mel_l1"]), abs=1e-3)
    loss, stats = stft_distance(wav, 2 * wav, floor=1e-9)
    assert float(stats["stft_converge"]) == pytest.approx(0.5, abs=1e-4)
    assert float(stats["stft_log"]) == pytest.approx(math.log(2), abs=1e-3)
    assert float(loss) == pytest.approx(0.5 + math.log(2), abs=1e-3)
    assert float(stft_distance(2 * wav, wav, floor=1e-9)[1]["stft_converge"]) == pytest.approx(1, abs=1e-3)
    assert float(stft_distance(wav, wav)[0]) == 0
    half = torch.stack([wav[0], torch.zeros(9600)])  # a silent row weighs no more than it is loud
    assert float(stft_distance(half + 1e-3, half)[1]["stft_converge"]) < 0.1


def test_silence_has_finite_gradients():
    made = torch.zeros(1, 4800, requires_grad=True)
    (stft_distance(made, torch.zeros(1, 4800))[0] + mel_l1(made, made.detach(), mel24)[0]).backward()
    assert made.grad is not None and made.grad.isfinite().all()


def test_least_squares_by_hand():
    made, real = [torch.tensor([0.0, 1.0]), torch.tensor([0.5])], [torch.tensor([1.0, 0.0]), torch.tensor([1.0])]
    assert float(fool(made)[0]) == pytest.approx((0.5 + 0.25) / 2)
    loss, stats = tell_apart(made, real)
    assert float(loss) == pytest.approx(((0.5 + 0.5) + (0 + 0.25)) / 2)
    assert float(stats["told"]) == pytest.approx((0.5 + 0.5) / 2)
    half = [torch.full((3,), 0.5)]
    assert float(tell_apart(half, half)[0]) == pytest.approx(0.5)


def test_features_by_hand_and_the_real_is_no_leaf_to_move():
    made = [[torch.tensor([1.0, 3.0], requires_grad=True)], [torch.zeros(2, 2)]]
    real = [[torch.tensor([0.0, 1.0], requires_grad=True)], [torch.full((2, 2), 0.5)]]
    loss, _ = feature_matching(made, real)
    assert float(loss) == pytest.approx((1.5 + 0.5) / 2)
    loss.backward()
    assert made[0][0].grad is not None and real[0][0].grad is None


def test_relative_by_hand():
    """Leads 0, 1, 2: the median is 1; only the first is behind it, by 1, which is more than the margin."""
    made, real = [torch.zeros(3)], [torch.tensor([0.0, 1.0, 2.0])]
    assert float(relative(made, real, margin=0.04)[0]) == pytest.approx(0.04)
    assert float(relative(made, real, margin=3.0)[0]) == pytest.approx(1.0)
    assert float(relative(made, [torch.ones(3)])[0]) == 0
    assert float(relative(made * 2, [real[0] / 10, real[0] / 10], margin=0.04)[0]) == pytest.approx(0.02)


def test_critics_widths_and_sizes():
    """Full width is HiFi-GAN's period discriminator: 8.2 M parameters each."""
    full = PeriodCritic(2)
    assert sum(p.numel() for p in full.parameters()) == pytest.approx(8_221_000, rel=0.01)
    critics = Critics(fraction=1 / 8)
    assert sum(p.numel() for p in critics.parameters()) < 700_000
    scores, features = critics(torch.randn(2, 8160))
    assert len(scores) == len(features) == 8 and all(len(layers) == 5 for layers in features)
    assert all(score.shape[0] == 2 and score.isfinite().all() for score in scores)
    with pytest.raises(ValueError, match=r"fraction of the critics' widths must lie in \(0, 1\], got 0"):
        Critics(fraction=0)
    with pytest.raises(ValueError, match="sounds of at least 1025 samples, got 1024"):
        critics(torch.randn(1, 1024))


def test_a_pitch_needs_a_frame():
    with pytest.raises(ValueError, match="frames of 480 samples, got 479 samples"):
        pitch(torch.randn(1, 479), 24000, 480)


def test_a_period_critic_sees_each_column_alone():
    critic, wav = PeriodCritic(3, 1 / 8), torch.randn(1, 3 * 200)
    changed = wav.clone()
    changed[:, 1::3] += 1
    a, b = (critic(x)[0][0, 0] for x in (wav, changed))
    assert torch.equal(a[:, [0, 2]], b[:, [0, 2]]) and not torch.equal(a[:, 1], b[:, 1])


@pytest.mark.parametrize("rate, hop", [(24000, 480), (8000, 160), (22050, 256)])
@pytest.mark.parametrize("hz", [75.0, 131.5, 210.0, 380.0])
def test_pitch_of_a_buzz(rate, hop, hz):
    wav = sum(tone(hz * k, 0.6, rate) / k for k in range(1, 6))[None]
    found = pitch(wav, rate, hop)
    assert found.shape == (1, wav.shape[1] // hop)
    torch.testing.assert_close(found[0, 4:-6], torch.full_like(found[0, 4:-6], hz), rtol=0.01, atol=0)


def test_no_pitch_in_noise_and_silence():
    noise = 0.1 * torch.randn(1, 24000, generator=torch.Generator().manual_seed(0))
    assert float((pitch(noise, 24000, 480) > 0).float().mean()) < 0.02
    assert not pitch(torch.zeros(1, 4800), 24000, 480).any()
    assert not pitch(tone(200)[None] * 1e-3, 24000, 480).any()
    with pytest.raises(ValueError, match=r"looked for in 0 < low < high <= a quarter of 8000 Hz, got 60.0 and 3000"):
        pitch(noise, 8000, 160, high=3000)


def test_crops_hold_the_mel_and_pitch_of_their_own_sound():
    clips = [Clip(tone(hz, 0.4, 8000) * 3, 8000, "") for hz in (150, 250)]
    crops = Crops(clips, 24000, 480, mel24)
    mel, wav, f0 = crops.batch(3, 4, 17)
    assert (mel.shape, wav.shape, f0.shape) == ((4, 80, 17), (4, 8160), (4, 17))
    again = crops.batch(3, 4, 17)
    assert all(torch.equal(a, b) for a, b in zip(again, (mel, wav, f0), strict=True))
    assert not torch.equal(crops.batch(4, 4, 17).wav, wav)
    inside = mel24(wav)[..., 2:-2]  # nearer to the edge, a window sees beyond the crop
    torch.testing.assert_close(inside, mel[..., 2:-2], atol=1e-3, rtol=0)
    sounding = wav.unfold(1, 480, 480).square().mean(-1).sqrt() > 0.03
    assert ((f0 > 0) & sounding).sum() > 0.8 * sounding.sum()
    voiced = f0[f0 > 0]
    assert (((voiced - 150).abs() < 5) | ((voiced - 250).abs() < 5)).float().mean() > 0.9
    with pytest.raises(ValueError, match="crops need at least one recording, got none"):
        Crops([], 24000, 480, mel24)
