"""Audio search: clips with transcripts and descriptions, and a hit whose voice the answer takes on.

Source of the idea: arXiv 2507.16632 §3.1 and §5; index and schema are ours, the paper's are not published.

T samples
"""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache, partial
from itertools import count
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from gamut.generate.retrieval import Index
from gamut.generate.tools import Found, Tool, Toolbox, calculator, date_and_time, local_now, order_counter
from gamut.generate.voice import SHORTEST
from gamut.io.files import atomic_dir
from gamut.io.listing import listed
from gamut.io.media import duration, read_audio, write_audio

Read = Callable[[], tuple[Float[Tensor, " T"], int]]


@dataclass(frozen=True)
class Voice:
    """A clip that can be found. ``read`` gives its sound and rate when it is."""

    name: str
    description: str
    text: str
    read: Read

    @property
    def shown(self) -> str:
        """What the model reads of it."""
        parts = {"voice": self.description or self.name} | ({"text": self.text} if self.text else {})
        return json.dumps(parts, ensure_ascii=False)


def library(folder: str | Path) -> list[Voice]:
    """The clips of a folder with a table (``io.listing``); its column ``description`` says what a voice is like.

    Clips that cannot be read or are shorter than ``SHORTEST`` are left out, named in a warning.
    Raises:
        ValueError: as ``listed``; or not one clip can be read.
    """
    out, bad = [], []
    for file, text, labels in listed(folder, textless=True):
        try:
            if (seconds := duration(file)) < SHORTEST:
                raise ValueError(f"{file} is too short for a voice: {seconds:.2f} s of {SHORTEST}")
        except ValueError as error:
            bad.append(str(error))
            continue
        described = labels.get("description") or labels.get("speaker") or ""
        out.append(Voice(file.relative_to(folder).as_posix(), str(described), text, partial(read_audio, file)))
    if bad:
        warnings.warn(f"{len(bad)} clips of '{folder}' are left out: {'; '.join(bad[:3])}", stacklevel=2)
    if not out:
        raise ValueError(f"not one clip of '{folder}' can be read: {'; '.join(bad[:3])}")
    return out


def write_library(folder: str | Path, voices: Sequence[Voice]) -> None:
    """Clips and their table as a folder that ``library`` reads."""
    with atomic_dir(folder) as part:
        lines = []
        for voice in voices:
            wav, rate = voice.read()
            name = voice.name.replace("/", "_") + ".wav"
            write_audio(part / name, wav, rate)
            line = {"file": name, "text": voice.text, "description": voice.description}
            lines.append(json.dumps(line, ensure_ascii=False))
        (part / "transcripts.jsonl").write_text("\n".join(lines) + "\n")


def audio_search(voices: Sequence[Voice], *, seconds: float = 10.0) -> Tool:
    """Finds the clip that fits a description; the model gets its words and its sound.

    A clip that can no longer be read gives way to the next best.
    """


    @cache
    def index() -> Index:
        return Index([f"{voice.description} {voice.text} {voice.name}" for voice in voices])

    def run(query: str) -> Found | str:
        for i in index().best(query):
            try:
                wav, rate = voices[i].read()
            except (ValueError, OSError) as error:
                warnings.warn(f"clip {voices[i].name} was found but not read: {error}", stacklevel=2)
                continue
            return Found(voices[i].shown, wav, rate)
        return f"no voice found for {query[:80]!r}"

    wanted = {"type": "string", "description": "what the voice is like, or what is said"}
    parameters = {"type": "object", "properties": {"query": wanted}, "required": ["query"]}
    return Tool("audio_search", "Find a voice to answer in.", parameters, run, seconds)


def four_tools(
    voices: Sequence[Voice], menu: Mapping[str, Sequence[str]], *, clock: Callable[[], datetime] = local_now,
    number: Callable[[], int] | None = None,
) -> Toolbox:
    """Calculator, date, audio search and (with a menu) orders, told tersely: the small preset's tools. Orders are
    counted from 10, unless ``number`` says otherwise: a small model learned numbers of two digits."""
    counter = [order_counter(menu, number or count(10).__next__)] if menu else []
    tools = [calculator(), date_and_time(clock), audio_search(voices), *counter]
    return Toolbox([replace(tool, terse=True) for tool in tools])
