"""The Free Spoken Digit Dataset as arrays: found, or fetched and checked, or spoken by espeak-ng instead."""

import hashlib
import http.client
import io
import os
import socket
import sys
import tempfile
import threading
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import torch

from gamut.io import voices
from gamut.io.files import atomic_write
from gamut.io.media import soundfile

COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"
URL = f"https://codeload.github.com/Jakobovski/free-spoken-digit-dataset/zip/{COMMIT}"
SHA256 = "6f643a7422de89763625dfc9aa79427e69f7a690223a5bc5752a2f56db5af465"  # int16 samples of all clips by file name
ORIGIN = "Free Spoken Digit Dataset, recordings of six people (Jakobovski et al.)"
LICENCE = "CC BY-SA 4.0"
CONNECT_SECONDS = 5.0
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

Arrays = dict[str, np.ndarray]  # wav_int16 back to back at 8 kHz; per clip: length, digit, speaker, take


def data_root() -> Path | None:
    """``$GAMUT_DATA`` if it is set."""
    return Path(os.environ["GAMUT_DATA"]) if os.environ.get("GAMUT_DATA") else None


def cache_root() -> Path:
    """``$GAMUT_CACHE``, or ~/.cache/gamut."""
    return Path(os.environ.get("GAMUT_CACHE") or Path.home() / ".cache" / "gamut")


def recordings() -> Arrays:
    """The 3000 recordings, from ``$GAMUT_DATA``, the cache, or their public home (then cached).

    Raises:
        ConnectionError: no copy, and no network. ValueError: a copy whose samples are not the published ones.
    """
    places = [root / "speech" / "fsdd_8k.npz" for root in [data_root()] if root] + [cache_root() / "fsdd_8k.npz"]
    for place in places:
        if place.exists():
            with np.load(place) as file:
                return _checked(dict(file), str(place))
    arrays = _checked(_unpack(_fetch(URL, "Free Spoken Digit Dataset, about 16 MB")), URL)
    save(places[-1], arrays)
    return arrays


def _checked(arrays: Arrays, where: str) -> Arrays:
    got = hashlib.sha256(arrays["wav_int16"].astype("<i2").tobytes()).hexdigest()
    if got != SHA256:
        raise ValueError(f"the digit recordings of {where} are not the published ones: SHA-256 of their samples is "
                         f"{got}, should be {SHA256}; delete that copy and run again")
    return arrays


def save(path: Path, arrays: Arrays) -> None:
    """Arrays as one .npz file, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    atomic_write(path, buffer.getvalue())


def _fetch(url: str, what: str) -> io.IOBase:
    """Download into an unnamed temporary file, telling stderr how far it is."""
    target, done = tempfile.TemporaryFile(), 0
    try:
        _look_up(urllib.parse.urlsplit(url))
        print(f"downloading {what}, from {url}", file=sys.stderr)
        with urllib.request.urlopen(url, timeout=CONNECT_SECONDS) as answer:
            while block := answer.read(1 << 20):
                target.write(block)
                done += len(block)
                print(f"\r{done / 1e6:.0f} MB", end="", file=sys.stderr, flush=True)
    except (OSError, http.client.HTTPException) as error:  # no such host, refused, timed out, broken off
        raise ConnectionError(f"{what}: cannot be downloaded ({error}); set GAMUT_DATA to a folder that has "
                              f"speech/fsdd_8k.npz, or try again with a network.") from error
    print(file=sys.stderr)
    target.seek(0)
    return target


def _look_up(address: urllib.parse.SplitResult) -> None:
    """Resolve a host within CONNECT_SECONDS: urllib's time-out does not bound the look-up, which can take a minute."""
    found: list[Exception | None] = []

    def resolve() -> None:
        try:
            socket.getaddrinfo(address.hostname, address.port or address.scheme)
            found.append(None)
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=resolve, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if error := found[0] if found else TimeoutError(f"no answer about {address.hostname} in {CONNECT_SECONDS:g} s"):
        raise error


def _unpack(archive: io.IOBase) -> Arrays:
    """recordings/DIGIT_SPEAKER_TAKE.wav of the repository's zip, in file-name order."""
    sf, clips = soundfile(), {}
    try:
        with zipfile.ZipFile(archive) as file:  # type: ignore[arg-type]
            for path in map(Path, file.namelist()):
                if path.suffix == ".wav" and path.parent.name == "recordings":
                    samples, _ = sf.read(io.BytesIO(file.read(str(path))), dtype="int16", always_2d=True)
                    clips[path.name] = samples[:, 0]
    except zipfile.BadZipFile as error:
        raise ConnectionError(f"the downloaded archive of the digit set is incomplete ({error}); try again.") from error
    return _arrays(clips)


def _arrays(clips: Arrays) -> Arrays:
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


def synthetic(takes: int = 50) -> Arrays:
    """As many synthetic clips as there are recordings, with seeded speed, pitch and loudness; kept in the cache."""
    place = cache_root() / "espeak_digits_8k.npz"
    if place.exists():
        with np.load(place) as file:
            return dict(file)
    draw, clips = np.random.default_rng(0), {}
    print(f"speaking {len(DIGITS) * len(voices.VOICES) * takes} digits with espeak-ng, about a minute", file=sys.stderr)
    for digit, word in enumerate(DIGITS):
        for voice in voices.VOICES:
            for take in range(takes):
                speed, pitch = draw.uniform(0.7, 1.5), int(draw.integers(20, 80))
                wav = voices.say(word, rate=8000, voice=voice, speed=speed, pitch=pitch)
                loud = draw.uniform(0.2, 0.9) / wav.abs().amax().item()
                clips[f"{digit}_espeak-{voice}_{take}.wav"] = (wav * loud * 32767).round().to(torch.int16).numpy()
    arrays = _arrays(clips)
    save(place, arrays)
    return arrays
