"""A run as one self-contained HTML file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gamut.io.files import atomic_write
from gamut.io.runs import Run
from gamut.io.source import Recipe


@dataclass(frozen=True)
class Claims:
    rows: Sequence[dict[str, Any]]


def run_report(run: Run, recipe: Recipe, blocks: Sequence[Any]) -> None:
    atomic_write(run.path / "report.html", "<!doctype html>")
