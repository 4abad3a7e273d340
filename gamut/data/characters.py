"""Plain text as printable ASCII, one id a character: for language models that a vocabulary would outweigh."""

import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

VOCAB = 96  # newline, then the characters 32 to 126; anything else becomes "?"
HELD_OUT = 0.02  # share of every document, at its end


def encode(text: str) -> np.ndarray:
    """Ids (uint8).

    >>> encode("a\\n~").tolist()
    [66, 0, 95]
    """
    codes = np.frombuffer(text.encode("ascii", "replace"), dtype=np.uint8)
    plain = np.where((codes >= 32) & (codes < 127), codes - 31, ord("?") - 31)
    return np.where(codes == 10, 0, plain).astype(np.uint8)


@dataclass(frozen=True)
class Corpus:
    """``train`` and ``held_out`` are ids (uint8, one axis)."""

    train: np.ndarray
    held_out: np.ndarray
    origin: str

    def rows(self, index: int, rows: int, length: int, seed: int, *, unique: int = 0) -> Int[Tensor, "rows length"]:
        """Batch ``index``: windows of the training text in an order that ``seed`` draws, none twice in an epoch.

        Args:
            length: ids of a window. unique: use only so many ids, windows spread evenly over the text, and read them
                again when they are through; 0: all, once.
        Raises:
            ValueError: more than one epoch is asked for, or less than a window is there.
        """
        there = len(self.train) // length
        windows = min(unique // length, there) if unique else there
        if windows < 1 or (not unique and (index + 1) * rows > windows):
            raise ValueError(
                f"{self.origin} has {windows:,} windows of {length} characters, asked for {(index + 1) * rows:,}; "
                "use fewer tokens, or more text"
            )
        picked = []
        for position in range(index * rows, (index + 1) * rows):
            epoch, at = divmod(position, windows)
            start = length * (there // windows) * _shuffled(windows, seed, epoch)[at]
            picked.append(self.train[start : start + length])
        return torch.from_numpy(np.stack(picked).astype(np.int64))

    def check(self, count: int, length: int) -> Int[Tensor, "count length"]:
        """Held-out windows, evenly spaced."""
        starts = np.linspace(0, len(self.held_out) - length, count).astype(int)
        return torch.from_numpy(np.stack([self.held_out[i : i + length] for i in starts]).astype(np.int64))


_ORDERS: dict[tuple[int, int, int], np.ndarray] = {}


def _shuffled(windows: int, seed: int, epoch: int) -> np.ndarray:
    key = (windows, seed, epoch)
    if key not in _ORDERS:
        _ORDERS.clear()
        _ORDERS[key] = np.random.default_rng(key).permutation(windows)
    return _ORDERS[key]


def read(source: str = "auto", characters: int = 50_000_000) -> Corpus:
    """Text to train on.

    Args:
        source: a folder of .txt files, or a file; "auto": the books under $GAMUT_DATA/text, or else what every Python
            brings along, the sources of its standard library.
        characters: at most so many.
    Raises:
        ValueError: no text there.
    """
    data = os.environ.get("GAMUT_DATA")
    if source != "auto":
        documents, origin = _files(Path(source)), str(source)
    elif data and (Path(data) / "text" / "gutenberg_books.parquet").exists():
        documents, origin = _parquet(Path(data) / "text" / "gutenberg_books.parquet"), "36 English books"
    else:
        root = Path(sysconfig.get_paths()["stdlib"])
        documents = [path.read_text("utf-8", "replace") for path in sorted(root.glob("*.py"))]
        origin = "Python's library"
    kept, left = [], characters
    for document in documents:
        kept.append(encode(document)[:left])
        left -= len(kept[-1])
    cuts = [round(len(ids) * (1 - HELD_OUT)) for ids in kept]
    train = np.concatenate([ids[:cut] for ids, cut in zip(kept, cuts, strict=True)])
    held_out = np.concatenate([ids[cut:] for ids, cut in zip(kept, cuts, strict=True)])
    return Corpus(train, held_out, origin)


def _files(path: Path) -> list[str]:
    found = sorted(path.glob("**/*.txt")) if path.is_dir() else [path] if path.is_file() else []
    if not found:
        raise ValueError(f"no text at '{path}'; give a .txt file or a folder that holds some")
    return [file.read_text("utf-8", "replace") for file in found]


def _parquet(path: Path) -> list[str]:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        return _files(path.parent)
    return pq.read_table(path, columns=["text"])["text"].to_pylist()
