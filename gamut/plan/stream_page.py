"""The page of a planned RL run: what every mode takes, and where its time goes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gamut.io.html import Raw, page, tag

COLOURS = {"generation": "#2f6fc4", "training": "#d9822b"}


def write(path: str | Path, job: Any, rows: Sequence[Any], title: str) -> Path:
    """A table and one strip per mode: generation above, training below, on one time scale."""
    from gamut.io.files import atomic_write

    head = (
        "mode",
        "order",
        "GPUs",
        "s per iteration",
        "samples/s",
        "generating",
        "training",
        "pipeline bubble, s",
        "skewness bubble, s",
        "staleness",
        "samples/s per cost",
    )
    lines = [tag("tr", *(tag("th", name, class_="number" if i > 1 else None) for i, name in enumerate(head)))]
    for row in rows:
        out = row.outcome
        stale = ", ".join(f"{lag}: {count / out.samples:.0%}" for lag, count in sorted(out.staleness.items()))
        pools = f"{row.generators}" if row.mode == "colocated" else f"{row.generators} + {row.trainers}"
        cells = (
            row.mode,
            row.policy,
            pools,
            f"{out.steady:.1f}",
            f"{job.batch / out.steady:.2f}",
            f"{out.generating:.0%}",
            f"{out.training:.0%}",
            f"{out.pipeline_bubble:.1f}",
            f"{out.skewness_bubble:.1f}",
            stale,
            f"{row.cost:.2f}",
        )
        lines.append(tag("tr", *(tag("td", cell, class_="number" if i > 1 else None) for i, cell in enumerate(cells))))
    wide = tag("style", Raw("main { max-width: 80rem; }"))
    body = [
        tag("h1", "Where the time of an RL iteration goes"),
        tag("p", title, class_="lead"),
        tag("div", tag("table", *lines), class_="scroll"),
        tag("h2", "Time"),
        tag("figure", strips(rows)),
    ]
    return atomic_write(path, page(title, wide, *body))


def strips(rows: Sequence[Any]) -> Raw:
    """Iterations of every mode as inline SVG."""
    from gamut.io.svg import number, tick_step, ticks

    width, left, tall = 1100, 90, 44
    until = max(row.outcome.seconds for row in rows)
    scale = (width - left - 10) / until
    parts = []
    for r, row in enumerate(rows):
        y = 26 + r * (tall + 12)
        parts.append(tag("text", row.mode, x=left - 8, y=y + 26, text_anchor="end", class_="name"))
        for i, (g0, g1, t0, t1) in enumerate(row.outcome.iterations):
            for name, start, end, top in (("generation", g0, g1, y), ("training", t0, t1, y + 22)):
                said = tag("title", f"{row.mode}: {name} of batch {i}, {start:.1f} to {end:.1f} s")
                parts.append(
                    tag(
                        "rect",
                        said,
                        x=f"{left + start * scale:.1f}",
                        y=top,
                        height=19,
                        rx=2,
                        opacity=0.9 - 0.35 * (i % 2),
                        width=f"{max(end - start, 0) * scale:.1f}",
                        fill=COLOURS[name],
                    )
                )
    bottom = 26 + len(rows) * (tall + 12)
    for value in ticks(0, until, tick_step(until, 8)):
        parts.append(
            tag("text", f"{number(value)} s", x=f"{left + value * scale:.1f}", y=bottom + 8, text_anchor="middle")
        )
    for i, (name, colour) in enumerate(COLOURS.items()):
        parts += [
            tag("rect", x=left + i * 110, y=4, width=11, height=11, fill=colour),
            tag("text", name, x=left + 16 + i * 110, y=14),
        ]
    return tag("svg", *parts, viewBox=f"0 0 {width} {bottom + 16}", role="img")
