"""Conversations of the kind people bring to fine-tuning, made of recordings of single digits."""

import json
import random
from pathlib import Path

from gamut.data import sources
from gamut.data.spoken import RATE, Digits
from gamut.io.files import atomic_write
from gamut.io.media import write_audio

REQUEST = "Sort the digits."  # something the shipped model was not taught


def example(folder: Path, split: str, count: int, seed: int) -> Path:
    """A folder of ``count`` conversations: a request that is new, one to four digits heard, written from the
    smallest to the largest.

    Args:
        split: which recordings, as ``sources.digits`` names them.
    """
    digits, rng, lines = Digits(sources.digits(split)), random.Random(f"example {split} {seed}"), []
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        said = digits.say([rng.randrange(10) for _ in range(rng.randint(1, 4))], rng)
        write_audio(folder / f"{number:04d}.wav", said.wav, RATE)
        heard = [{"type": "audio", "file": f"{number:04d}.wav"}]
        answer = {"role": "assistant", "content": "".join(map(str, sorted(said.digits)))}
        lines.append({"messages": [{"role": "system", "content": REQUEST}, {"role": "user", "content": heard}, answer]})
    atomic_write(folder / "conversations.jsonl", "\n".join(map(json.dumps, lines)) + "\n")
    return folder
