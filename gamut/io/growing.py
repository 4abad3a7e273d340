"""Sound files that grow: one that is written while it is made, and one that somebody else is still recording.

T samples
"""

import contextlib
import os
import struct
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO

from jaxtyping import Float
from torch import Tensor

HEADER = 44  # bytes


def wav_path(path: str | Path) -> Path:
    """A path that a ``WavWriter`` can take; ValueError for another suffix, or a folder."""
    path = Path(path)
    if path.suffix.lower() != ".wav":
        raise ValueError(f"sound written while it comes must go to a .wav, got '{path.name}'")
    if path.is_dir():
        raise ValueError(f"'{path}' is a folder; give the name of a .wav file")
    return path


class WavWriter:
    """A 16-bit WAV file that is whole at every moment: samples are appended first, then the header counts them.

    An older file of that name stays until the first samples come; if none do, for good, and nothing is written. Use it
    in a ``with``, or ``close`` it.

    Raises:
        ValueError: another suffix than .wav, or a place where nothing can be written.
    """

    def __init__(self, path: str | Path, rate: int):
        self.path, self.rate, self.samples = wav_path(path), rate, 0
        self.part: Path | None = self.path.parent / f".{self.path.name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file: IO[bytes] = open(self.part, "w+b")
            self._count()
        except OSError as error:
            with contextlib.suppress(OSError):
                self.part.unlink()
            raise ValueError(f"'{self.path}' cannot be written ({error.strerror}); choose another place") from error

    def append(self, wav: Float[Tensor, " T"]) -> None:
        """More samples; what lies outside [-1, 1] is clipped."""
        if self.part:  # takes the place of an older file
            os.replace(self.part, self.path)
            self.part = None
        self.file.seek(HEADER + 2 * self.samples)
        self.file.write((wav.detach().float().cpu().clamp(-1, 1) * 32767).round().short().numpy().tobytes())
        self.file.flush()
        self.samples += len(wav)
        self._count()

    def _count(self) -> None:
        size, rate = 2 * self.samples, self.rate
        form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
        header = struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE") + form + struct.pack("<4sI", b"data", size)
        self.file.seek(0)
        self.file.write(header)
        self.file.flush()

    def close(self) -> None:
        if not self.file.closed:
            os.fsync(self.file.fileno())
            self.file.close()
        if self.part:
            self.part.unlink(missing_ok=True)

    def __enter__(self) -> "WavWriter":
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()


def settled(
    path: str | Path, patience: float = 1.0, seconds: float = 3600.0, *, grows: Callable[[], object] | None = None
) -> Path:
    """Wait for a file that is being recorded: returns once it has not grown for ``patience`` seconds.

    A file that was written longer ago than that is not waited for. ``grows`` is called once, if it is seen to grow.
    Raises:
        ValueError: it still grows after ``seconds``.
    """
    path, ends, before = Path(path), time.monotonic() + seconds, -1
    if not path.exists() or time.time() - path.stat().st_mtime > patience:
        return path
    while (size := path.stat().st_size) != before:
        if time.monotonic() > ends:
            raise ValueError(f"'{path}' still grows after {seconds:g} s; stop the recording, then ask again")
        if before >= 0 and grows:
            grows, _ = None, grows()
        before = size
        time.sleep(patience)
    return path
