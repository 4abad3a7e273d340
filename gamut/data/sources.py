"""Speech to train on and test with: utterances that say where they come from, so that reports can; and spoken digits.

Your own recordings are read by data/folders.py, further public sets by data/corpora.py.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from gamut.io import fsdd, voices

TAKES = {"test": range(0, 5), "validation": range(5, 8), "train": range(8, 50)}  # test: the set's own split


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
