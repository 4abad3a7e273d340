"""How far along something is: a live line in a terminal, a plain one now and then where there is none."""

import math
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from rich import get_console
from rich.live import Live
from rich.text import Text

Item = TypeVar("Item")
FRAME = 0.5  # seconds between two pictures in a terminal, at least
LINE = 5.0  # seconds between two plain lines, at most


def clock(seconds: float) -> str:
    """Seconds as a person writes them: 8 s, 2 min 05 s, 3 h 10 min."""
    if not math.isfinite(seconds):
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole // 60 % 60:02d} min"


class Progress:
    """Counts up to ``total`` (None: without an end), and shows what is left; made by `counting`."""

    def __init__(self, what: str, total: int | None, panel: Live | None):
        self.what, self.total, self._panel = what, total, panel
        self.count = 0
        self.began = self.shown = time.monotonic()

    def step(self, count: int = 1) -> None:
        """So many more are done."""
        self.count += count
        now = time.monotonic()
        if now - self.shown < (FRAME if self._panel else LINE):
            return
        self.shown = now
        if self._panel:
            self._panel.update(Text(str(self)), refresh=True)
        else:
            get_console().print(Text(str(self)), soft_wrap=True)

    def __str__(self) -> str:
        took = time.monotonic() - self.began
        if not self.total:
            return f"{self.what}: {self.count} in {clock(took)}"
        left = f" · {clock(took / self.count * (self.total - self.count))} left" if self.count else ""
        return f"{self.what}: {self.count}/{self.total} ({100 * self.count // self.total}%){left}"


@contextmanager
def counting(what: str, total: int | None = None) -> Iterator[Progress]:
    """``with counting("questions", 900) as seen: ... seen.step()``; one line stays when it is over."""
    console = get_console()
    panel = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
    seen = Progress(what, total, panel)
    with panel or nullcontext():
        yield seen
    console.print(Text(f"{what}: {seen.count} in {clock(time.monotonic() - seen.began)}"), soft_wrap=True)


def progress(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Go through ``items`` and show how far along it is: for stages that do not train (evaluate, generate, read)."""
    total = len(items) if total is None and isinstance(items, Sized) else total
    with counting(what, total) as seen:
        for item in items:
            yield item
            seen.step()
