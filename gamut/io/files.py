"""Files that are either the old one or the new one, whatever happens while they are written."""

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"


def atomic_write(path: str | Path, data: bytes | str) -> Path:
    """Write a whole file: beside it first, then fsync, then rename. On any error the old file stays as it was.

    Raises:
        OSError: as the system reports it (a full disk, say); the unfinished copy is removed.
    """
    path = Path(path)
    part = _beside(path)
    try:
        part.write_bytes(data.encode() if isinstance(data, str) else data)
        _sync(part)
        os.replace(part, path)
        _sync(path.parent)
    finally:
        part.unlink(missing_ok=True)
    return path


def sampled(files: Iterable[Path], blocks: int = 16, size: int = 1 << 20) -> str:
    """Tells files from others without reading all of them: a digest of their names and sizes, and of ``blocks`` parts
    of ``size`` bytes of each, evenly spread."""
    digest = hashlib.sha256()
    for path in files:
        whole = path.stat().st_size
        digest.update(f"{path.name} {whole}".encode())
        with path.open("rb") as file:
            for block in range(blocks):
                file.seek(max(0, whole - size) * block // (blocks - 1))
                digest.update(file.read(size))
    return digest.hexdigest()


@contextlib.contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Fill a folder beside ``path``; it takes the name only when the block ends without an error.

    An existing folder of that name is replaced as a whole, and kept until the new one is complete.
    """
    path = Path(path)
    part = _beside(path)
    part.mkdir()
    try:
        yield part
        for file in part.rglob("*"):
            if file.is_file():  # safetensors makes its files private, whatever the umask
                file.chmod(part.stat().st_mode & 0o666)
            _sync(file)
        _sync(part)
        old = _beside(path)
        if path.exists():
            os.replace(path, old)
        os.replace(part, path)
        _sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def sha256(path: str | Path) -> str:
    """Hex digest of a file, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
