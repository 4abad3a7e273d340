"""Speech to train on and test with: known sets by name, your own by folder.

Known sets are looked for under ``$GAMUT_DATA``, then in the cache (``$GAMUT_CACHE``, default ~/.cache/gamut), and only
then fetched from their public home. A ``Speech`` says where it comes from, so that reports can.
"""

import hashlib
import io
import os
import sys
import tempfile
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from gamut.data import voices
from gamut.io.files import atomic_write
from gamut.io.media import soundfile

FSDD_COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"
FSDD_URL = f"https://codeload.github.com/Jakobovski/free-spoken-digit-dataset/zip/{FSDD_COMMIT}"
FSDD_SHA256 = "6f643a7422de89763625dfc9aa79427e69f7a690223a5bc5752a2f56db5af465"  # of the PCM, clips by file name
FSDD_ORIGIN = "Free Spoken Digit Dataset, recordings of six people (Jakobovski et al.)"
FSDD_LICENCE = "CC BY-SA 4.0"
TAKES = {"test": range(0, 5), "validation": range(5, 8), "train": range(8, 50)}  # test: the set's own split
CONNECT_SECONDS = 5.0
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


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


def data_root() -> Path | None:
    """``$GAMUT_DATA`` if it is set."""
    return Path(os.environ["GAMUT_DATA"]) if os.environ.get("GAMUT_DATA") else None


def cache_root() -> Path:
    """``$GAMUT_CACHE``, or ~/.cache/gamut."""
    return Path(os.environ.get("GAMUT_CACHE") or Path.home() / ".cache" / "gamut")


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
    origin, licence = FSDD_ORIGIN, FSDD_LICENCE
    if source != "synthetic":
        try:
            arrays = _recordings()
        except ConnectionError as error:
            if source == "recordings":
                raise
            warnings.warn(f"{error} Going on with {voices.ORIGIN}.", stacklevel=2)
            source = "synthetic"
    if source == "synthetic":
        arrays, origin, licence = _synthetic(), voices.ORIGIN, "made here"
    wav, ends = arrays["wav_int16"], np.cumsum(arrays["length"])

    def read(i: int) -> Clip:
        samples = torch.from_numpy(wav[ends[i] - arrays["length"][i]:ends[i]].astype(np.float32)) / 32768
        digit, speaker, take = int(arrays["digit"][i]), str(arrays["speaker"][i]), int(arrays["take"][i])
        return Clip(samples, 8000, str(digit), speaker, f"{digit}_{speaker}_{take}", {"digit": digit, "take": take})

    return Speech("digits", origin, licence, read, np.isin(arrays["take"], TAKES[split]).nonzero()[0].tolist())


def _recordings() -> dict[str, np.ndarray]:
    """The arrays of the digit set, found or fetched; ConnectionError if neither is possible."""
    places = [root / "speech" / "fsdd_8k.npz" for root in [data_root()] if root] + [cache_root() / "fsdd_8k.npz"]
    for place in places:
        if place.exists():
            with np.load(place) as file:
                return _checked(dict(file), str(place))
    arrays = _checked(_unpack(_fetch(FSDD_URL, "Free Spoken Digit Dataset, about 16 MB")), FSDD_URL)
    _save(places[-1], arrays)
    return arrays


def _checked(arrays: dict[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    got = hashlib.sha256(arrays["wav_int16"].astype("<i2").tobytes()).hexdigest()
    if got != FSDD_SHA256:
        raise ValueError(f"the digit recordings of {where} are not the published ones: SHA-256 of their samples is "
                         f"{got}, should be {FSDD_SHA256}; delete that copy and run again")
    return arrays


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    atomic_write(path, buffer.getvalue())


def _fetch(url: str, what: str) -> io.IOBase:
    """Download into an unnamed temporary file, telling stderr how far it is."""
    target, done = tempfile.TemporaryFile(), 0
    print(f"downloading {what}, from {url}", file=sys.stderr)
    try:
        with urllib.request.urlopen(url, timeout=CONNECT_SECONDS) as answer:
            while block := answer.read(1 << 20):
                target.write(block)
                done += len(block)
                print(f"\r{done / 1e6:.0f} MB", end="", file=sys.stderr, flush=True)
    except (OSError, urllib.error.URLError) as error:  # time-outs and refusals included
        raise ConnectionError(f"{what}: cannot be downloaded ({error}); set GAMUT_DATA to a folder that has "
                              f"speech/fsdd_8k.npz, or try again with a network.") from error
    print(file=sys.stderr)
    target.seek(0)
    return target


def _unpack(archive: io.IOBase) -> dict[str, np.ndarray]:
    """recordings/DIGIT_SPEAKER_TAKE.wav of the repository's zip, in file-name order."""
    sf, clips = soundfile(), {}
    try:
        with zipfile.ZipFile(archive) as file:  # type: ignore[arg-type]
            for path in map(Path, file.namelist()):
                if path.suffix == ".wav" and path.parent.name == "recordings":
                    samples, _ = sf.read(io.BytesIO(file.read(str(path))), dtype="int16", always_2d=True)
                    clips[path.stem] = samples[:, 0]
    except zipfile.BadZipFile as error:
        raise ConnectionError(f"the downloaded archive of the digit set is incomplete ({error}); try again.") from error
    return _arrays({name + ".wav": clips[name] for name in clips})


def _arrays(clips: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Clips by DIGIT_SPEAKER_TAKE.wav to the flat arrays of the cache file, sorted by name."""
    names = sorted(clips)
    parts = [name.removesuffix(".wav").split("_") for name in names]
    return {
        "wav_int16": np.concatenate([clips[name] for name in names]),
        "length": np.array([len(clips[name]) for name in names], np.int32),
        "digit": np.array([part[0] for part in parts]).astype(np.uint8),
        "speaker": np.array([part[1] for part in parts]),
        "take": np.array([part[2] for part in parts]).astype(np.uint8),
    }


def _synthetic(takes: int = 50) -> dict[str, np.ndarray]:
    """As many synthetic clips as there are recordings, with seeded speed, pitch and loudness; kept in the cache."""
    place = cache_root() / "espeak_digits_8k.npz"
    if place.exists():
        with np.load(place) as file:
            return dict(file)
    draw, clips = np.random.default_rng(0), {}
    for digit, word in enumerate(DIGITS):
        for voice in voices.VOICES:
            for take in range(takes):
                speed, pitch = draw.uniform(0.7, 1.5), int(draw.integers(20, 80))
                wav = voices.say(word, rate=8000, voice=voice, speed=speed, pitch=pitch)
                loud = draw.uniform(0.2, 0.9) / wav.abs().amax().item()
                clips[f"{digit}_espeak-{voice}_{take}.wav"] = (wav * loud * 32767).round().to(torch.int16).numpy()
    arrays = _arrays(clips)
    _save(place, arrays)
    return arrays
