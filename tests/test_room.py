"""Silence and bandwidth: what other rooms and microphones make of a recording."""

import random

import torch
from test_spoken import clips

from gamut.data.room import AROUND, microphone, rested, silences, widened
from gamut.data.spoken import Digits, Said


def band(wav: torch.Tensor, rate: int, low: float, high: float) -> float:
    """Energy between two frequencies."""
    power, hz = torch.fft.rfft(wav).abs().square(), torch.fft.rfftfreq(len(wav), 1 / rate)
    return float(power[(hz >= low) & (hz < high)].sum())


def tone(rate: int, hz: float, seconds: float = 1.0) -> torch.Tensor:
    time = torch.arange(int(seconds * rate)) / rate
    return (6.2832 * hz * time).sin() * (time < seconds / 2)  # the second half is silent


def test_silence_around_and_between_is_drawn_and_digits_lie_where_they_are_said_to():
    rng, digits = random.Random(0), Digits(clips())
    drawn = [silences(rng) for _ in range(400)]
    assert 0.25 < sum(gap[1] == 1.0 for gap, _ in drawn) / 400 < 0.42
    assert 0.42 < sum(rest != (0.0, 0.0) for _, rest in drawn) / 400 < 0.58
    assert 1.4 < max(max(rest) for _, rest in drawn) <= AROUND
    said: Said = digits.say([3, 4], random.Random(1), vary=False, gap=(0.5, 0.5), rest=(1.0, 0.25))
    (a, b), (c, d) = said.spans
    assert (a, c - b, len(said.wav) - d) == (12000, 4000, 6000)  # 1.5, 0.5 and 0.75 s at 8 kHz
    assert said.wav[:a].abs().max() == 0 and said.wav[a:b].abs().max() > 0.05
    plain = digits.say([3, 4], random.Random(1), vary=False, gap=(0.5, 0.5))
    assert torch.equal(rested(plain.wav, 8000, (1.0, 0.25)), said.wav)


def test_a_narrow_recording_gets_a_band_that_follows_its_loudness():
    for seed in range(6):
        wide = widened(tone(8000, 600.0), random.Random(seed))
        assert len(wide) == 16000
        below, above = band(wide, 16000, 0, 4000), band(wide, 16000, 4000, 8001)
        assert 10**-3.8 < above / below < 10**-0.8  # 10 to 35 dB
        assert band(wide[9000:], 16000, 4000, 8001) < 1e-3 * above


def test_a_wide_recording_loses_what_a_telephone_does_not_carry():
    rng, narrow = random.Random(0), 0
    sound = tone(16000, 600.0) + tone(16000, 6000.0)
    for _ in range(100):
        wav, rate = microphone(sound, 16000, rng)
        narrow += rate == 8000
        if rate == 8000:
            assert band(wav, 8000, 500, 700) > 0.98 * band(wav, 8000, 0, 4001)
        else:
            assert wav is sound
    assert 28 < narrow < 52
    assert microphone(sound, 22050, rng)[1] == 22050
