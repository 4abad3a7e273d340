"""Sound files that grow: one that is written while it is made, and one that somebody else is still recording.

T samples
"""

import os
import struct
import time
import uuid
from pathlib import Path
from typing import IO

from jaxtyping import Float
from torch import Tensor

HEADER = 44  # bytes


class WavWriter:
    """A 16-bit WAV file that is whole at every moment: samples are appended first, then the header counts them.

    An older file of that name stays until the new one has its header. Use it in a ``with``, or ``close`` it.

    Raises:
        ValueError: another suffix than .wav.
    """

    def __init__(self, path: str | Path, rate: int):
        self.path, self.rate, self.samples = Path(path), rate, 0
        if self.path.suffix.lower() != ".wav":
            raise ValueError(f"sound written while it comes must go to a .wav, got '{self.path.name}'")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.parent / f".{self.path.name}.{uuid.uuid4().hex[:8]}.tmp"
        self.file: IO[bytes] = open(part, "w+b")
        try:
            self._count()
            os.replace(part, self.path)
        except OSError:
            self.file.close()
            part.unlink(missing_ok=True)
            raise

    def append(self, wav: Float[Tensor, " T"]) -> None:
        """More samples; what lies outside [-1, 1] is clipped."""
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

    def __enter__(self) -> "WavWriter":
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()


def settled(path: str | Path, patience: float = 1.0, seconds: float = 3600.0) -> Path:
    """Wait for a file that is being recorded: returns once it has not grown for ``patience`` seconds.

    A file that was written longer ago than that is not waited for.
    Raises:
        ValueError: it still grows after ``seconds``.
    """
    path, ends, before = Path(path), time.monotonic() + seconds, -1
    if not path.exists() or time.time() - path.stat().st_mtime > patience:
        return path
    while (size := path.stat().st_size) != before:
        if time.monotonic() > ends:
            raise ValueError(f"'{path}' still grows after {seconds:g} s; stop the recording, then ask again")
        before = size
        time.sleep(patience)
    return path
