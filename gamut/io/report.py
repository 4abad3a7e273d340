"""A run as one self-contained HTML file: readable without a network, in light and dark, on paper.

A report is a list of blocks. A plain string is a paragraph; every other block is one of the classes below.

    write_report("report.html", "My run", [Heading("What it says"), Audio("a clip", samples, 16000), "And so on."])
"""

import base64
import io
import mimetypes
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gamut.io import svg
from gamut.io.files import atomic_write
from gamut.io.html import Raw, join, page, tag
from gamut.io.runs import Run
from gamut.io.source import Recipe


@dataclass(frozen=True)
class Heading:
    """Begins a section; also a link at the top of the page."""

    title: str
    text: str = ""

    def html(self) -> Raw:
        return join(tag("h2", self.title, id=_anchor(self.title)), tag("p", self.text) if self.text else None)


@dataclass(frozen=True)
class Table:
    """Rows of numbers and words; a column of numbers stands on the right of its cell."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""

    def html(self) -> Raw:
        sides = ["number" if all(isinstance(row[i], int | float) for row in self.rows) else None
                 for i in range(len(self.columns))]  # fmt: skip
        head = tag("tr", *(tag("th", name, class_=side) for name, side in zip(self.columns, sides, strict=True)))
        body = [tag("tr", *(tag("td", cell if isinstance(cell, Raw) else show(cell), class_=side)
                            for cell, side in zip(row, sides, strict=True))) for row in self.rows]  # fmt: skip
        caption = tag("caption", self.caption) if self.caption else None
        return tag("div", tag("table", caption, tag("thead", head), tag("tbody", *body)), class_="scroll")


@dataclass(frozen=True)
class Curves:
    """A line chart of one or more series of (x, y)."""

    title: str
    series: Mapping[str, svg.Points]
    x: str = "step"
    log: bool = False
    smooth: float = 0.0
    size: tuple[int, int] = (900, 290)

    def html(self) -> Raw:
        drawing = svg.curves(self.series, x=self.x, log=self.log, smooth=self.smooth, size=self.size)
        return tag("figure", tag("figcaption", self.title), drawing)


@dataclass(frozen=True)
class Audio:
    """A player. ``sound`` is a file (wav, ogg, flac, ...), or samples in [-1, 1] with their rate in Hz."""

    title: str
    sound: str | Path | Any
    rate: int = 0

    def html(self) -> Raw:
        if isinstance(self.sound, str | Path):
            kind, data = mimetypes.guess_type(str(self.sound))[0] or "audio/wav", Path(self.sound).read_bytes()
        elif self.rate:
            kind, data = "audio/wav", _wav(np.asarray(self.sound), self.rate)
        else:
            raise ValueError(f"samples need their rate in Hz, got rate=0 for '{self.title}'; give rate=, or a path")
        source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
        label = tag("div", self.title, class_="label") if self.title else None
        return join(label, tag("audio", src=source, controls="", preload="metadata"))


@dataclass(frozen=True)
class Mel:
    """A log-mel picture (channels, frames), channel 0 at the bottom. ``hertz``: centre frequency of each channel."""

    title: str
    mel: Any
    seconds: svg.Number
    hertz: Sequence[svg.Number] | None = None

    def html(self) -> Raw:
        picture = svg.spectrogram(np.asarray(self.mel), seconds=self.seconds, hertz=self.hertz)
        return tag("figure", tag("figcaption", self.title) if self.title else None, picture)


@dataclass(frozen=True)
class Tokens:
    """A strip of chips. Each is (what it reads, its id, "text" | "audio" | "special"); the id shows on hovering."""

    title: str
    tokens: Sequence[tuple[str, int, str]]

    def html(self) -> Raw:
        chips = [tag("span", text, class_=kind, title=f"{kind} token {number}") for text, number, kind in self.tokens]
        label = tag("div", self.title, class_="label") if self.title else None
        return join(label, tag("div", *chips, class_="tokens"))


@dataclass(frozen=True)
class Card:
    """Blocks that belong together, in a frame."""

    title: str
    blocks: Sequence[Any]

    def html(self) -> Raw:
        return tag("section", tag("h3", self.title) if self.title else None, *map(render, self.blocks), class_="card")


@dataclass(frozen=True)
class Columns:
    """Blocks side by side where the page is wide enough: "cards", or "small" for many little charts."""

    blocks: Sequence[Any]
    kind: str = "cards"

    def html(self) -> Raw:
        return tag("div", *map(render, self.blocks), class_=self.kind)


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away until asked for."""

    title: str
    blocks: Sequence[Any]

    def html(self) -> Raw:
        return tag("details", tag("summary", self.title), *map(render, self.blocks))


@dataclass(frozen=True)
class Claims:
    """What was claimed, whether it holds, what was measured, and chance or baselines beside it.

    A row has text, passed, measured (name -> value) and beside (name/what -> value): `gamut.api.verdicts` makes them.
    """

    rows: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    def html(self) -> Raw:
        return tag("ul", *map(self._row, self.rows), class_="claims")

    @staticmethod
    def _row(row: Mapping[str, Any]) -> Raw:
        measured, beside = row["measured"], row["beside"]
        facts = [join(f"{name} ", tag("b", show(value))) for name, value in measured.items()]
        facts += [join(f"{name.rpartition('/')[2]} {show(value)}") for name, value in beside.items()]
        one = len(measured) == 1 and all(0 <= value <= 1 for value in (*measured.values(), *beside.values()))
        return tag(
            "li",
            tag("span", "✓" if row["passed"] else "✗", class_="mark good" if row["passed"] else "mark bad"),
            tag("span", row["text"], " ", None if row["passed"] else tag("b", "does not hold", class_="bad")),
            tag("span", join(*(join(" · " if i else "", fact) for i, fact in enumerate(facts))), class_="facts"),
            _gauge(next(iter(measured.values())), list(beside.values()), row["passed"]) if one else None,
        )


@dataclass(frozen=True)
class Times:
    """Where the time went: stage -> part -> seconds, a bar a stage."""

    stages: Mapping[str, Mapping[str, svg.Number]]

    def html(self) -> Raw:
        parts = list(dict.fromkeys(part for split in self.stages.values() for part in split))
        colour = {part: f"background: var(--s{index % 8})" for index, part in enumerate(parts)}
        shown = []
        for stage, split in self.stages.items():
            total = sum(split.values()) or 1.0
            bars = [tag("div", style=f"{colour[part]}; width: {100 * s / total:.2f}%") for part, s in split.items()]
            keys = [tag("span", tag("i", style=colour[part]), f"{part} {s:.1f} s ({100 * s / total:.0f}%)")
                    for part, s in split.items() if s / total >= 0.005]  # fmt: skip
            shown += [tag("div", f"{stage}: {total:.0f} s", class_="label"), tag("div", *bars, class_="bar")]
            shown.append(tag("div", *keys, class_="key"))
        return join(*shown)


def show(value: Any) -> str:
    """A value as a table shows it: four significant digits, thousands apart."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def render(block: Any) -> Raw:
    """One block as markup; of a string, its paragraphs."""
    if isinstance(block, Raw):
        return block
    if isinstance(block, str):
        return join(*(tag("p", part) for part in block.split("\n\n")))
    return block.html()


def write_report(path: str | Path, title: str, blocks: Sequence[Any], *, lead: str = "", end: str = "") -> Path:
    """Write the page.

    Args:
        blocks: see the module's text; a `Heading` also gets a link at the top.
        lead: a line below the title. end: a line at the foot.
    Raises:
        ValueError: if an Audio block has samples without a rate.
    """
    headings = [block.title for block in blocks if isinstance(block, Heading)]
    links = tag("nav", *(tag("a", name, href=f"#{_anchor(name)}") for name in headings)) if len(headings) > 1 else None
    head = tag("header", tag("h1", title), tag("p", lead, class_="lead") if lead else None, links)
    return atomic_write(path, page(title, head, *map(render, blocks), tag("footer", end) if end else None))


def _anchor(title: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower())


def _wav(samples: np.ndarray, rate: int) -> bytes:
    """16-bit PCM, mono."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(np.nan_to_num(samples.reshape(-1)), -1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def _gauge(value: float, others: Sequence[float], passed: bool) -> Raw:
    """0 to 1 as a line: a dot for what was measured, strokes for what stands beside it."""
    marks = [tag("path", d=f"M{6 + 164 * other:.1f} 8v12", stroke="var(--soft)", stroke_width=1.5) for other in others]
    dot = tag("circle", cx=f"{6 + 164 * value:.1f}", cy=14, r=5, fill="var(--good)" if passed else "var(--bad)")
    line = tag("path", d="M6 14H170", class_="grid")
    ends = [tag("text", "0", x=6, y=33, text_anchor="middle"), tag("text", "1", x=170, y=33, text_anchor="middle")]
    return tag("svg", line, *marks, dot, *ends, viewBox="0 0 176 36", class_="gauge", role="img")


def training(run: Run, parts: Sequence[str], counts: Sequence[str] = ()) -> list[Any]:
    """Blocks of everything a run logged: a stage's loss large, its other numbers small, then where the time went.

    Args:
        parts: logged names that are seconds of a step, for the bars. counts: logged names to leave out.
    """
    blocks, split = [], {}
    for stage, logged in run.curves().items():
        split[stage] = {part: sum(value for _, value in logged[part]) for part in parts if part in logged}
        losses = {name: points for name, points in logged.items() if name.rsplit("/", 1)[-1] == "loss"}
        others = {name: points for name, points in logged.items() if name not in {*losses, *parts, *counts}}
        values = [value for points in losses.values() for _, value in points]
        blocks.append(tag("h3", stage))
        if losses:
            log = 0 < 5 * min(values) < max(values)
            smooth = 0.9 if max(map(len, losses.values())) >= 100 else 0.0
            title = "loss" + ", logarithmic" * log + "; pale: every step, strong: running average" * (smooth > 0)
            blocks.append(Curves(title, losses, log=log, smooth=smooth))
        little = [Curves(name, {name: points}, x="", smooth=0.0 if name.endswith("lr") else 0.9, size=(290, 130))
                  for name, points in others.items()]  # fmt: skip
        blocks.append(Columns(little, "small"))
    times = {stage: spent for stage, spent in split.items() if spent}
    return [*blocks, *([Heading("Where the time went"), Times(times)] if times else [])]


def settings(recipe: Recipe, size: str, config: Mapping[str, Any]) -> Table:
    """Every field: the value of this run (marked where it is not the preset's), the paper's, and its source."""
    preset, rows = recipe.preset(size), []
    for entry in recipe.fields:
        value = str(config[entry.name])
        moved = tag("span", value, class_="changed") if config[entry.name] != preset[entry.name] else value
        rows.append((tag("code", entry.name), moved, entry.paper, entry.note))
    columns = ("field", "this run", "paper", "source and meaning")
    return Table(columns, rows, f"orange: not as in the {size} preset")


def run_report(
    run: Run, recipe: Recipe, blocks: Sequence[Any], *, minutes: float, parts: Sequence[str], counts: Sequence[str]
) -> Path:
    """report.html of a run: the given blocks first, then what any run can tell of itself."""
    asked, env = run.config, run.env
    kept = {name: tuple(value) if isinstance(value, list) else value for name, value in asked["config"].items()}
    title = recipe.doc.partition("\n")[0].partition(":")[0]
    where = f"{minutes:.1f} minutes on {env['cores']} cores, commit {env['commit']}"
    made = f"{recipe.name}, {asked['size']} size, {env['started']}, {where}"
    environment = Table(("", ""), list(env.items()))
    learned = training(run, parts, counts)
    tail = [Heading("Configuration"), settings(recipe, asked["size"], kept), Details("Environment", [environment])]
    trained = [Heading("How it trained"), *learned] if learned else []
    return write_report(run.path / "report.html", title, [*blocks, *trained, *tail], lead=made, end=str(run.path))
