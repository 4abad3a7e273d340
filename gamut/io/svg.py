"""Curves and spectrogram pictures as inline SVG: they follow the page's colours, light or dark."""

import base64
import math
import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from gamut.io.html import Raw, join, tag

Number = int | float
Points = Sequence[tuple[Number, Number]]
MOST = 300  # points drawn of one curve; more are averaged in stretches
INFERNO = (  # dark to bright, evenly spaced; read with linear interpolation
    (0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85), (227, 89, 51), (249, 140, 10),
    (249, 201, 50), (252, 255, 164),
)  # fmt: skip


def tick_step(span: Number, count: int) -> float:
    """1, 2 or 5 times a power of ten: the one that cuts ``span`` most nearly into ``count`` steps.

    >>> tick_step(800, 3), tick_step(60, 4), tick_step(0.95, 3)
    (200.0, 20.0, 0.5)
    """
    rough = span / count
    unit = 10.0 ** math.floor(math.log10(rough))
    return min((unit, 2 * unit, 5 * unit, 10 * unit), key=lambda step: abs(math.log(step / rough)))


def ticks(low: Number, high: Number, step: Number) -> list[float]:
    """Multiples of ``step`` from ``low`` to ``high``.

    >>> ticks(1, 60, 20)
    [20.0, 40.0, 60.0]
    """
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def smoothed(points: Points, weight: float) -> list[tuple[Number, Number]]:
    """Running average with that weight on the past, unbiased at the start; what is not finite is left out."""
    total = mass = 0.0
    found = []
    for x, y in points:
        if math.isfinite(y):
            total, mass = weight * total + (1 - weight) * y, weight * mass + (1 - weight)
            found.append((x, total / mass))
    return found


def _thin(points: Points) -> list[tuple[Number, Number]]:
    """At most MOST points: means of equal stretches, the last point kept."""
    if len(points) <= MOST:
        return list(points)
    edges = np.linspace(0, len(points), MOST + 1).astype(int)
    values = np.asarray(points, dtype=np.float64)
    means = np.add.reduceat(values, edges[:-1]) / np.diff(edges)[:, None]
    return [*((x, y) for x, y in means.tolist()[:-1]), points[-1]]


def number(value: Number) -> str:
    """A tick's label: 0.5, 20, 12k, 3M, 1e-5."""
    size = abs(value)
    if size >= 1e4:
        return f"{value / 1e6:g}M" if size >= 1e6 else f"{value / 1e3:g}k"
    return f"{value:.0e}".replace("e-0", "e-") if 0 < size < 1e-3 else f"{value:g}"


class _Axis:
    """Values onto pixels, linear or logarithmic."""

    def __init__(self, values: Sequence[Number], start: Number, end: Number, count: int, *, log: bool = False):
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        self.log = log and low > 0
        if self.log:
            low, high = math.log10(low), math.log10(high)
        if high - low < 1e-12 * max(1.0, abs(high)):
            low, high = low - 0.5, high + 0.5
        if not self.log:
            step = tick_step(high - low, count)
            if start > end:  # upwards: from tick to tick
                low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
            self.ticks = ticks(low, high, step)
        else:
            inside = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
            inside = [value for value in inside if low - 1e-9 <= math.log10(value) <= high + 1e-9]
            tens = [value for value in inside if abs(math.log10(value) % 1) < 1e-9]
            self.ticks = tens if len(tens) >= 3 else inside or [10**low, 10**high]
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: Number) -> float:
        value = math.log10(value) if self.log else value
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def curves(
    series: Mapping[str, Points],
    *,
    x: str = "step",
    log: bool = False,
    smooth: float = 0.0,
    size: tuple[int, int] = (900, 290),
) -> Raw:
    """A line chart. Several curves are named at their right ends; ``smooth`` in [0, 1) draws the raw ones pale behind.

    Args:
        series: name -> points by x; values that are not finite are left out (with ``log``, those not above 0 too).
        size: of the drawing in its own units; on the page it fills the width that it gets.
    """
    width, height = size
    good = {name: [(a, b) for a, b in points if math.isfinite(b) and (b > 0 or not log)]
            for name, points in series.items()}  # fmt: skip
    kept = {name: points for name, points in good.items() if points}
    if not kept:
        return tag("p", "nothing was logged", class_="label")
    names = len(series) > 1
    right = width - (12 + 7 * max(len(name) for name in kept) if names else 10)
    foot = height - (30 if x else 18)
    across = _Axis([a for points in kept.values() for a, _ in points], 46, right, max(3, width // 110))
    up = _Axis([b for points in kept.values() for _, b in points], foot, 10, max(3, height // 60), log=log)
    parts = [tag("path", d=f"M46 {up(t):.1f}H{right}", class_="grid") for t in up.ticks]
    parts += [tag("text", number(t), x=40, y=f"{up(t) + 4:.1f}", text_anchor="end") for t in up.ticks]
    parts += [tag("text", number(t), x=f"{across(t):.1f}", y=foot + 17, text_anchor="middle") for t in across.ticks]
    if x:
        parts.append(tag("text", x, x=right, y=height - 1, text_anchor="end"))
    ends = []
    for index, (name, points) in enumerate(kept.items()):
        stroke = f"stroke: var(--s{index % 8})"
        few = len(points) < 10 / (1 - smooth)  # a running average of a few points would only lag behind them
        drawn = [(points, "curve")] if few else [(points, "raw"), (smoothed(points, smooth), "curve")]
        for line, kind in drawn:
            spots = [f"{across(a):.1f} {up(b):.1f}" for a, b in _thin(line)]
            path = "M" + "L".join(spots * (2 if len(spots) == 1 else 1))  # a path of one point shows nothing
            parts.append(tag("path", d=path, class_=kind, style=stroke))
        ends.append((up(drawn[-1][0][-1][1]), name, f"fill: var(--s{index % 8})"))
    return tag("svg", *parts, *(_names(ends, right + 8) if names else ()), viewBox=f"0 0 {width} {height}", role="img")


def _names(ends: list[tuple[float, str, str]], x: Number) -> list[Raw]:
    """Names beside the ends of their curves, pushed apart where they would overlap."""
    below, texts = -math.inf, []
    for y, name, fill in sorted(ends):
        below = max(y + 4, below + 14)
        texts.append(tag("text", name, x=f"{x:.0f}", y=f"{below:.1f}", style=fill, class_="name"))
    return texts


def png(values: np.ndarray) -> bytes:
    """Values (rows, columns), row 0 on top, as a picture from dark (lowest) to bright (highest)."""
    values = np.asarray(values, dtype=np.float64)
    low, high = np.nanmin(values), np.nanmax(values)
    place = np.nan_to_num((values - low) / (high - low or 1.0)) * (len(INFERNO) - 1)
    stops = np.array(INFERNO, dtype=np.float64)
    rgb = np.stack([np.interp(place, np.arange(len(stops)), stops[:, c]) for c in range(3)], -1).astype(np.uint8)
    rows = np.concatenate([np.zeros((len(rgb), 1), np.uint8), rgb.reshape(len(rgb), -1)], axis=1)  # 0: no row filter

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def spectrogram(mel_MT: np.ndarray, *, seconds: Number, hertz: Sequence[Number] | None = None) -> Raw:
    """A mel picture with its axes: time in seconds, and Hz if the channels' centre frequencies are given.

    Args:
        mel_MT: log-mel values, channel 0 the lowest.
        seconds: length of the sound.
    """
    width, height, left = 440, 130, 44
    data = base64.b64encode(png(np.asarray(mel_MT)[::-1])).decode()
    place = {"x": left, "y": 6, "width": width - left - 6, "height": height - 36}
    picture = tag("image", href=f"data:image/png;base64,{data}", preserveAspectRatio="none", **place)
    across = _Axis([0.0, seconds], left, width - 6, 5)
    marks = [tag("text", f"{number(t)} s" if t == across.ticks[-1] else number(t), x=f"{across(t):.1f}", y=height - 14,
                 text_anchor="middle" if t < 0.97 * seconds else "end") for t in across.ticks]  # fmt: skip
    channels = len(mel_MT)
    if hertz is None:
        marks.append(tag("text", "mel", x=left - 5, y=height - 14, text_anchor="end"))
    wanted = [500, 1000, 2000, 4000, 8000] if hertz is not None else list(ticks(0, channels, tick_step(channels, 3)))
    for value in wanted:
        row = value if hertz is None else float(np.interp(value, hertz, np.arange(channels), left=-1, right=-1))
        if row >= 0:
            text = number(value) if hertz is None else (f"{value / 1000:g} kHz" if value >= 1000 else f"{value} Hz")
            y = 6 + (height - 36) * (1 - row / channels)
            marks.append(tag("text", text, x=left - 5, y=f"{y + 4:.1f}", text_anchor="end"))
    return tag("svg", join(picture, *marks), viewBox=f"0 0 {width} {height}", role="img")
