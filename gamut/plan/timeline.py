"""Pictures of schedules: a row per node, time to the right, gaps visible, every op named under the pointer."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from gamut.io.html import Raw, page, tag
from gamut.plan.pipeline import BACKWARD, FORWARD, Problem, Timing, simulate

LEFT, RIGHT, TOP, BAND = 58, 112, 34, 6
NAMES = ("forward", "backward", "weight gradient")
COLOURS = (
    ("#8db8f0", "#2f6fc4", "#1d4a86"),
    ("#f4bf86", "#d9822b", "#9a5710"),
    ("#93d3ae", "#2f9a63", "#1b6a41"),
    ("#cdb3ec", "#8753c8", "#5b3192"),
    ("#f0a6c0", "#c23f74", "#86264d"),
    ("#93d5da", "#24939d", "#13626a"),
)
STYLE = """
.line { font: 11px system-ui, sans-serif; } .line text { fill: #63676d; }
.line .op { stroke: #fff; stroke-width: .35; }
.line .idle { fill: #e9e7e0; } .line .idle:hover { fill: #e3c9c4; }
.line .in { fill: #fff; font-size: 9px; text-anchor: middle; pointer-events: none; }
.line .axis { stroke: #c9cac5; stroke-width: 1; } .line .held { fill: #b9bbb5; opacity: .75; }
.line.lit .op { opacity: .22; } .line.lit .op.on { opacity: 1; }
@media (prefers-color-scheme: dark) { .line text { fill: #9a9fa6; } .line .op { stroke: #16181b; }
  .line .idle { fill: #24272c; } .line .idle:hover { fill: #4a3431; }
  .line .axis { stroke: #3d4248; } .line .held { fill: #565b62; } }
"""
SCRIPT = """
for (const line of document.querySelectorAll(".line")) {
  line.addEventListener("mouseover", event => {
    const key = event.target.dataset && event.target.dataset.k;
    line.classList.toggle("lit", !!key);
    for (const op of line.querySelectorAll(".op")) op.classList.toggle("on", op.dataset.k === key);
  });
  line.addEventListener("mouseleave", () => line.classList.remove("lit"));
}
"""


def model_names(problem: Problem) -> list[str]:
    """A name for each chain; those of one model are numbered."""
    names = [chain.model for chain in problem.chains]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})" for i, name in enumerate(names)
    ]


def timeline(problem: Problem, timing: Timing, *, until: float | None = None, width: int = 1180) -> Raw:
    """One schedule as inline SVG. ``until``: end of the time axis, to draw several on one scale.

    Each row's grey band under the ops is the memory that the node holds, on one scale for all.
    """
    until = until or timing.makespan
    height = 26 if problem.nodes <= 8 else 18
    scale = (width - LEFT - RIGHT) / until
    names, ops = model_names(problem), problem.ops
    parts = [tag("style", Raw(STYLE)), *_legend(problem, names, width)]
    bottom = TOP + problem.nodes * (height + 4)
    for node in range(problem.nodes):
        y = TOP + node * (height + 4)
        parts.append(tag("text", f"node {node}", x=LEFT - 8, y=y + height * 0.68, text_anchor="end"))
        share, low = timing.work[node] / timing.makespan, y + height * 0.68
        parts.append(tag("text", f"{share:.1%}", x=width - RIGHT + 50, y=low, text_anchor="end"))
        parts.append(tag("text", f"{timing.node_peaks[node]:.4g}", x=width - 4, y=low, text_anchor="end"))
    parts += _gaps(timing, height, scale)
    for node, index, turn, start, end in timing.spans:
        op, y = ops[index], TOP + node * (height + 4)
        said = (
            f"{names[op.chain]} · {NAMES[op.kind]} of micro-batch {turn} · stage {op.stage} on node {node} · "
            f"{start:g} to {end:g}"
        )
        parts.append(
            tag(
                "rect",
                tag("title", said),
                x=f"{LEFT + start * scale:.2f}",
                y=y,
                width=f"{(end - start) * scale:.2f}",
                height=height - BAND,
                class_="op",
                data_k=f"{op.chain}.{turn}",
                fill=COLOURS[op.chain % len(COLOURS)][op.kind],
            )
        )
        if (end - start) * scale > 15:
            middle = f"{LEFT + (start + end) / 2 * scale:.1f}"
            parts.append(tag("text", str(turn), x=middle, y=f"{y + (height - BAND) / 2 + 3.2:.1f}", class_="in"))
    parts += _memory(problem, timing, height, scale)
    parts += _axis(until, scale, bottom)
    return tag(
        "svg",
        *parts,
        viewBox=f"0 0 {width} {bottom + 24}",
        class_="line",
        role="img",
        xmlns="http://www.w3.org/2000/svg",
    )


def _gaps(timing: Timing, height: int, scale: float) -> list[Raw]:
    """The bubbles of each node, from 0 to the makespan."""
    free, found = [0.0] * len(timing.work), []
    ends = [(node, -1, -1, timing.makespan, timing.makespan) for node in range(len(free))]
    for node, _, _, start, end in (*timing.spans, *ends):
        if start > free[node]:
            said = f"node {node} idle · {free[node]:g} to {start:g}"
            x, wide = f"{LEFT + free[node] * scale:.2f}", f"{(start - free[node]) * scale:.2f}"
            y, tall = TOP + node * (height + 4), height - BAND
            found.append(tag("rect", tag("title", said), x=x, y=y, width=wide, height=tall, class_="idle"))
        free[node] = end
    return found


def _memory(problem: Problem, timing: Timing, height: int, scale: float) -> list[Raw]:
    """What each node holds, from the start of a forward to the end of what frees it."""
    unit, steps = (BAND - 1) * 1.0 / (timing.peak_memory or 1.0), [[] for _ in range(problem.nodes)]
    for node, index, _, start, end in timing.spans:
        delta = problem.ops[index].delta
        steps[node].append((start if delta > 0 else end, delta))
    boxes = []
    for node, changes in enumerate(steps):
        low, held, path = TOP + node * (height + 4) + height, 0.0, ""
        for time, delta in sorted(changes):
            held += delta
            path += f"H{LEFT + time * scale:.1f}V{low - unit * held:.1f}"
        boxes.append(f"M{LEFT} {low}{path}Z" if path else "")
    return [tag("path", d="".join(boxes), class_="held")]


def _legend(problem: Problem, names: Sequence[str], width: int) -> list[Raw]:
    parts, x = [], float(LEFT)
    for c, chain in enumerate(problem.chains):
        for kind in (FORWARD, BACKWARD, *([2] if chain.weight else [])):
            parts.append(tag("rect", x=x, y=8, width=11, height=11, fill=COLOURS[c % len(COLOURS)][kind]))
            said = f"{names[c]} {NAMES[kind]}"
            parts.append(tag("text", said, x=x + 16, y=17.5))
            x += 34 + 6.1 * len(said)
    parts.append(tag("text", "busy", x=width - RIGHT + 50, y=17.5, text_anchor="end"))
    parts.append(tag("text", "peak", x=width - 4, y=17.5, text_anchor="end"))
    return parts


def _axis(until: float, scale: float, bottom: int) -> list[Raw]:
    from gamut.io.svg import number, tick_step, ticks

    parts = []
    for value in ticks(0, until, tick_step(until, 10)):
        x = f"{LEFT + value * scale:.1f}"
        parts.append(tag("path", d=f"M{x} {bottom}v5", class_="axis"))
        parts.append(tag("text", number(value), x=x, y=bottom + 17, text_anchor="middle"))
    return parts


WIDE = tag("style", Raw("main { max-width: 84rem; }"))  # for the head of a page of timelines
READING = (
    "A row is a node, time runs to the right, and a block is one micro-batch passing one stage: light forward, dark "
    "backward. Grey stretches between blocks are bubbles. The band below the blocks is the activation memory that the "
    "node holds, on one scale for all. Busy is the share of the time that a node computes, peak the most memory it "
    "holds. Point at a block to follow its micro-batch."
)


def script() -> Raw:
    """What makes the blocks of one micro-batch light up together; once on a page."""
    return tag("script", Raw(SCRIPT))


def figures(problem: Problem, schedules: Mapping[str, Iterable[str]]) -> list[Raw]:
    """A table of what the schedules cost, how to read their pictures, and the pictures on one time scale."""
    timings = {name: simulate(problem, rows) for name, rows in schedules.items()}
    until, first = max(timing.makespan for timing in timings.values()), next(iter(timings.values()))
    names = ("schedule", "makespan", "relative", "idle", "peak memory of a node")
    lines = [tag("tr", *(tag("th", name, class_="number" if i else None) for i, name in enumerate(names)))]
    for name, timing in timings.items():
        cells = (f"{timing.makespan:g}", f"{timing.makespan / first.makespan:.1%}", f"{timing.bubble:.1%}",
                 f"{timing.peak_memory:g}")  # fmt: skip
        lines.append(tag("tr", tag("td", name), *(tag("td", cell, class_="number") for cell in cells)))
    drawn = [tag("div", tag("table", *lines), class_="scroll"), tag("p", READING)]
    for name, timing in timings.items():
        drawn += [tag("h3", name), tag("figure", timeline(problem, timing, until=until))]
    return drawn


def drawable(path: str | Path, schedules: int) -> Path:
    """The path, if so many schedules can be drawn there; see `draw`."""
    path = Path(path)
    if path.suffix not in (".html", ".svg") or (path.suffix == ".svg" and schedules != 1):
        raise ValueError(
            f"a picture goes to a .html file, or a single schedule to an .svg; got {path} for {schedules} schedules"
        )
    return path


def draw(
    path: str | Path, problem: Problem, schedules: Mapping[str, Iterable[str]], *, title: str, lead: str = ""
) -> Path:
    """Write schedules of one problem, under one another on one time scale, as a page (.html) or a picture (.svg).

    Raises:
        ValueError: for any other ending, or several schedules for one .svg.
    """
    from gamut.io.files import atomic_write

    path = drawable(path, len(schedules))
    if path.suffix == ".svg":
        [rows] = schedules.values()
        return atomic_write(path, timeline(problem, simulate(problem, rows)))
    body = [tag("h1", title), tag("p", lead, class_="lead"), *figures(problem, schedules), script()]
    return atomic_write(path, page(title, WIDE, *body))
