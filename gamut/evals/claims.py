"""What a recipe says of itself, and whether it is so."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Result:
    """What a run measured. ``metrics`` are scalars by name; ``notes`` is anything a report shows beside them."""

    metrics: dict[str, float]
    run: Path | None = None
    notes: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """One sentence with a number in it, and the comparison that decides it."""

    text: str
    check: Callable[[Result], bool]


def check(claims: Sequence[Claim], result: Result) -> list[tuple[str, bool]]:
    """(text, passed) for each claim; one whose metric was not measured does not pass."""
    rows = []
    for claim in claims:
        try:
            rows.append((claim.text, bool(claim.check(result))))
        except KeyError as missing:
            rows.append((f"{claim.text} [not measured: {missing.args[0]}]", False))
    return rows


def facts(metrics: Mapping[str, float]) -> str:
    """Scores as a table for a card: what has another's name and a word more stands in its row, under that word."""
    parts = {name: name.rpartition("/") for name in metrics}
    words = Counter(word for whole, _, word in parts.values() if whole in metrics)
    columns = [word for word, times in words.items() if times > 1]
    own = [name for name, (whole, _, word) in parts.items() if whole not in metrics or word not in columns]
    lines = [["score", "", *columns], ["---", *["--:"] * (1 + len(columns))]]
    for name in own:
        there = [metrics.get(key) for key in (name, *(f"{name}/{word}" for word in columns))]
        lines.append([name, *("" if value is None else f"{value:.4g}" for value in there)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
