"""Scores that need nothing but the two things compared."""

from collections.abc import Iterable, Sequence


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
    """Edits over symbols wanted, all pairs together: WER for words, CER for characters. Above 1 for much too long answers."""
    pairs = list(zip(wanted, got, strict=True))
    return sum(edit_distance(a, b) for a, b in pairs) / max(1, sum(len(a) for a, _ in pairs))
