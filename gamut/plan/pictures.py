"""Dots and heat maps as inline SVG, in the page's colours. Lines are io/svg's."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from gamut.io.html import Raw, join, tag
from gamut.io.svg import tick_step, ticks

WIDTH, LEFT, BOTTOM = 720, 56, 34


class Axis:
    """Values onto pixels; logarithmic axes carry powers of ten."""

    def __init__(self, values: np.ndarray, start: float | int, end: float | int, *, log: bool):
        self.log = log
        scaled = np.log10(values) if log else np.asarray(values, dtype=float)
        low, high = float(np.min(scaled)), float(np.max(scaled))
        pad = 0.03 * (high - low) or 0.5
        self.low, self.high, self.start, self.end = low - pad, high + pad, start, end

    def __call__(self, value: float) -> float:
        value = math.log10(value) if self.log else value
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        if not self.log:
            return [(v, f"{v:g}") for v in ticks(self.low, self.high, tick_step(self.high - self.low, 5))]
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        step = max(1, int(self.high - self.low) // 6)
        between = (1, 2, 5) if self.high - self.low < 2.5 else (1,)
        marks = [(m, p) for p in powers if p % step == 0 for m in between]
        found = [(m * 10.0**p, f"{m * 10.0**p:g}" if -3 < p < 4 else f"{m}e{p}") for m, p in marks]
        return [(v, name) for v, name in found if self.low <= math.log10(v) <= self.high] or [
            (10**v, f"{10**v:.2g}") for v in (self.low, self.high)
        ]


def _frame(across: Axis, up: Axis, height: int, x: str, y: str) -> list[Raw]:
    parts = [tag("path", d=f"M{LEFT} {up(v):.1f}H{WIDTH - 10}", class_="grid") for v, _ in up.ticks()]
    parts += [tag("text", name, x=LEFT - 6, y=f"{up(v) + 4:.1f}", text_anchor="end") for v, name in up.ticks()]
    parts += [
        tag("text", name, x=f"{across(v):.1f}", y=height - BOTTOM + 16, text_anchor="middle")
        for v, name in across.ticks()
    ]
    parts.append(tag("text", x, x=WIDTH - 10, y=height - 2, text_anchor="end"))
    return [*parts, tag("text", y, x=4, y=12)]


class Dots:
    """A block for reports: series of points, optionally with lines through them, on linear or logarithmic axes.

    Args:
        series: name -> (x, y) arrays. lines: names drawn as lines. x, y: axis titles. log: which axes are logarithmic.
        band: two lines, low and high, between which it is tinted; one key stands for both. marked: names drawn large.
    """

    def __init__(
        self,
        title: str,
        series: Mapping[str, tuple],
        *,
        x: str,
        y: str,
        log: str = "x",
        lines: Sequence[str] = (),
        band: Sequence[str] = (),
        marked: Sequence[str] = (),
        height: int = 280,
    ):
        self.title, self.series, self.x, self.y, self.log, self.lines = title, series, x, y, log, lines
        self.band, self.marked, self.height = tuple(band), marked, height

    def html(self) -> Raw:
        kept = {name: [np.asarray(v, float) for v in points] for name, points in self.series.items() if len(points[0])}
        across = Axis(np.concatenate([v[0] for v in kept.values()]), LEFT, WIDTH - 10, log="x" in self.log)
        finite = np.concatenate([v[1] for v in kept.values()])
        up = Axis(finite[np.isfinite(finite)], self.height - BOTTOM, 20, log="y" in self.log)
        parts, keys = _frame(across, up, self.height, self.x, self.y), []
        alone = [name for name in kept if name.removeprefix("fit ") == name or name.removeprefix("fit ") not in kept]
        spots = {name: [(across(a), up(b)) for a, b in zip(xs, ys, strict=True) if math.isfinite(b)]
                 for name, (xs, ys) in kept.items()}  # fmt: skip
        if len(self.band) == 2 and all(name in spots for name in self.band):
            alone = [name for name in alone if name not in self.band]
            edge = "L".join(f"{a:.1f} {b:.1f}" for a, b in [*spots[self.band[0]], *spots[self.band[1]][::-1]])
            parts.insert(0, tag("path", d=f"M{edge}Z", fill="var(--s1)", fill_opacity=0.13))
        for name, (xs, ys) in kept.items():
            if name in self.band:
                continue
            own = name if name in alone else name.removeprefix("fit ")  # a fit has the colour of its dots, and no key
            colour = f"var(--s{alone.index(own) % 8})"
            if name in self.lines:
                path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in spots[name])
                parts.append(tag("path", d=path, class_="curve", style=f"stroke: {colour}"))
            else:
                look = {"r": 6 if name in self.marked else 2.6, "fill": colour, "fill_opacity": 0.75}
                parts += [tag("circle", tag("title", f"{name}: {x:.4g}, {y:.4g}"), cx=f"{a:.1f}", cy=f"{b:.1f}", **look)
                          for (a, b), x, y in zip(spots[name], xs, ys, strict=False)]  # fmt: skip
            if name == own:
                keys.append(tag("span", tag("i", style=f"background: {colour}"), name))
        if self.band:
            keys.append(tag("span", tag("i", style="background: var(--s1); opacity: 0.3"), self.band[0].split(",")[0]))
        drawing = tag("svg", *parts, viewBox=f"0 0 {WIDTH} {self.height}", role="img")
        return tag(
            "figure", tag("figcaption", self.title), drawing, tag("div", *keys, class_="key") if len(keys) > 1 else None
        )


class Heat:
    """A block: a map of signed values over log N (up) and log D (across); blue below 0, orange above, pale near it.

    Hovering shows the value; ``open_ND`` marks cells that are undecided, which stay pale. ``marks``: (N, D) of runs,
    drawn as dots.
    """

    def __init__(
        self,
        title: str,
        N: np.ndarray,
        D: np.ndarray,
        values_ND: np.ndarray,
        *,
        open_ND: np.ndarray | None = None,
        marks: tuple[np.ndarray, np.ndarray] | None = None,
        height: int = 380,
    ):
        self.title, self.N, self.D, self.values, self.height = title, N, D, values_ND, height
        self.open = np.zeros(values_ND.shape, bool) if open_ND is None else open_ND
        self.marks = marks

    def html(self) -> Raw:
        across, up = Axis(self.D, LEFT, WIDTH - 10, log=True), Axis(self.N, self.height - BOTTOM, 20, log=True)
        most = float(np.nanmax(np.abs(self.values))) or 1.0
        wide, high = ((b(v[-1]) - b(v[0])) / (len(v) - 1) for b, v in ((across, self.D), (up, self.N)))
        cells = []
        for i, n in enumerate(self.N):
            for j, d in enumerate(self.D):
                value = float(self.values[i, j])
                if not math.isfinite(value):
                    continue
                strength = 0.16 if self.open[i, j] else 0.4 + 0.6 * abs(value) / most
                said = f"N {n:.3g}, D {d:.3g}: {100 * value:+.2f}%{', undecided' if self.open[i, j] else ''}"
                colour = "var(--s0)" if value < 0 else "var(--s1)"
                left, right = (round(across(d) + side * wide / 2, 2) for side in (-1, 1))  # shared with the next cell
                top, foot = (round(up(n) + side * abs(high) / 2, 2) for side in (-1, 1))
                cells.append(tag(
                    "rect", tag("title", said), x=f"{left:.2f}", y=f"{top:.2f}", width=f"{right - left:.2f}",
                    height=f"{foot - top:.2f}", fill=colour, fill_opacity=f"{strength:.2f}",
                    shape_rendering="crispEdges",
                ))  # fmt: skip
        for n, d in zip(*self.marks, strict=True) if self.marks else ():
            cells.append(tag("circle", cx=f"{across(d):.1f}", cy=f"{up(n):.1f}", r=2.4, fill="var(--ink)"))
        drawing = join(*cells, *_frame(across, up, self.height, "tokens D", "parameters N"))
        return tag(
            "figure",
            tag("figcaption", self.title),
            tag("svg", drawing, viewBox=f"0 0 {WIDTH} {self.height}", role="img"),
        )
