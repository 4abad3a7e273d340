"""The page of a planned RL run: what every mode takes, what its GPUs do meanwhile, and which split is best."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gamut.io.html import Raw, join, page, tag
from gamut.io.svg import curves, number, tick_step, ticks

MEANING = {
    "colocated": "generate, then train, on the same GPUs",
    "mini": "apart; generation in eight fixed parts, each trained on when whole",
    "sync": "apart; training takes samples as they are finished (StreamRL-Sync)",
    "one-step": "apart; a batch is generated while the one before is trained on",
    "async": "as one-step, but streamed, and weights move while both sides work (StreamRL-Async)",
}
COLOURS = {
    "generating": "--s0",
    "training": "--s1",
    "long tail": "--s3",
    "waiting": "--line",
    "exchanging models": "--s7",
}
WIDTH = 900


def write(
    path: str | Path, job: Any, rows: Sequence[Any], title: str, swept: Mapping[str, Sequence[tuple[int, float]]] = {}
) -> Path:
    """Write the page. ``swept``: mode -> (GPUs that generate, samples/s), of all splits."""
    from gamut.io.files import atomic_write

    best = max(rows, key=lambda row: row.cost)
    lead = (
        f"{title}. Best for its cost: {best.mode}, {job.batch / best.outcome.steady:.2f} samples/s, "
        f"{best.outcome.steady:.0f} s an iteration of {job.batch:,} samples."
    )
    head = tag("header", tag("h1", "Where the time of an RL iteration goes"), tag("p", lead, class_="lead"))
    return atomic_write(path, page(title, head, *blocks(job, rows, swept), tag("footer", assumed(job))))


def blocks(job: Any, rows: Sequence[Any], swept: Mapping[str, Sequence[tuple[int, float]]] = {}) -> list[Raw]:
    """Everything below the title, for a page or a report."""
    found = [
        tag("h2", "Five ways to run the same samples"),
        tag("div", table(job, rows), class_="scroll"),
        tag("h2", "Iterations on one clock"),
        tag("p", "Above: a batch is generated. Below: it is trained on. Lighter and darker are consecutive batches."),
        tag("figure", strips(rows)),
        tag("h2", "What the GPUs do"),
        tag(
            "p",
            "Long tail: replicas that decode fewer samples than they could, or none, while the batch's longest are "
            "finished (skewness bubble). Waiting: one side waits for the other (pipeline bubble).",
        ),
        tag("figure", shares(rows)),
        tag("h2", "How old the samples are that are trained on"),
        tag("figure", staleness(rows)),
    ]
    if swept:
        total = rows[-1].generators + rows[-1].trainers
        found += [
            tag("h2", "Every split of the GPUs"),
            tag("p", f"Samples a second by how many of the GPUs generate; the table has Algorithm 1's split, of "
                     f"{total} GPUs. Left of a peak generation is the slower stage, right of it training."),
            tag("figure", tag("figcaption", "samples/s"), curves(swept, x="GPUs that generate", size=(WIDTH, 300))),
        ]  # fmt: skip
    return found


def assumed(job: Any) -> str:
    """The inputs, in a sentence."""
    return (
        f"Simulated: {job.model.name}, {job.batch:,} samples of {job.lengths.mean:,.0f} tokens in the mean and "
        f"{job.lengths.longest:,.0f} at most; {job.generator.name} generate with {job.tp} a replica, "
        f"{job.trainer.name} train at {job.use:.0%} of their peak and {job.update:g} s an iteration besides."
    )


def table(job: Any, rows: Sequence[Any]) -> Raw:
    names = ("mode", "", "GPUs", "s per iteration", "samples/s", "long tail, s", "waiting, s", "samples/s per cost")
    lines = [tag("tr", *(tag("th", name, class_="number" if i > 1 else None) for i, name in enumerate(names)))]
    for row in rows:
        out = row.outcome
        pools = f"{row.generators}" if row.mode == "colocated" else f"{row.generators} + {row.trainers}"
        waiting = out.pipeline_bubble
        if row.mode == "colocated":  # only the exchange of models: the stages take turns by design
            waiting = (1 - out.generating - out.training) * out.seconds / len(out.iterations)
        numbers = (out.steady, job.batch / out.steady, out.skewness_bubble, waiting, row.cost)
        shown = (f"{value:.{digits}f}" for value, digits in zip(numbers, (1, 2, 1, 1, 2), strict=True))
        first = (tag("td", tag("b", row.mode)), tag("td", MEANING[row.mode]), tag("td", pools, class_="number"))
        lines.append(tag("tr", *first, *(tag("td", cell, class_="number") for cell in shown)))
    return tag("table", *lines)


def _key(names: Sequence[str]) -> Raw:
    spots = (tag("span", tag("i", style=f"background: var({COLOURS[name]})"), name) for name in names)
    return tag("div", *spots, class_="key")


def strips(rows: Sequence[Any]) -> Raw:
    """Iterations of every mode as inline SVG; hovering names the batch and its seconds."""
    left, tall = 84, 40
    until = max(row.outcome.seconds for row in rows)
    scale, bottom = (WIDTH - left - 10) / until, len(rows) * (tall + 12)
    parts = []
    for value in ticks(0, until, tick_step(until, 8)):
        x = f"{left + value * scale:.1f}"
        parts.append(tag("path", d=f"M{x} 0V{bottom}", class_="grid"))
        parts.append(tag("text", f"{number(value)} s", x=x, y=bottom + 14, text_anchor="middle"))
    for r, row in enumerate(rows):
        y = r * (tall + 12)
        parts.append(tag("text", row.mode, x=left - 8, y=y + 25, text_anchor="end", class_="name"))
        for i, (g0, g1, t0, t1) in enumerate(row.outcome.iterations):
            for name, start, end, top in (("generating", g0, g1, y), ("training", t0, t1, y + 21)):
                said = tag("title", f"{row.mode}: {name} batch {i}, {start:.1f} to {end:.1f} s")
                parts.append(_bar(said, left + start * scale, top, (end - start) * scale, 18, name, 1 - 0.45 * (i % 2)))
    return join(_key(("generating", "training")), _svg(parts, bottom + 20))


def shares(rows: Sequence[Any]) -> Raw:
    """Stacked bars: a line for the GPUs that generate, a line for those that train."""
    left, y, parts = 180, 0, []
    for row in rows:
        out = row.outcome
        tail = min(out.generating, out.skewness_bubble * len(out.iterations) / out.seconds)
        made = {"generating": out.generating - tail, "long tail": tail}
        if row.mode == "colocated":
            rest = 1 - out.generating - out.training
            lines = {"all GPUs": made | {"training": out.training, "exchanging models": rest}}
        else:
            lines = {
                "generation": made | {"waiting": 1 - out.generating},
                "training": {"training": out.training, "waiting": 1 - out.training},
            }
        for side, split in lines.items():
            parts.append(tag("text", f"{row.mode}: {side}", x=left - 8, y=y + 13, text_anchor="end"))
            x: float = left
            for name, share in split.items():
                wide = max(0.0, share) * (WIDTH - left - 10)
                parts.append(_bar(tag("title", f"{side}: {name} {share:.0%}"), x, y, wide, 18, name))
                if wide > 40:
                    fill = "var(--ink)" if name == "waiting" else "var(--paper)"
                    parts.append(tag("text", f"{share:.0%}", x=f"{x + 6:.1f}", y=y + 13, style=f"fill: {fill}"))
                x += wide
            y += 21
        y += 9
    return join(_key(tuple(COLOURS)), _svg(parts, y))


def staleness(rows: Sequence[Any]) -> Raw:
    """A histogram a mode: by how many versions of the weights samples lag."""
    lags = sorted({lag for row in rows for lag in row.outcome.staleness})
    left, wide, parts = 84, 190, []
    for i, lag in enumerate(lags):
        said = "as new as the weights" if lag == 0 else f"{lag} version{'s' * (lag > 1)} old"
        parts.append(tag("text", said, x=left + i * (wide + 30), y=11))
    for r, row in enumerate(rows):
        y = 20 + 24 * r
        parts.append(tag("text", row.mode, x=left - 8, y=y + 13, text_anchor="end", class_="name"))
        for i, lag in enumerate(lags):
            share, x = row.outcome.staleness.get(lag, 0) / row.outcome.samples, left + i * (wide + 30)
            parts.append(_bar(None, x, y, share * wide * 0.8, 16, "generating"))
            parts.append(tag("text", f"{share:.0%}", x=f"{x + share * wide * 0.8 + 5:.1f}", y=y + 12))
    return _svg(parts, 20 + 24 * len(rows))


def _bar(said: Raw | None, x: float, y: float, wide: float, tall: float, name: str, opacity: float = 1.0) -> Raw:
    style = f"fill: var({COLOURS[name]}); opacity: {opacity:g}"
    return tag("rect", said, x=f"{x:.1f}", y=f"{y:.1f}", width=f"{max(wide, 0):.1f}", height=tall, rx=2, style=style)


def _svg(parts: Sequence[Raw], tall: float) -> Raw:
    return tag("svg", *parts, viewBox=f"0 0 {WIDTH} {tall:g}", role="img")
