"""What a recipe says of itself, and whether it is so."""

from collections.abc import Callable, Sequence
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
