"""Spoken coffee orders and what was ordered, dealt into folds."""

import random
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from gamut.codecs.mel import levelled
from gamut.data.sources import Clip
from gamut.data.spoken import stretched

SLOTS = ("coffeeDrink", "size", "roast", "numberOfShots", "milkAmount", "sugarAmount")  # the set's own names
FOLDS = 5


class Orders:
    """Orders held in memory, said at one loudness.

    Args:
        clips: with ``labels["slots"]``, name -> value (``corpora.coffee``); of one sampling rate.
    """

    def __init__(self, clips: Sequence[Clip]):
        if not len(clips):
            raise ValueError("no orders; give recordings with labels['slots'] (corpora.coffee)")
        self.clips = list(clips)
        self.rate = self.clips[0].rate
        self.slots = [slots(clip) for clip in self.clips]
        self.written = [i for i, clip in enumerate(self.clips) if clip.text]  # those whose words are known

    def __len__(self) -> int:
        return len(self.clips)

    def keep(self, which: Sequence[int]) -> "Orders":
        """Only these recordings, by their place."""
        return Orders([self.clips[i] for i in which])

    def fold(self, number: int, folds: int = FOLDS, seed: int = 0) -> tuple["Orders", "Orders"]:
        """(what to train on, what to test on) of one fold of a cross-validation; ``seed`` fixes the deal.

        The set does not say who speaks, so one person may be on both sides.
        """
        if not 0 <= number < folds:
            raise ValueError(f"fold must be 0 to {folds - 1}, got {number}")
        deal = random.Random(f"orders {seed}").sample(range(len(self)), len(self))
        return self.keep(sorted(set(deal) - set(deal[number::folds]))), self.keep(sorted(deal[number::folds]))

    def say(self, which: int, rng: random.Random | None = None) -> Float[Tensor, " T"]:
        """One order; with ``rng`` varied in speed (12 %, pitch goes with it) and loudness (5 dB)."""
        wav = levelled(self.clips[which].wav)
        return wav if rng is None else stretched(wav, rng.uniform(0.88, 1.12)) * 10 ** rng.uniform(-0.25, 0.25)


def slots(clip: Clip) -> dict[str, str]:
    """What was ordered, in the order of ``SLOTS``, without blanks around the values.

    >>> import torch
    >>> slots(Clip(torch.zeros(1), 16000, "", labels={"slots": {"milkAmount": " soy milk", "coffeeDrink": "latte"}}))
    {'coffeeDrink': 'latte', 'milkAmount': 'soy milk'}
    """
    given = {name: str(value).strip() for name, value in clip.labels["slots"].items()}
    return {name: given[name] for name in (*SLOTS, *sorted(set(given) - set(SLOTS))) if name in given}


def menu(orders: Orders, most: int = 10) -> dict[str, list[str]]:
    """Slot -> its values, most frequent first; [] where there are more than ``most``: free text."""
    found: dict[str, dict[str, int]] = {}
    for order in orders.slots:
        for name, value in order.items():
            found.setdefault(name, {})[value] = found.get(name, {}).get(value, 0) + 1
    ranked = {name: sorted(counts, key=lambda v: (-counts[v], v)) for name, counts in found.items()}
    return {name: ranked[name] if len(ranked[name]) <= most else [] for name in SLOTS if name in ranked}
