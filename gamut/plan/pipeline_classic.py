"""The schedules of the literature as `Problem` and rows, with the bubble that theory gives each.

P nodes, M micro-batches; f, b: forward and backward of one micro-batch on one node; where the backward is split, b is
its input gradient and w its weight gradient; c: time of sending between neighbours. A bubble is the idle time of a node
between its first and its last op; the closed forms are for the node that idles most.
"""

import math
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


def _enough(what: str, nodes: int, micro: int, least: int) -> None:
    if nodes < 2 or micro < least:
        raise ValueError(f"{what} on {nodes} nodes needs nodes >= 2 and at least {least} micro-batches, got {micro}")


def gpipe(nodes: int, micro: int, f: float = 1, b: float = 2, *, send: float = 0) -> Classic:
    """All forwards, then all backwards (GPipe, arXiv 1811.06965). Bubble (P - 1)(f + b + 2 c)."""
    problem = Problem((Chain(tuple(range(nodes)), micro, f, b),), send)
    return Classic(problem, ("F" * micro + "f" * micro,) * nodes, (nodes - 1) * (f + b + 2 * send), micro)


def plain(nodes: int, micro: int, f: float = 1, b: float = 2, *, send: float = 0) -> Classic:
    """1F1B (PipeDream-flush, Megatron-LM). Bubble (P - 1)(f + b) + 2 c (P + M - 2 - ceil((M - 1) / P)).

    P micro-batches are under way at a time, so P - 1 round trips of a message are lost for every P micro-batches, not
    once as in GPipe (the second term is ours, by induction over the rounds; tests hold it against the simulation).
    """
    problem = Problem((Chain(tuple(range(nodes)), micro, f, b),), send)
    rows = tuple(one_f_one_b(nodes, node, micro) for node in range(nodes))
    bubble = (nodes - 1) * (f + b) + 2 * send * (nodes + micro - 2 - math.ceil((micro - 1) / nodes))
    return Classic(problem, rows, bubble, min(nodes, micro))


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
    if twice:
        _enough("ZB-H2", nodes, micro, 2 * nodes - 1)
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


def zero_bubble_v(nodes: int, micro: int, f: float = 1, b: float = 1, w: float = 1) -> Classic:
    """ZB-V (arXiv 2401.10241, section 6): two chunks on each node, the second in the opposite direction.

    Node 0 has the first stage and the last, so its first backward comes as early as 1F1B's on the last node, and P
    micro-batches are held as in 1F1B. Bubble (P - 1)(b - w) for f = b >= w: none at all where the three are equal.
    Needs micro >= 2 nodes - 1.
    """
    _enough("ZB-V", nodes, micro, 2 * nodes - 1)
    there = tuple(range(nodes))
    problem = Problem((Chain(there + there[::-1], micro, f / 2, b / 2, w / 2, memory=0.5),))
    rows = []
    for node in range(nodes):
        warm, left = 2 * (nodes - node) - 1, nodes - node
        fill = "F" * warm + "GF" * node + "Gg1" * left
        ahead = warm + node  # forwards of the first chunk so far; the second chunk has as many, less the first's
        steady = "Ff0Gg1" * (micro - ahead) + "f0Gg1" * (ahead - nodes)
        drain = "fg" * node + "f0" * left
        rows.append(fill + steady + drain + "1" * node + "0" * node)
    return Classic(problem, tuple(rows), (nodes - 1) * (b - w), nodes)


def dualpipe(nodes: int, micro: int, f: float = 1, b: float = 1, w: float = 1) -> Classic:
    """DualPipe (DeepSeek-V3, arXiv 2412.19437, section 3.2.1): half of the micro-batches enter at either end.

    Every node holds a stage of both directions (twice the weights) and P + 1 micro-batches. Here a node runs a forward
    and a backward one after the other, which gives a bubble of (P/2 - 1)(f + b - w) for f = b >= w. The paper's
    (P/2 - 1)(F&B + B - 3 W), with B = b + w, is for pairs that run as one block whose two results come at its end; at
    F&B = F + B it is an upper bound. Needs an even number of nodes, and micro even and >= 2 nodes.
    """
    if nodes % 2 or micro % 2:
        raise ValueError(f"DualPipe needs even numbers of nodes and micro-batches, got {nodes} and {micro}")
    _enough("DualPipe", nodes, micro, 2 * nodes)
    there, half = tuple(range(nodes)), nodes // 2
    chains = (Chain(there, micro // 2, f, b, w), Chain(there[::-1], micro // 2, f, b, w))
    rows = []
    for node in range(nodes):
        depth = min(node, nodes - 1 - node)  # distance from the nearer end
        near, far = ("F", "G") if node < half else ("G", "F")  # the direction that enters there, and the other
        back = {"F": "f0", "G": "g1"}
        row = near * 2 * (half - depth - 1) + (near + far) * (depth + 1)
        row += (back[far] + far) * (half - depth - 1)
        row += (near + back[far] + far + back[near]) * (micro // 2 - nodes + depth + 1)
        row += (back[far] + far + back[near]) * (half - depth - 1)
        owed = ""  # weight gradients that wait until the node would idle
        for turn, lane in enumerate((far, near) * (depth + 1)):
            row += back[lane] if turn <= depth else back[lane][0]
            owed += back[lane][1] if turn > depth else ""
        for _ in range(half - depth - 1):
            row += owed[0] + back[near][0]
            owed = owed[1:] + back[near][1]
        rows.append(row + owed)
    return Classic(Problem(chains), tuple(rows), (half - 1) * (f + b - w), nodes + 1)


CLASSICS: dict[str, Callable[..., Classic]] = {
    "gpipe": gpipe,
    "1f1b": plain,
    "interleaved": interleaved,
    "zb-h1": zero_bubble,
    "zb-h2": partial(zero_bubble, twice=True),
    "zb-v": zero_bubble_v,
    "chimera": chimera,
    "dualpipe": dualpipe,
}
