"""Speech to train on and test with: known sets by name, your own by folder.

Known sets are looked for under ``$GAMUT_DATA``, then in the cache (``$GAMUT_CACHE``, default ~/.cache/gamut), and only
then fetched from their public home. A ``Speech`` says where it comes from, so that reports can.
"""

import csv
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from gamut.io import fsdd, voices
from gamut.io.fsdd import DIGITS as DIGITS
from gamut.io.media import read_audio

TAKES = {"test": range(0, 5), "validation": range(5, 8), "train": range(8, 50)}  # test: the set's own split
TRANSCRIPTS = ("transcripts.csv", "transcripts.tsv", "transcripts.jsonl", "metadata.csv")
FILE_COLUMNS, TEXT_COLUMNS = ("file", "file_name", "path", "audio", "wav", "id"), ("text", "transcript", "sentence")
SUFFIXES = ("", ".wav", ".flac", ".ogg", ".mp3")



@dataclass(frozen=True)
class Clip:
    """One utterance: wav (T,) float32 at ``rate`` Hz, what is said, who says it, and whatever else is known."""

    wav: Tensor
    rate: int
    text: str
    speaker: str = ""
    name: str = ""
    labels: dict[str, Any] = field(default_factory=dict)


class Speech(Sequence[Clip]):
    """A set of utterances, read one by one as they are asked for.

    ``origin`` is the sentence a report must print about where the sound is from; ``licence`` goes with it.
    """

    def __init__(self, name: str, origin: str, licence: str, read: Callable[[int], Clip], order: Sequence[int]):
        self.name, self.origin, self.licence = name, origin, licence
        self._read, self._order = read, order

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> "Speech": ...

    def __getitem__(self, index: int | slice) -> "Clip | Speech":
        if isinstance(index, slice):
            return Speech(self.name, self.origin, self.licence, self._read, self._order[index])
        return self._read(self._order[index])


def digits(split: str = "train", source: str = "auto") -> Speech:
    """Spoken digits 0-9 at 8 kHz; ``clip.text`` is the numeral, ``clip.labels`` hold ``digit`` and ``take``.

    Args:
        split: ``test`` (takes 0-4, 300 recordings), ``validation`` (takes 5-7, 180) or ``train`` (the other 2520).
        source: ``recordings`` (found or downloaded, else an error), ``synthetic`` (espeak-ng), or ``auto``: recordings
            if they can be had, else synthetic with a warning. ``origin`` tells which.
    Raises:
        ValueError: for another split or source, or a copy whose samples are not the published ones.
        ConnectionError: for ``recordings`` with neither a copy nor a network.
    """
    if split not in TAKES:
        raise ValueError(f"split must be one of {', '.join(TAKES)}, got {split!r}")
    if source not in ("auto", "recordings", "synthetic"):
        raise ValueError(f"source must be 'auto', 'recordings' or 'synthetic', got {source!r}")
    origin, licence = fsdd.ORIGIN, fsdd.LICENCE
    if source != "synthetic":
        try:
            arrays = fsdd.recordings()
        except ConnectionError as error:
            if source == "recordings":
                raise
            warnings.warn(f"{error} Going on with {voices.ORIGIN}.", stacklevel=2)
            source = "synthetic"
    if source == "synthetic":
        arrays, origin, licence = fsdd.synthetic(), voices.ORIGIN, "made here"
    wav, ends = arrays["wav_int16"], np.cumsum(arrays["length"])

    def read(i: int) -> Clip:
        samples = torch.from_numpy(wav[ends[i] - arrays["length"][i]:ends[i]].astype(np.float32)) / 32768
        digit, speaker, take = int(arrays["digit"][i]), str(arrays["speaker"][i]), int(arrays["take"][i])
        return Clip(samples, 8000, str(digit), speaker, f"{digit}_{speaker}_{take}", {"digit": digit, "take": take})

    return Speech("digits", origin, licence, read, np.isin(arrays["take"], TAKES[split]).nonzero()[0].tolist())


def folder(path: str | Path, rate: int | None = None, *, origin: str = "", licence: str = "not stated") -> Speech:
    """Your own recordings: a folder with sound files and one file of transcripts.

    Args:
        path: holds transcripts.csv or .tsv (a header with a file and a text column), transcripts.jsonl (the same as
            keys), or metadata.csv as in LJ Speech (``id|raw text|normalised text``, no header; or with a header and
            commas). Files are named relative to the folder or its ``wavs``, suffix optional. Columns ``speaker`` and
            others are kept.
        rate: resample to this many Hz; None keeps each file's own.
        origin: what reports say about the recordings; default names the folder.
    Raises:
        ValueError: no folder, no or an empty transcript file, a line without file or text, a line that names a missing
            clip. All are found at once, by line, before any sound is read.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"'{path}' is not a folder; give one that holds sound files and {', '.join(TRANSCRIPTS)}")
    table = next((path / name for name in TRANSCRIPTS if (path / name).exists()), None)
    if table is None:
        raise ValueError(f"'{path}' holds no transcripts; allowed: {', '.join(TRANSCRIPTS)}; write one line per clip, "
                         f"e.g. transcripts.csv with the columns file,text")
    rows = [_row(path, table, line, entry) for line, entry in _entries(table)]
    if not rows:
        raise ValueError(f"'{table}' lists no clips; write one line per clip")

    def read(i: int) -> Clip:
        file, text, labels = rows[i]
        wav, found = read_audio(file, rate)
        return Clip(wav, found, text, str(labels.get("speaker", "")), file.stem, labels)

    return Speech(path.name, origin or f"recordings in {path}", licence, read, range(len(rows)))


def _entries(table: Path) -> list[tuple[int, dict[str, Any]]]:
    """Line number and columns of each line of a transcript file."""
    lines = table.read_text(encoding="utf-8-sig").splitlines(keepends=True)
    if table.suffix == ".jsonl":
        out = []
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line) if line.strip() else None
            except json.JSONDecodeError as error:
                raise ValueError(f"'{table}' line {number} is not JSON ({error.msg}); one object a line") from error
            if entry is not None and not isinstance(entry, dict):
                raise ValueError(f"'{table}' line {number} is not a JSON object but {entry!r}; write one with the "
                                 f"keys file and text")
            out += [(number, entry)] if entry else []
        return out
    if table.name == "metadata.csv" and lines and "|" in lines[0]:  # LJ Speech
        split = [(number, line.strip().split("|")) for number, line in enumerate(lines, 1) if line.strip()]
        return [(number, {"file": parts[0], "text": parts[-1] if len(parts) > 1 else ""}) for number, parts in split]
    reader = csv.DictReader(lines, delimiter="\t" if table.suffix == ".tsv" else ",")
    return [(reader.line_num, {k.strip().lower(): v for k, v in entry.items() if k}) for entry in reader]


def _row(path: Path, table: Path, line: int, entry: dict[str, Any]) -> tuple[Path, str, dict[str, Any]]:
    name = next((entry[key] for key in FILE_COLUMNS if entry.get(key)), None)
    text = next((entry[key] for key in TEXT_COLUMNS if entry.get(key) is not None), None)
    if not name or text is None:
        raise ValueError(f"'{table}' line {line} needs a file and a text, got columns {sorted(entry)}; name them "
                         f"{' or '.join(FILE_COLUMNS)}, and {' or '.join(TEXT_COLUMNS)}")
    for candidate in (base / f"{name}{suffix}" for base in (path, path / "wavs") for suffix in SUFFIXES):
        if candidate.is_file():
            return candidate, text, {k: v for k, v in entry.items() if k not in FILE_COLUMNS + TEXT_COLUMNS}
    raise ValueError(f"'{table}' line {line} names the clip '{name}', which is neither in '{path}' nor in "
                     f"'{path / 'wavs'}'; add the file, or delete the line")


def coffee(rate: int | None = None) -> Speech:
    """530 spoken coffee orders of over 50 people, 16 kHz: no transcript; ``labels`` hold ``intent`` and ``slots``."""
    rows = _parquet("coffee_commands_16k.parquet")

    def read(i: int) -> Clip:
        wav, found = read_audio(rows[i]["opus"], rate)
        labels = {"intent": rows[i]["intent"], "slots": json.loads(rows[i]["slots"])}
        return Clip(wav, found, "", name=str(rows[i]["id"]), labels=labels)

    origin = "crowd-sourced spoken coffee orders (Picovoice speech-to-intent benchmark)"
    return Speech("coffee orders", origin, "Apache-2.0", read, range(len(rows)))


def ljspeech(rate: int | None = None) -> Speech:
    """Eight sentences of LJ Speech, one reader, 22.05 kHz; ``text`` is the normalised transcript."""
    rows = _parquet("ljspeech_8.parquet")

    def read(i: int) -> Clip:
        wav, found = read_audio(rows[i]["flac"], rate)
        return Clip(wav, found, rows[i]["text_norm"], "LJ", str(rows[i]["id"]), {"raw": rows[i]["text"]})

    return Speech("LJ Speech, 8 sentences", "LJ Speech, recordings of one reader", "public domain", read,
                  range(len(rows)))


def _parquet(name: str) -> list[dict]:
    root = fsdd.data_root()
    if root is None or not (root / "speech" / name).exists():
        raise ValueError(f"speech/{name} is not under GAMUT_DATA ({root or 'not set'}), and it is not fetched from "
                         f"elsewhere; set GAMUT_DATA to the folder that holds it")
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Parquet files need pyarrow; run: pip install pyarrow") from error
    return pyarrow.parquet.read_table(root / "speech" / name).to_pylist()
