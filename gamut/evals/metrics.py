"""Scores that need nothing but the two things compared."""

import unicodedata
from collections.abc import Iterable, Sequence

from jaxtyping import Float
from torch import Tensor

from gamut.codecs.vocoder_mel import log_mel

APOSTROPHES = "'\N{RIGHT SINGLE QUOTATION MARK}"


def edit_distance(wanted: Sequence, got: Sequence) -> int:
    """Fewest insertions, deletions and replacements that turn one sequence into the other (Levenshtein).

    >>> edit_distance("kitten", "sitting")
    3
    """
    row = list(range(len(got) + 1))
    for i, a in enumerate(wanted, 1):
        corner, row[0] = row[0], i
        for j, b in enumerate(got, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (a != b))
    return row[-1]


def error_rate(wanted: Iterable[Sequence], got: Iterable[Sequence]) -> float:
    """Edits over symbols wanted, all pairs together: WER for words, CER for characters. Can exceed 1.

    Raises:
        ValueError: different numbers of sequences, or nothing wanted at all.
    """
    wanted, got = list(wanted), list(got)
    total = sum(map(len, wanted))
    if len(wanted) != len(got) or not total:
        raise ValueError(f"an error rate needs as many answers as references, and references that hold something; got "
                         f"{len(wanted)} references of {total} symbols in all and {len(got)} answers")
    return sum(map(edit_distance, wanted, got)) / total


def words(text: str) -> list[str]:
    """Lower-case words without punctuation; width variants are folded, so full-width digits count as digits."""
    plain = unicodedata.normalize("NFKC", text).lower()
    kept = ["" if c in APOSTROPHES else c if unicodedata.category(c)[0] in "LNM" else " " for c in plain]
    return "".join(kept).split()


def wer(wanted: Iterable[str], got: Iterable[str]) -> float:
    """Word error rate of a corpus of texts, after ``words``."""
    return error_rate(map(words, wanted), map(words, got))


def cer(wanted: Iterable[str], got: Iterable[str]) -> float:
    """Character error rate of a corpus of texts, without spaces and punctuation: for scripts without spaces."""
    return error_rate(("".join(words(text)) for text in wanted), ("".join(words(text)) for text in got))


def mel_distance(wav: Float[Tensor, "*B T"], other: Float[Tensor, "*B U"], rate: int) -> float:
    """Mean absolute difference of 64-channel log-mels in nats, 10 ms frames, over the shorter length. Ours; says
    nothing about phase.

    Raises:
        ValueError: if one of them is shorter than 10 ms.
    """
    hop = rate // 100
    n_fft = 1 << (hop * 2).bit_length()  # 20 to 40 ms
    a, b = (log_mel(sound, rate=rate, n_fft=n_fft, hop=hop, mels=64) for sound in (wav, other))
    frames = min(a.shape[-1], b.shape[-1])
    return (a[..., :frames] - b[..., :frames]).abs().mean().item()
