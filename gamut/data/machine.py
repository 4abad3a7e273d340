"""What espeak-ng says, in more voices than were recorded: digits, and coffee orders put together from the slots of
others. It only helps to learn; nothing is ever examined on it. Ours.
"""

import hashlib
import json
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from gamut.data.orders import SLOTS, Orders
from gamut.data.sources import Clip
from gamut.data.spoken import Digits
from gamut.io import fsdd, voices
from gamut.io.progress import counting

OPENINGS = ("can i get", "can i have", "could i have", "give me", "get me", "i'd like", "i want", "i will have",
            "make me", "may i have", "please make me", "prepare")  # fmt: skip
ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbcwmd", "en-029")
SPEAKERS = (*(f"m{i}" for i in range(1, 8)), *(f"f{i}" for i in range(1, 6)))
Line = tuple[str, dict[str, Any]]  # words, and the labels of the clip


def helped(orders: Orders, count: int = 2000) -> Orders:
    """``count`` orders spoken by a machine, and about as often a recording: each as many times, at least twice."""
    rng, drinks = random.Random("orders by machine"), sorted({order[SLOTS[0]] for order in orders.slots})
    lines: list[Line] = []
    for _ in range(count):
        taken = {name: rng.choice(orders.slots).get(name, "") for name in SLOTS[1:]}
        order = {SLOTS[0]: rng.choice(drinks)} | {name: value for name, value in taken.items() if value}
        lines.append((worded(order, rng), {"slots": order}))
    said = spoken("orders", lines, orders.rate)
    return Orders([*orders.clips * max(2, round(len(said) / len(orders))), *said])


def others(each: int = 180) -> Digits | None:
    """Digits, ``each`` as often in as many voices; None without espeak-ng."""
    lines: list[Line] = [(word, {"digit": digit}) for digit, word in enumerate(fsdd.DIGITS)]
    said = spoken("digits", lines * each, 8000)
    return Digits(said) if said else None


def spoken(what: str, lines: Sequence[Line], rate: int) -> list[Clip]:
    """Each line by a voice drawn at random; kept in the cache, since espeak-ng does not say a thing twice alike.
    Nothing, and a warning, without espeak-ng."""
    known = hashlib.sha256(json.dumps([lines, rate]).encode()).hexdigest()[:12]
    place = fsdd.cache_root() / f"espeak_{what}_{known}.npz"
    try:
        if not place.exists():
            made = _said(what, [words for words, _ in lines], rate)
            if not place.exists():  # a run beside this one may have been faster: both learn from its sound
                fsdd.save(place, made)
    except ImportError as error:
        warnings.warn(f"{error}. Going on with the recorded {what} alone.", stacklevel=2)
        return []
    with np.load(place) as file:
        parts = np.split(file["wav_int16"].astype(np.float32) / 32768, file["length"].cumsum()[:-1])
    return [Clip(torch.from_numpy(wav), rate, words, name=f"machine {i}", labels=labels)
            for i, (wav, (words, labels)) in enumerate(zip(parts, lines, strict=True))]  # fmt: skip


def _said(what: str, texts: Sequence[str], rate: int) -> dict[str, np.ndarray]:
    rng, wavs = random.Random(f"{what} by machine"), []
    with counting(f"{what} for a machine to speak", len(texts)) as seen:
        for text in texts:
            voice = f"{rng.choice(ACCENTS)}+{rng.choice(SPEAKERS)}"
            wav = voices.say(text, rate=rate, voice=voice, speed=rng.uniform(0.7, 1.3), pitch=rng.randint(5, 95))
            wavs.append((wav.clamp(-1, 1) * 32767).to(torch.int16).numpy())
            seen.step()
    return {"wav_int16": np.concatenate(wavs), "length": np.array([len(wav) for wav in wavs])}


def worded(order: Mapping[str, str], rng: random.Random) -> str:
    """How somebody might say it.

    >>> worded({"coffeeDrink": "latte", "size": "small", "milkAmount": "some milk"}, random.Random(1))
    'get me a small latte with some milk'
    """
    before = [order[name] for name in ("size", "roast", "numberOfShots") if name in order]
    behind = [order[name] for name in ("milkAmount", "sugarAmount") if name in order]
    if rng.random() < 0.5:
        rng.shuffle(before)
    if rng.random() < 0.4:
        behind.reverse()
    said = [rng.choice(OPENINGS), rng.choice(("a", "a", "an", "")), *before, order["coffeeDrink"]]
    said += ["with", " and ".join(behind)] if behind else []
    return " ".join(word for word in [*said, "please" if rng.random() < 0.2 else ""] if word)
