"""What an encoder learns to hear from: labels where the sounds are, orders by people and by a machine."""

import random

import pytest
import torch
from test_spoken import clips

from gamut.data.hearing import digit_frames, order_slots, values
from gamut.data.machine import helped, spoken_orders, worded
from gamut.data.orders import Orders
from gamut.data.sources import Clip
from gamut.data.spoken import Digits
from gamut.io.runs import Run
from gamut.models.audio_encoder import AudioEncoder, AudioEncoderConfig
from gamut.train.hearing import Slots, learn_to_hear

SLOTS = [{"coffeeDrink": "latte", "size": "small"}, {"coffeeDrink": "mocha"}]


def orders(seconds: float = 0.5) -> Orders:
    """Tones: a low one is a latte, a high one a mocha."""
    time = torch.arange(int(16000 * seconds)) / 16000
    wavs = [(6.2832 * height * time).sin() for height in (300, 1500)]
    return Orders([Clip(wavs[i % 2], 16000, "", labels={"slots": SLOTS[i % 2]}) for i in range(4)])


def test_frames_are_labelled_where_the_digits_are():
    digits = Digits(clips())
    batch = digit_frames(digits, 4, 0, 0)
    assert len(batch.mels) == 4 and batch.digits.shape == (4, (batch.mels.shape[-1] + 1) // 4)
    for row, who, length in zip(batch.digits, batch.speakers, batch.lens.tolist(), strict=True):
        used = (length + 1) // 4
        assert set(row[used:].tolist()) <= {-100} and set(who[used:].tolist()) <= {-100}
        assert int(((row[:used] >= 0) & (row[:used] < 10)).sum()) >= 4  # 0.2 s of tone is at least 4 frames of 40 ms
        assert torch.equal(who[:used] == 2, row[:used] == 10)  # nobody speaks where nothing is said


def test_slots_by_hand():
    named = values(orders())
    assert named == {"coffeeDrink": ["latte", "mocha"], "size": ["small"]}
    found = order_slots(orders(), named, 8, 0, 0).slots.tolist()
    assert {tuple(row) for row in found} == {(1, 1), (2, 0)}
    strange = Orders([Clip(torch.randn(8000), 16000, "", labels={"slots": {"coffeeDrink": "tea"}})])
    assert order_slots(strange, named, 1, 0, 0).slots.tolist() == [[-100, 0]]


def test_orders_of_like_length_share_a_batch():
    many = Orders([Clip(torch.randn(8000 + 800 * i), 16000, "", labels={"slots": {"coffeeDrink": "tea"}})
                   for i in range(40)])  # fmt: skip
    spread = []
    for index in range(8):
        lens = order_slots(many, values(many), 8, index, 0).lens
        spread.append(int(lens.max() - lens.min()))
    assert sum(spread) / 8 < 0.5 * 200  # lengths differ by 195 frames in all, and by up to 12 % in speed


def test_an_encoder_learns_both(tmp_path):
    torch.manual_seed(0)
    encoder, run = AudioEncoder(AudioEncoderConfig(width=32, layers=1, heads=2, ffn=64)), Run.create(tmp_path, "r", {})
    learn_to_hear(encoder, Digits(clips()), orders(), run, steps=120, lr=3e-3, batch=4, seed=1)
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
    try:
        made = spoken_orders(SLOTS, 3)
    except ImportError as error:
        pytest.skip(str(error))
    assert all(clip.labels["slots"]["coffeeDrink"] in ("latte", "mocha") and len(clip.wav) > 8000 for clip in made)
    assert torch.equal(spoken_orders(SLOTS, 3)[1].wav, made[1].wav)  # kept, since it is never said twice alike
    assert len(helped(orders(), 3)) == 2 * 4 + 3


def test_without_a_machine_people_have_to_do(monkeypatch):
    def missing(*arguments):
        raise ImportError("no espeak-ng")

    monkeypatch.setattr("gamut.data.machine.spoken_orders", missing)
    with pytest.warns(UserWarning, match="no espeak-ng. Going on with the recorded orders alone"):
        assert len(helped(orders())) == 4
