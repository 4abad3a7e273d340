"""The schedules of the literature as `Problem` and rows, with the bubble that theory gives each.

P nodes, M micro-batches; f, b: forward and backward of one micro-batch on one node; where the backward is split, b is
its input gradient and w its weight gradient. A bubble is the idle time of a node between its first and its last op; the
closed forms are for the node that idles most.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from gamut.plan.pipeline import Chain, Problem, Timing
from gamut.plan.pipeline_fused import greedy, one_f_one_b


@dataclass(frozen=True)
class Classic:
    """A named schedule. ``bubble``: closed form, in the problem's unit of time; ``held``: most micro-batches on a
    node."""

    problem: Problem
    rows: tuple[str, ...]
    bubble: float
    held: float


def idle(timing: Timing) -> float:
    """Bubble of the node that idles most, between its first and its last op."""
    spans: dict[int, tuple[float, float]] = {}
    for node, _, _, start, end in timing.spans:
        first, last = spans.get(node, (start, end))
        spans[node] = min(first, start), max(last, end)
    return max(last - first - timing.work[node] for node, (first, last) in spans.items())


def _whole(nodes: int, micro: int, what: str, unit: int) -> None:
    if nodes < 2 or micro < nodes or micro % unit:
        raise ValueError(
            f"{what} needs nodes >= 2 and micro-batches >= nodes in multiples of {unit}; "
            f"got {nodes} nodes, {micro} micro-batches"
        )


def gpipe(nodes: int, micro: int, f: float = 1, b: float = 2) -> Classic:
    """All forwards, then all backwards (GPipe, arXiv 1811.06965)."""
    problem = Problem((Chain(tuple(range(nodes)), micro, f, b),))
    return Classic(problem, ("F" * micro + "f" * micro,) * nodes, (nodes - 1) * (f + b), micro)


def plain(nodes: int, micro: int, f: float = 1, b: float = 2) -> Classic:
    """1F1B (PipeDream-flush, Megatron-LM)."""
    problem = Problem((Chain(tuple(range(nodes)), micro, f, b),))
    rows = tuple(one_f_one_b(nodes, node, micro) for node in range(nodes))
    return Classic(problem, rows, (nodes - 1) * (f + b), min(nodes, micro))


def interleaved(nodes: int, micro: int, f: float = 1, b: float = 2, chunks: int = 2) -> Classic:
    """Interleaved 1F1B (Megatron-LM, arXiv 2104.04473): ``chunks`` stages on each node, bubbles shorter by as much."""
    _whole(nodes, micro, "interleaved 1F1B", nodes)
    problem = Problem((Chain(tuple(range(nodes)) * chunks, micro, f / chunks, b / chunks, memory=1 / chunks),))
    lanes = "FGHIJKLMNOPQRSTUVWXYZABCDE"[:chunks]
    forward = [lane for _ in range(micro // nodes) for lane in lanes for _ in range(nodes)]
    backward = [lane.lower() for _ in range(micro // nodes) for lane in reversed(lanes) for _ in range(nodes)]
    rows = []
    for node in range(nodes):
        warm = min(len(forward), 2 * (nodes - node - 1) + (chunks - 1) * nodes)
        steady = [op for pair in zip(forward[warm:], backward, strict=False) for op in pair]
        rows.append("".join(forward[:warm] + steady + backward[len(forward) - warm :]))
    held = nodes * (1 + (nodes - 1) / (chunks * nodes)) if micro > nodes else micro
    return Classic(problem, tuple(rows), (nodes - 1) * (f + b) / chunks, held)


def zero_bubble(nodes: int, micro: int, f: float = 1, b: float = 1, w: float = 1, *, twice: bool = False) -> Classic:
    """ZB-H1, or ZB-H2 with ``twice`` the warm-up (arXiv 2401.10241): weight gradients wait until a node would idle.

    The closed forms hold for b >= w and f >= w; H2 needs micro >= 2 nodes - 1.
    """
    _whole(nodes, micro, "zero bubble", 1)
    if twice and micro < 2 * nodes - 1:
        raise ValueError(f"ZB-H2 on {nodes} nodes needs at least {2 * nodes - 1} micro-batches, got {micro}")
    problem = Problem((Chain(tuple(range(nodes)), micro, f, b, w),))
    rows = []
    for node in range(nodes):
        warm = 2 * (nodes - node) - 1 if twice else nodes - node
        owed = 2 * node if twice else node
        row, done = ["F"] * warm, warm
        for turn in range(micro):
            row.append("f")
            if turn >= owed:
                row.append("0")
            if done < micro:
                row.append("F")
                done += 1
        rows.append("".join(row) + "0" * min(owed, micro))
    bubble = (nodes - 1) * (f + b - (2 if twice else 1) * w)
    return Classic(problem, tuple(rows), bubble, 2 * nodes - 1 if twice else nodes)


def chimera(nodes: int, f: float = 1, b: float = 1) -> Classic:
    """Two pipelines in opposite directions, M = P, half of them each way (arXiv 2107.06925, direct concatenation).

    The closed form is (P - 2) max(f, b): that of the paper for f = b and for b = 2 f.
    """
    if nodes % 2 or nodes < 2:
        raise ValueError(f"Chimera needs an even number of nodes, got {nodes}")
    there = tuple(range(nodes))
    problem = Problem((Chain(there, nodes // 2, f, b), Chain(there[::-1], nodes // 2, f, b)))
    return Classic(problem, greedy(problem, yielding=False), (nodes - 2) * max(f, b), nodes)


CLASSICS: dict[str, Callable[..., Classic]] = {
    "gpipe": gpipe,
    "1f1b": plain,
    "interleaved": interleaved,
    "zb-h1": zero_bubble,
    "zb-h2": partial(zero_bubble, twice=True),
    "chimera": chimera,
}
