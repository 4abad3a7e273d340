"""What a person sees while something runs (a live panel, or plain lines), and what each number means."""

import itertools
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich import get_console
from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gamut.io.progress import FRAME, LINE, clock

# name -> (unit, meaning). A name with a prefix ("eval/loss") means the same, measured on what the prefix says.
METRICS: dict[str, tuple[str, str]] = {
    "loss": ("-", "what the optimiser lowers, mean over the batch"),
    "lr": ("-", "learning rate of the first parameter group, after the schedule"),
    "wer": ("-", "errors per word wanted; per character where words are not set apart"),
    "exact": ("-", "share of answers that are right as a whole"),
    "calls": ("-", "share of tool calls exactly right, of the answers that should make any"),
    "grad_norm": ("-", "length of the whole gradient before clipping"),
    "tokens": ("tokens", "tokens that carried loss in this step, all ranks together"),
    "audio_s": ("s", "seconds of audio read in this step, all ranks together"),
    "tokens_per_second": ("tokens/s", "the same, over the time of the whole step"),
    "audio_s_per_second": ("s/s", "the same, over the time of the whole step"),
    "data": ("s", "time spent waiting for the next batch"),
    "forward": ("s", "time spent in the step function"),
    "backward": ("s", "time spent in the gradient"),
    "optimiser": ("s", "time spent clipping, updating and averaging weights"),
    "decode": ("s", "time spent generating"),
    "evaluate": ("s", "time spent in evaluation hooks"),
    "save": ("s", "time spent writing checkpoints"),
    "wait": ("s", "time spent waiting for the device, or for other processes"),
}
PARTS = {
    "data": "yellow", "forward": "green", "backward": "blue", "optimiser": "magenta",
    "decode": "cyan", "evaluate": "bright_cyan", "save": "bright_yellow", "wait": "red",
}  # fmt: skip
RATES = {"audio_s_per_second": "s of audio/s", "tokens_per_second": "tokens/s"}
COUNTS = ("tokens", "audio_s")  # add up over micro-batches; every other number is averaged


def meaning(name: str) -> tuple[str, str] | None:
    """(unit, meaning) of a logged name, with or without a prefix; None if METRICS does not define it."""
    return METRICS.get(name) or METRICS.get(name.rsplit("/", 1)[-1])


def short(value: float) -> str:
    """A number in at most seven characters: 12.3 k, 0.412, 3.0e-04."""
    size = abs(value)
    if not math.isfinite(value) or size == 0:
        return f"{value:g}"
    if size >= 1e6:
        return f"{value / 1e6:.1f} M"
    if size >= 1e4:
        return f"{value / 1e3:.1f} k"
    return f"{value:.1e}" if size < 1e-2 else f"{value:.3g}" if size < 1000 else f"{value:.0f}"


def sparkline(values: Iterable[float], width: int = 32) -> str:
    """A curve in one line of text: means of equal stretches, from the lowest to the highest block."""
    points = [value for value in values if math.isfinite(value)]
    if len(points) > width:
        edges = [round(i * len(points) / width) for i in range(width + 1)]
        points = [sum(points[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    if not points:
        return ""
    low, span = min(points), (max(points) - min(points)) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * (value - low) / span))] for value in points)


class View:
    """Shows one stage at a time. Cheap: a picture is drawn at most twice a second, whatever the steps take.

        view.start("codec", steps=600)
        view.step(1, {"loss": 2.3, "lr": 1e-3, "tokens_per_second": 9e3}, {"data": 0.01, "forward": 0.1})
        view.end()
    """

    def __init__(self, *, panel: bool | None = None):
        """``panel`` None: a live panel if the output is a terminal, plain lines if not."""
        self.panel = get_console().is_terminal if panel is None else panel
        self._live: Live | None = None
        self.stage = ""  # none is being shown

    def start(self, stage: str, steps: int, done: int = 0) -> None:
        """A stage of ``steps`` updates begins; ``done`` of them were made before (a resumed run)."""
        self.end()
        self.stage, self.steps, self.first, self.at = stage, steps, done, done
        self.began = self.drawn = time.monotonic()
        self.stats: dict[str, Any] = {}
        self.losses: list[float] = []
        self.loss = ""
        self.parts: dict[str, float] = {}
        if self.panel:
            self._live = Live(console=get_console(), auto_refresh=False, transient=True)
            self._live.start()
        elif done:
            self.note(f"{stage}: goes on after step {done} of {steps}")

    def step(self, step: int, stats: Mapping[str, Any], seconds: Mapping[str, float]) -> None:
        """After update ``step`` (the first is 1): its scalars, and the seconds it spent on each of PARTS."""
        for part, spent in seconds.items():
            self.parts[part] = self.parts.get(part, 0.0) + spent
        tenth = step * 10 // self.steps > self.at * 10 // self.steps
        self.at = step
        self.stats |= stats  # what is logged every hundred steps stays to be seen in between
        if not self.loss:  # with several phases there is one loss each; the first is shown
            self.loss = next((name for name in stats if name.rsplit("/", 1)[-1] == "loss"), "")
        if self.loss in stats:
            self.losses.append(float(stats[self.loss]))
        pause = FRAME if self.panel else min(1.0, LINE) if tenth else LINE
        told_by_end = step == self.steps and not self.panel
        if told_by_end or time.monotonic() - self.drawn < pause:
            return
        self.drawn = time.monotonic()
        if self._live is not None:
            self._live.update(self._picture(), refresh=True)
        else:
            self.note(self._line())

    def note(self, text: str) -> None:
        """A sentence that stays on the screen, above the panel."""
        get_console().print(Text(text), soft_wrap=True)

    def end(self) -> None:
        """The stage is over, finished or not: the panel goes, one line stays. A second call does nothing."""
        if not self.stage:
            return
        if self._live is not None:
            self._live.stop()
            self._live = None
        state = f"{self.steps} steps" if self.at >= self.steps else f"stopped at step {self.at} of {self.steps}"
        took = clock(time.monotonic() - self.began)
        self.note(" · ".join([f"{self.stage}: {state} in {took}", *self._shown(self.loss), *self._rates()]))
        self.stage = ""

    def _shown(self, *names: str) -> list[str]:
        return [f"{name} {short(float(self.stats[name]))}" for name in names if name in self.stats]

    def _rates(self) -> list[str]:
        return [f"{short(float(self.stats[name]))} {unit}" for name, unit in RATES.items() if self.stats.get(name)]

    def _left(self) -> str:
        made = self.at - self.first
        return clock((time.monotonic() - self.began) / made * (self.steps - self.at)) if made else "-"

    def _line(self) -> str:
        percent = f"step {self.at}/{self.steps} ({100 * self.at // self.steps}%)"
        shown = [*self._shown(self.loss, "lr"), *self._rates()]
        return " · ".join([f"{self.stage}: {percent}", *shown, f"{self._left()} left"])

    def _picture(self) -> Panel:
        top = Table.grid(expand=True, padding=(0, 2))
        top.add_column(ratio=1)
        top.add_column(justify="right")
        bar = ProgressBar(total=self.steps, completed=self.at, complete_style="cyan", finished_style="cyan")
        top.add_row(bar, Text.from_markup(f"[bold]{self.at}[/] of {self.steps}   {self._left()} left"))
        loss = Text.assemble(f"{self.loss} ", (short(self.losses[-1] if self.losses else math.nan), "bold"), "  ")
        loss.append(sparkline(self.losses), style="cyan")
        others = [name for name in self.stats if name not in (self.loss, *RATES, *COUNTS)][:6]
        numbers = Text("   ").join([Text(text) for text in [*self._shown(*others), *self._rates()]])
        body = Group(top, loss, numbers, self._split())
        return Panel(body, title=Text(self.stage), title_align="left", border_style="dim")

    def _split(self) -> Text:
        """One bar of the time spent, by part, with its legend behind it."""
        total = sum(self.parts.values())
        bar, legend = Text(), Text(" ")
        for part, spent in self.parts.items() if total else ():
            colour = PARTS.get(part, "white")
            bar.append("━" * round(32 * spent / total), style=colour)
            if spent / total >= 0.005:
                legend.append(f" {part} {100 * spent / total:.0f}%", style=colour)
        return bar + legend


class Quiet(View):
    """A view that shows nothing: for tests, and for ranks other than 0."""

    def start(self, stage: str, steps: int, done: int = 0) -> None: ...

    def step(self, step: int, stats: Mapping[str, Any], seconds: Mapping[str, float]) -> None: ...

    def note(self, text: str) -> None: ...

    def end(self) -> None: ...
