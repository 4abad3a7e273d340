"""Coffee orders put together from the slots of others and spoken by espeak-ng: words heard in more voices than were
recorded. They only help to learn; nothing is ever examined on them. Ours.
"""

import hashlib
import json
import random
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from gamut.data.orders import SLOTS, Orders
from gamut.data.sources import Clip, Speech
from gamut.io import fsdd, voices
from gamut.io.progress import counting

RATE = 16000
OPENINGS = ("can i get", "can i have", "could i have", "give me", "get me", "i'd like", "i want", "i will have",
            "make me", "may i have", "please make me", "prepare")  # fmt: skip
READERS = ("en-us", "en-us+f1", "en-us+f2", "en-us+f3", "en-us+m1", "en-us+m5", "en-us+m7", "en+f5", "en+m2", "en+m3",
           "en+m4", "en-gb-scotland+f2", "en-gb-scotland+f4", "en-gb-x-rp+f3")  # fmt: skip


def spoken_orders(like: Sequence[Mapping[str, str]], count: int = 900, seed: int = 0) -> Speech:
    """``count`` orders whose slots are each taken from a random one of ``like``; kept in the cache, since espeak-ng
    does not say a thing twice alike.

    Raises:
        ImportError: espeak-ng is not installed.
    """
    known = hashlib.sha256(json.dumps([dict(one) for one in like]).encode()).hexdigest()[:12]
    place = fsdd.cache_root() / f"espeak_orders_{known}_{count}_{seed}.npz"
    if not place.exists():
        _speak(place, like, count, seed)
    with np.load(place) as file:
        samples, lengths, slots = file["wav_int16"], file["length"], json.loads(str(file["slots"]))
    starts = lengths.cumsum() - lengths

    def read(i: int) -> Clip:
        wav = torch.from_numpy(samples[starts[i] : starts[i] + lengths[i]].astype(np.float32)) / 32768
        return Clip(wav, RATE, "", name=f"machine {i}", labels={"slots": slots[i]})

    return Speech("coffee orders", voices.ORIGIN, "made here", read, range(count))


def _speak(place: Path, like: Sequence[Mapping[str, str]], count: int, seed: int) -> None:
    rng, wavs, slots = random.Random(f"orders by machine {seed}"), [], []
    drinks = sorted({order[SLOTS[0]] for order in like})
    with counting("orders for a machine to speak", count) as seen:
        for _ in range(count):
            taken = {name: rng.choice(like).get(name, "") for name in SLOTS[1:]}
            slots.append({SLOTS[0]: rng.choice(drinks)} | {name: value for name, value in taken.items() if value})
            wav = voices.say(worded(slots[-1], rng), rate=RATE, voice=rng.choice(READERS),
                             speed=rng.uniform(0.75, 1.15), pitch=rng.randint(15, 85))  # fmt: skip
            wavs.append((wav.clamp(-1, 1) * 32767).to(torch.int16).numpy())
            seen.step()
    lengths, told = np.array([len(wav) for wav in wavs]), np.array(json.dumps(slots))
    fsdd.save(place, {"wav_int16": np.concatenate(wavs), "length": lengths, "slots": told})


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


def helped(orders: Orders, count: int = 900) -> Orders:
    """Every recording twice, among ``count`` orders spoken by a machine; the recordings alone without espeak-ng."""
    try:
        spoken = spoken_orders(orders.slots, count)
    except ImportError as error:
        warnings.warn(f"{error}. Going on with the recorded orders alone.", stacklevel=2)
        return orders
    return Orders([*orders.clips, *orders.clips, *spoken])
