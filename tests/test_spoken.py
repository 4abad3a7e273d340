"""The world of spoken numbers: what is said is where it says, and conversations are woven right."""

import random

import pytest
import torch

from gamut.codecs.mel import hear, patches
from gamut.data.noise import not_speech, padded
from gamut.data.sources import Clip
from gamut.data.spoken import RATE, Digits, noisy, stretched
from gamut.data.talks import TASKS


def clips(rate: int = RATE) -> list[Clip]:
    """A tone per digit, 0.2 s: 200 Hz for 0, 300 Hz for 1 ..."""
    time = torch.arange(rate // 5) / rate
    return [
        Clip((6.2832 * (200 + 100 * d) * time).sin(), rate, str(d), speaker, labels={"digit": d})
        for d in range(10)
        for speaker in ("a", "b")
    ]


def test_each_digit_lies_where_its_span_says():
    said = Digits(clips()).say([3, 1, 4, 1], random.Random(0))
    for (start, end), digit in zip(said.spans, said.digits, strict=True):
        spectrum = torch.fft.rfft(said.wav[start:end])
        peak = float(spectrum.abs().argmax()) * RATE / (end - start)
        assert 0.85 < peak / (200 + 100 * digit) < 1.15  # speed varies by 13 %
    gaps = [b[0] - a[1] for a, b in zip(said.spans, said.spans[1:], strict=False)]
    assert min(gaps) > 0
    assert all(float(said.wav[a[1] : b[0]].abs().max()) == 0 for a, b in zip(said.spans, said.spans[1:], strict=False))


def test_the_same_seed_says_the_same():
    digits = Digits(clips())
    a, b = (digits.say([1, 2], random.Random(7)).wav for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(noisy(a, random.Random(3)), noisy(b, random.Random(3)))


def test_speakers_are_kept_apart():
    assert set(Digits(clips(), ("b",)).speakers) == {"b"}
    with pytest.raises(ValueError, match=r"no clip of the speakers \['c'\]; there are \['a', 'b'\]"):
        Digits(clips(), ("c",))


@pytest.mark.parametrize(
    ("name", "digits", "answer"),
    [("transcribe", (0, 7, 7), "077"), ("sum", (9, 9), "18"), ("difference", (2, 9), "7"), ("maximum", (4, 1), "4"),
     ("reverse", (1, 2, 3), "321")],
)  # fmt: skip
def test_answers_by_hand(name, digits, answer):
    assert {task.name: task for task in TASKS}[name].answer(digits) == answer


def test_sounds_that_say_nothing_are_finite():
    digits, rng = Digits(clips()), random.Random(0)
    for _ in range(60):
        wav = not_speech(digits, rng)
        assert len(wav) >= 0.2 * RATE * 0.99
        assert bool(wav.isfinite().all())


def test_padding_and_stretching():
    rows, lengths = padded([torch.ones(3), torch.ones(5)], multiple=4)
    assert rows.shape == (2, 8)
    assert lengths.tolist() == [3, 5]
    assert rows.sum(1).tolist() == [3, 5]
    assert len(stretched(torch.ones(100), 1.5)) == 150


def test_as_many_patches_as_the_front_end_counts():
    mel = hear(torch.randn(RATE), RATE)
    assert patches(mel.shape[-1]) == 13
