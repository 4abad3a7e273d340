"""What an encoder learns to hear from: labels where the sounds are, orders by people and by a machine."""

import math
import random
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_spoken import clips

from gamut.data import machine
from gamut.data.disguise import disguised, warped
from gamut.data.hearing import digit_frames, lexicon, order_slots, values
from gamut.data.machine import helped, others, worded
from gamut.data.orders import Orders
from gamut.data.sources import Clip
from gamut.data.spoken import Digits
from gamut.io.runs import Run
from gamut.models.audio_encoder import AudioEncoder, AudioEncoderConfig
from gamut.train.hearing import Slots, learn_to_hear, spelled

SLOTS = [{"coffeeDrink": "latte", "size": "small"}, {"coffeeDrink": "mocha"}]


def orders(seconds: float = 0.5) -> Orders:
    """Tones: a low one is a latte, a high one a mocha."""
    time = torch.arange(int(16000 * seconds)) / 16000
    wavs = [(6.2832 * height * time).sin() for height in (300, 1500)]
    return Orders([Clip(wavs[i % 2], 16000, "", labels={"slots": SLOTS[i % 2]}) for i in range(4)])


def test_frames_are_labelled_where_the_digits_are():
    """Who speaks is learned of people as they are: not of the disguised."""
    digits, strangers = Digits(clips()), 0
    for index in range(12):
        batch = digit_frames(digits, None, 4, index, 0)
        assert len(batch.mels) == 4 and batch.digits.shape == (4, (batch.mels.shape[-1] + 1) // 4)
        for row, who, length in zip(batch.digits, batch.speakers, batch.lens.tolist(), strict=True):
            used = (length + 1) // 4
            assert set(row[used:].tolist()) <= {-100} and set(who[used:].tolist()) <= {-100}
            assert int(((row[:used] >= 0) & (row[:used] < 10)).sum()) >= 4  # 0.2 s of tone: at least 4 frames of 40 ms
            assert torch.equal(who[:used] == 2, row[:used] == 10)  # nobody speaks where nothing is said
            said = who[:used][row[:used] < 10]
            assert bool((said == -100).all()) or bool((said >= 0).all())
            strangers += int(said[0] == -100)
    assert 24 < strangers < 44  # 7 of 10 are disguised: 34 of 48


def test_nobody_of_the_others_is_known():
    digits, others = Digits(clips()), Digits([replace(clip, speaker="") for clip in clips()])
    batches = [digit_frames(digits, others, 1, index, 3) for index in range(60)]
    known = sum(bool(((b.speakers >= 0) & (b.speakers < 2)).any()) for b in batches)
    assert 5 < known < 22  # 0.7 x 0.3 of 60 is 12.6


def test_a_disguise_by_hand():
    """A throat: bin m takes what lay at m x factor, between two bins by their mean. A microphone: one gain a bin."""
    mel = torch.arange(6.0)[:, None].repeat(1, 3)
    assert warped(mel, 1.25)[:, 0].tolist() == [0.0, 1.25, 2.5, 3.75, 5.0, 5.0]
    assert torch.equal(warped(mel, 1.0), mel)
    flat = disguised(torch.zeros(128, 4), random.Random(0))
    assert torch.equal(flat, flat[:, :1].expand(-1, 4)) and 0.02 < float(flat.std()) < 0.3


def test_slots_by_hand():
    named = values(orders())
    assert named == {"coffeeDrink": ["latte", "mocha"], "size": ["small"]}
    found = order_slots(orders(), named, {}, 8, 0, 0).slots.tolist()
    assert {tuple(row) for row in found} == {(1, 1), (2, 0)}
    strange = Orders([Clip(torch.randn(8000), 16000, "", labels={"slots": {"coffeeDrink": "tea"}})])
    assert order_slots(strange, named, {}, 1, 0, 0).slots.tolist() == [[-100, 0]]


def test_words_are_those_that_are_written_down():
    """A recording of an order says nothing of its words; a digit is itself one."""
    some = orders()
    written = Orders([*some.clips, replace(some.clips[0], text="a small latte")])
    places = lexicon(written)
    assert places["zero"] == 1 and places["nine"] == 10 and len(lexicon(None)) == 10
    assert [places[word] for word in ("a", "latte", "small")] == [11, 12, 13]
    rows = order_slots(written, values(written), places, 40, 0, 0).words.tolist()
    assert {tuple(row) for row in rows} == {(0, 0, 0), (11, 13, 12)}
    assert order_slots(some, values(some), places, 4, 0, 0).words.shape == (4, 0)
    batch = digit_frames(Digits(clips()), None, 4, 0, 0)
    for said, frames in zip(batch.words, batch.digits, strict=True):
        assert set((said - 1).tolist()) == set(frames[(frames >= 0) & (frames < 10)].tolist())


def test_words_in_their_order_by_hand():
    """Three steps, one word: of the 27 paths, 6 spell it. Clips without words count for nothing."""
    even = torch.zeros(2, 3, 3)
    loss = spelled(even, torch.tensor([3, 3]), torch.tensor([[1], [0]]))
    assert loss.item() == pytest.approx(-math.log(6 / 27), rel=1e-5)
    assert spelled(even, torch.tensor([3, 3]), torch.zeros(2, 1, dtype=torch.long)).item() == 0
    twice = spelled(even[:1], torch.tensor([3]), torch.tensor([[2, 2]]))  # the one path: the word, nothing, the word
    assert twice.item() == pytest.approx(-math.log(1 / 27) / 2, rel=1e-5)


def test_orders_of_like_length_share_a_batch():
    many = Orders([Clip(torch.randn(8000 + 800 * i), 16000, "", labels={"slots": {"coffeeDrink": "tea"}})
                   for i in range(40)])  # fmt: skip
    spread = []
    for index in range(8):
        lens = order_slots(many, values(many), {}, 8, index, 0).lens
        spread.append(int(lens.max() - lens.min()))
    assert sum(spread) / 8 < 0.5 * 200  # lengths differ by 195 frames in all, and by up to 12 % in speed


def test_an_encoder_learns_both(tmp_path):
    torch.manual_seed(0)
    encoder, run = AudioEncoder(AudioEncoderConfig(width=32, layers=1, heads=2, ffn=64)), Run.create(tmp_path, "r", {})
    learn_to_hear(encoder, Digits(clips()), None, orders(), run, steps=200, lr=3e-3, batch=4, seed=1)
    curves = run.curves()["hear"]
    ordered, right = ([value for _, value in curves[name]] for name in ("order_loss", "accuracy"))
    assert sum(ordered[-5:]) < 0.6 * sum(ordered[:5]) and sum(right[-10:]) / 10 > 0.6


def test_what_is_behind_a_clip_does_not_count():
    torch.manual_seed(0)
    slots, x = Slots(8, [3]), torch.randn(1, 6, 8)
    longer = torch.cat([x, torch.randn(1, 3, 8)], 1)
    assert torch.allclose(slots(x, torch.tensor([6]))[0], slots(longer, torch.tensor([6]))[0], atol=1e-6)


def test_a_machine_says_what_the_slots_hold(tmp_path, monkeypatch):
    monkeypatch.setenv("GAMUT_CACHE", str(tmp_path))
    order = {"coffeeDrink": "iced mocha", "size": "large", "roast": "dark roast", "sugarAmount": "some sugar"}
    for seed in range(20):
        said = worded(order, random.Random(seed))
        assert all(value in said for value in order.values()) and said.index("large") < said.index("iced mocha")
    with warnings.catch_warnings(record=True) as warned:
        more = helped(orders(), 3)
    if warned:
        pytest.skip(str(warned[0].message))
    made = more.clips[8:]
    assert len(helped(orders(), 15).clips) == 4 * 4 + 15  # as many recordings as a machine's, about
    assert len(made) == 3 and all(clip.rate == 16000 and len(clip.wav) > 8000 for clip in made)
    assert all(clip.labels["slots"]["coffeeDrink"] in ("latte", "mocha") for clip in made)
    assert torch.equal(helped(orders(), 3).clips[9].wav, made[1].wav)  # kept, since it is never said twice alike
    digits = others(2)
    assert [len(ids) for ids in digits.by_digit.values()] == [2] * 10 and digits.names == [""]


def test_two_runs_that_begin_together_learn_from_the_same_sound(tmp_path, monkeypatch):
    """The machine says nothing twice alike: what the faster one kept counts for both."""
    rival: list = []

    def said(what, words, rate):
        if not rival:
            rival.append(None)  # it begins while this one speaks, and is done before
            rival[0] = machine.spoken("digits", lines, 8000)
        return {"wav_int16": np.random.randint(-99, 99, 40).astype(np.int16), "length": np.array([20, 20])}

    lines = [("one", {"digit": 1}), ("two", {"digit": 2})]
    monkeypatch.setenv("GAMUT_CACHE", str(tmp_path))
    monkeypatch.setattr(machine, "_said", said)
    mine = machine.spoken("digits", lines, 8000)
    assert all(torch.equal(a.wav, b.wav) for a, b in zip(mine, rival[0], strict=True)) and len(mine) == 2


def test_without_a_machine_people_have_to_do(monkeypatch, tmp_path):
    def missing(*arguments, **options):
        raise ImportError("no espeak-ng")

    monkeypatch.setenv("GAMUT_CACHE", str(tmp_path))
    monkeypatch.setattr("gamut.io.voices.say", missing)
    with pytest.warns(UserWarning, match="no espeak-ng. Going on with the recorded orders alone"):
        assert len(helped(orders())) == 2 * 4
    with pytest.warns(UserWarning, match="Going on with the recorded digits alone"):
        assert others() is None


def test_the_slots_compute_where_their_input_is():
    slots = Slots(8, [3, 4]).to("meta")
    made = slots(torch.zeros(2, 5, 8, device="meta"), torch.zeros(2, dtype=torch.long, device="meta"))
    assert [(logits.shape, logits.is_meta) for logits in made] == [((2, 3), True), ((2, 4), True)]
