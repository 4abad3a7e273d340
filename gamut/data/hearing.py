"""What an encoder learns to hear from: which digit is being said and by whom, moment by moment; what is ordered; and
the words, where they are known.

N clips · M mel bins · F mel frames (100 a second) · T steps of the encoder (25 a second) · S slots of an order
W words of a clip
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gamut.codecs.mel import hear, pad_mels
from gamut.data.disguise import disguised, hidden
from gamut.data.load import alike
from gamut.data.orders import Orders
from gamut.data.room import Rest, microphone, rested, silences
from gamut.data.spoken import RATE, Digits, noisy
from gamut.io.fsdd import DIGITS

STEP = RATE // 25  # samples of a recording of digits per step of the encoder
OTHERS, SHARE = 0.3, 0.7  # of batches of digits that others speak; of clips that are disguised. Ours
POOL = 4  # batches of orders drawn together, so that clips of one length can be put side by side; ours


class Frames(NamedTuple):
    """Log-mels, their frames, and per step the digit (10: none) and the speaker (the last class: nobody; -100: somebody
    disguised); -100 behind a clip's end. ``words`` are places in ``lexicon``, 0 behind the last."""

    mels: Float[Tensor, "N M F"]
    lens: Int[Tensor, " N"]
    digits: Int[Tensor, "N T"]
    speakers: Int[Tensor, "N T"]
    words: Int[Tensor, "N W"]


class Ordered(NamedTuple):
    """Log-mels, their frames, for every slot the class of its value (0: not mentioned; -100: never seen), and the words
    as in ``Frames``: none where nobody wrote them down."""

    mels: Float[Tensor, "N M F"]
    lens: Int[Tensor, " N"]
    slots: Int[Tensor, "N S"]
    words: Int[Tensor, "N W"]


def digit_frames(digits: Digits, others: Digits | None, size: int, index: int, seed: int) -> Frames:
    """Batch number ``index``: noisy strings of digits, each digit by somebody else or all by one; of ``others`` nobody
    is known."""
    rng = random.Random(f"hear {seed} {index}")
    count, names = rng.choice((1, 2, 3, 4, 6)), digits.names
    given = others if others and rng.random() < OTHERS else digits
    mels, spans, words = [], [], []
    for _ in range(size):
        one = rng.choice(given.names) if rng.random() < 0.5 else ""
        gap, rest = silences(rng)
        said = given.say([rng.randrange(10) for _ in range(count)], rng, gap=gap, rest=rest, speaker=one)
        wav, rate = microphone(said.wav, RATE, rng)
        mel, strange = hear(noisy(wav, rng, -4.5, -1.6), rate), rng.random() < SHARE
        mels.append(disguised(mel, rng) if strange else mel)
        who = [-100 if strange or given is others else names.index(name) for name in said.speakers]
        spans.append(list(zip(said.spans, said.digits, who, strict=True)))
        words.append([digit + 1 for digit in said.digits])
    mels_NMF, lens_N = pad_mels(mels)
    digits_NT = torch.full((size, (mels_NMF.shape[-1] + 1) // 4), -100)
    speakers_NT = digits_NT.clone()
    for row, (length, parts) in enumerate(zip(lens_N.tolist(), spans, strict=True)):
        end = (length + 1) // 4
        digits_NT[row, :end], speakers_NT[row, :end] = 10, len(names)
        for (a, b), digit, speaker in parts:
            place = slice(round(a / STEP), min(end, max(round(b / STEP), round(a / STEP) + 1)))
            digits_NT[row, place], speakers_NT[row, place] = digit, speaker
    return Frames(mels_NMF, lens_N, digits_NT, speakers_NT, torch.tensor(words))


def lexicon(orders: Orders | None) -> dict[str, int]:
    """Word -> its place, from 1: the digits, then the words of orders that are written down."""
    written = {word for clip in orders.clips for word in clip.text.split()} if orders else set()
    return {word: place for place, word in enumerate((*DIGITS, *sorted(written - set(DIGITS))), 1)}


def values(orders: Orders) -> dict[str, list[str]]:
    """Slot -> the values it takes in these orders, in the order of the alphabet; class 0 is none of them."""
    found: dict[str, set[str]] = {}
    for slots in orders.slots:
        for name, value in slots.items():
            found.setdefault(name, set()).add(value)
    return {name: sorted(found[name]) for name in sorted(found)}


def order_slots(
    orders: Orders, named: dict[str, list[str]], places: dict[str, int], size: int, index: int, seed: int
) -> Ordered:
    """Batch number ``index``: noisy orders with bands and moments hidden, of like length among ``POOL`` batches."""
    pool, place = divmod(index, POOL)
    deal, rng = random.Random(f"hear orders {seed} pool {pool}"), random.Random(f"hear orders {seed} {index}")
    drawn = [(which, silences(deal)[1]) for which in deal.choices(range(len(orders)), k=size * POOL)]
    mels, labels, words = [], [], []

    def length(one: tuple[int, Rest]) -> float:
        return len(orders.clips[one[0]].wav) / orders.rate + sum(one[1])

    for which, rest in alike(drawn, size, length, deal)[place]:
        said = rested(orders.say(which, rng), orders.rate, rest)
        wav, rate = microphone(said, orders.rate, rng)
        mel = hear(noisy(wav, rng, -4.5, -1.6), rate)
        mels.append(hidden(disguised(mel, rng) if rng.random() < SHARE else mel, rng))
        labels.append([_place(named[name], orders.slots[which].get(name)) for name in named])
        words.append(torch.tensor([places[word] for word in orders.clips[which].text.split()], dtype=torch.long))
    return Ordered(*pad_mels(mels), torch.tensor(labels), pad_sequence(words, batch_first=True))


def _place(values: Sequence[str], value: str | None) -> int:
    return 0 if value is None else values.index(value) + 1 if value in values else -100
