"""Figures for the docs: a row of dots for each group, as an SVG file that stands by itself."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from statistics import median

WIDTH, ROW, RIGHT, TOP = 960, 30, 930, 46
STYLE = (
    "text{font:15px system-ui,sans-serif;fill:#1f2933}.small{font-size:13px;fill:#52606d}.grid{stroke:#e4e7eb}"
    ".row{stroke:#cbd2d9}.dot{fill:#2563eb;fill-opacity:.55;stroke:#1d4ed8}.open{fill:#fff;stroke:#1d4ed8}"
    ".mid{stroke:#b91c1c;stroke-width:2.5}.band{fill:#dcfce7}"
)


def strips(
    rows: Mapping[str, Sequence[tuple[float, bool]]],
    x: str,
    *,
    ticks: Sequence[float],
    band: tuple[float, float] | None = None,
    note: str = "",
) -> str:
    """Values by group on one logarithmic axis; a red line marks the median of the filled dots.

    Args:
        rows: label -> (value > 0, drawn hollow). ticks: values on the axis; its ends contain all dots.
        band: tinted between.
    """
    drawn = {name: [(v, hollow) for v, hollow in some if math.isfinite(v) and v > 0] for name, some in rows.items()}
    values = [v for some in drawn.values() for v, _ in some] + list(ticks)
    low, high = math.log(min(values)) - 0.03, math.log(max(values)) + 0.03

    left = 32 + 8 * max(map(len, drawn))  # no letter is wider

    def at(value: float) -> float:
        return left + (math.log(value) - low) / (high - low) * (RIGHT - left)

    foot = TOP + ROW * len(drawn)
    parts = [f'<text x="{left}" y="22">{escape(x)}</text>']
    parts += (
        [f'<text class="small" x="{RIGHT}" y="{foot + 42}" text-anchor="end">{escape(note)}</text>'] if note else []
    )
    if band:
        a, b = map(at, band)
        parts.append(f'<rect class="band" x="{a:.1f}" y="{TOP - 8}" width="{b - a:.1f}" height="{foot - TOP + 8}"/>')
    for tick in ticks:
        spot = f"{at(tick):.1f}"
        parts.append(f'<path class="grid" d="M{spot} {TOP - 8}V{foot}"/>')
        parts.append(f'<text class="small" x="{spot}" y="{foot + 18}" text-anchor="middle">{tick:g}</text>')
    for i, (name, some) in enumerate(drawn.items()):
        y = TOP + ROW * i + ROW / 2
        parts.append(f'<text x="{left - 12}" y="{y + 5:.1f}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<path class="row" d="M{left} {y:.1f}H{RIGHT}"/>')
        parts += [f'<circle class="{"open" if hollow else "dot"}" cx="{at(v):.1f}" cy="{y:.1f}" r="5"/>'
                  for v, hollow in some]  # fmt: skip
        kept = [v for v, hollow in some if not hollow]
        if kept:
            parts.append(f'<path class="mid" d="M{at(median(kept)):.1f} {y - 11:.1f}v22"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {foot + 52}" role="img"><style>{STYLE}</style>'
        f'<rect width="{WIDTH}" height="{foot + 52}" fill="#fff"/>' + "".join(parts) + "</svg>\n"
    )
