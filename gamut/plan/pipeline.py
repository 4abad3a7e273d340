"""Pipeline schedules: what they are, and exactly what they cost.

A *chain* is one pipeline of one model: a list of stages, each on a node, that every micro-batch passes forwards and
then backwards. A *problem* is a set of chains that share nodes. A *schedule* says in which order each node runs its
ops. On a node, micro-batches of one stage run in index order, so a schedule is one string per node and a letter is an
op:

    F f   forward and backward of the first lane        G g   of the second        H h   of the third, ...
    0 1 2 weight gradient of lane 0, 1, 2, where the backward is split into input and weight gradient

(a lane is a chain, or one chunk of it when a node holds several of its stages). The problem is that of RLHFuse
(arXiv 2409.13221, section 5.2), with any number of models, any times and a cost of sending.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

FORWARD, BACKWARD, WEIGHT = 0, 1, 2
LETTERS = "FGHIJKLMNOPQRSTUVWXYZABCDE"


@dataclass(frozen=True)
class Chain:
    """One pipeline. Times are in any one unit, the same for all chains of a problem.

    Args:
        nodes: the node of each stage; a node may come several times (interleaved chunks).
        micro: micro-batches that pass through.
        forward, backward: time of one micro-batch on one stage.
        weight: time of the weight gradient, if it is an op of its own; 0 leaves it in ``backward``.
        memory: what one micro-batch keeps on a stage between its forward and the end of its backward.
        model: name, for pictures and instruction lists.
    """

    nodes: tuple[int, ...]
    micro: int
    forward: float
    backward: float
    weight: float = 0.0
    memory: float = 1.0
    model: str = "model"

    def __post_init__(self):
        if not self.nodes or min(self.nodes) < 0 or self.micro < 1:
            raise ValueError(
                f"a chain needs stages on nodes >= 0 and micro-batches >= 1; got nodes={self.nodes}, micro={self.micro}"
            )
        costs = (self.forward, self.backward, self.weight, self.memory)
        if not (self.forward > 0 and self.backward > 0 and self.weight >= 0 and self.memory >= 0) or math.inf in costs:
            raise ValueError(
                "a chain needs finite forward > 0, backward > 0, weight >= 0, memory >= 0; "
                f"{self.model} has {', '.join(f'{cost:g}' for cost in costs)}"
            )


class Op(NamedTuple):
    """One kind of work on one node: all micro-batches of one stage in one direction."""

    node: int
    chain: int
    stage: int
    kind: int
    lane: int
    time: float
    delta: float  # memory that it takes (> 0, at its start) or gives back (< 0, at its end)
    up: int  # the op it waits for, micro-batch by micro-batch; -1: none
    lag: float  # time between the end of that op and the earliest start of this one
    count: int  # micro-batches

    @property
    def letter(self) -> str:
        if self.kind == WEIGHT:
            return str(self.lane)
        return LETTERS[self.lane] if self.kind == FORWARD else LETTERS[self.lane].lower()


@dataclass(frozen=True)
class Problem:
    """Chains on shared nodes; ``send`` is the time between two stages on different nodes."""

    chains: tuple[Chain, ...]
    send: float = 0.0

    def __post_init__(self):
        if not self.chains:
            raise ValueError("a pipeline problem needs at least one chain, got none")
        lanes = sum(max(np.bincount(chain.nodes)) for chain in self.chains)
        split = any(chain.weight for chain in self.chains)
        if lanes > (10 if split else len(LETTERS)):
            raise ValueError(
                f"{lanes} lanes (chains x chunks) do not fit the letters of a schedule; allowed: "
                f"{len(LETTERS)}, or 10 with split backwards"
            )
        if not 0 <= self.send < math.inf:
            raise ValueError(f"send must be >= 0 and finite, got {self.send}")

    @property
    def nodes(self) -> int:
        return 1 + max(max(chain.nodes) for chain in self.chains)

    @cached_property
    def ops(self) -> tuple[Op, ...]:
        """Chain by chain, stage by stage: forward, backward, weight gradient."""
        found: list[Op] = []
        lane = 0
        for c, chain in enumerate(self.chains):
            width = 3 if chain.weight else 2
            first, last, seen = len(found), len(chain.nodes) - 1, dict.fromkeys(chain.nodes, 0)
            for s, node in enumerate(chain.nodes):

                def lag(other: int, node: int = node, chain: Chain = chain) -> float:
                    return 0.0 if chain.nodes[other] == node else self.send

                here, row = first + s * width, lane + seen[node]
                fixed = {"node": node, "chain": c, "stage": s, "lane": row, "count": chain.micro}
                found.append(
                    Op(
                        kind=FORWARD,
                        time=chain.forward,
                        delta=chain.memory,
                        up=here - width if s else -1,
                        lag=lag(s - 1) if s else 0.0,
                        **fixed,
                    )
                )
                freed = 0.0 if chain.weight else -chain.memory
                found.append(
                    Op(
                        kind=BACKWARD,
                        time=chain.backward,
                        delta=freed,
                        lag=lag(s + 1) if s < last else 0.0,
                        up=here + width + 1 if s < last else here,
                        **fixed,
                    )
                )
                if chain.weight:
                    found.append(Op(kind=WEIGHT, time=chain.weight, delta=-chain.memory, up=here + 1, lag=0.0, **fixed))
                seen[node] += 1
            lane += max(seen.values())
        return tuple(found)

    @cached_property
    def by_letter(self) -> tuple[dict[str, int], ...]:
        """For each node, letter -> index in ``ops``."""
        found: list[dict[str, int]] = [{} for _ in range(self.nodes)]
        for index, op in enumerate(self.ops):
            found[op.node][op.letter] = index
        return tuple(found)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Ops of each node, all micro-batches counted."""
        return tuple(sum(self.ops[index].count for index in letters.values()) for letters in self.by_letter)

    @cached_property
    def work(self) -> tuple[float, ...]:
        """Time that each node must compute."""
        return tuple(sum(self.ops[i].count * self.ops[i].time for i in letters.values()) for letters in self.by_letter)

    def codes(self, rows: Iterable[str]) -> list[np.ndarray]:
        """Rows as indices into ``ops``; says what is wrong with rows that are no schedule of this problem."""
        rows = list(rows)
        if len(rows) != self.nodes:
            raise ValueError(f"the problem has {self.nodes} nodes, the schedule has {len(rows)} rows")
        found = []
        for node, (row, letters) in enumerate(zip(rows, self.by_letter, strict=True)):
            for letter in sorted(set(row) | set(letters)):
                need = self.ops[letters[letter]].count if letter in letters else 0
                if row.count(letter) != need:
                    raise ValueError(
                        f"node {node} must run '{letter}' {need} times, its row has {row.count(letter)}; "
                        f"letters of this node: {''.join(sorted(letters)) or 'none'}"
                    )
            found.append(np.array([letters[letter] for letter in row], dtype=np.int64))
        return found

    def rows(self, codes: Iterable[Sequence[int]]) -> tuple[str, ...]:
        """The strings of rows given as indices into ``ops``."""
        return tuple("".join(self.ops[index].letter for index in row) for row in codes)


@dataclass(frozen=True)
class Timing:
    """A schedule that has been run on paper. ``spans``: (node, op, micro-batch, start, end), by node and start."""

    makespan: float
    peak_memory: float
    node_peaks: tuple[float, ...]
    spans: tuple[tuple[int, int, int, float, float], ...]
    work: tuple[float, ...]

    @property
    def bubble(self) -> float:
        """Idle share of all nodes, from time 0 to the makespan."""
        return 1.0 - sum(self.work) / (len(self.work) * self.makespan)


def simulate(problem: Problem, rows: Iterable[str]) -> Timing:
    """Start every op as early as its node and its upstream op allow.

    Args:
        rows: one string per node (see the head of this file).
    Raises:
        ValueError: if the rows do not hold exactly the problem's ops, if a backward comes before its forward on its
            node, or if the nodes wait for one another in a circle.
    """
    rows, ops = list(rows), problem.ops
    codes = problem.codes(rows)
    ends: list[list[float]] = [[] for _ in ops]
    place, clock = [0] * problem.nodes, [0.0] * problem.nodes
    held, peak = [0.0] * problem.nodes, [0.0] * problem.nodes
    spans = []
    moved = True
    while moved:
        moved = False
        for node, row in enumerate(codes):
            while place[node] < len(row):
                index = int(row[place[node]])
                op, turn = ops[index], len(ends[index])
                if op.up >= 0 and len(ends[op.up]) <= turn:
                    break
                start = max(clock[node], ends[op.up][turn] + op.lag if op.up >= 0 else 0.0)
                clock[node] = start + op.time
                ends[index].append(clock[node])
                held[node] += op.delta
                peak[node] = max(peak[node], held[node])
                spans.append((node, index, turn, start, clock[node]))
                place[node] += 1
                moved = True
    stuck = [node for node, row in enumerate(codes) if place[node] < len(row)]
    if stuck:
        _explain(problem, rows, place)
    peaks = tuple(round(value, 9) for value in peak)
    return Timing(max(clock), max(peaks), peaks, tuple(sorted(spans, key=lambda s: (s[0], s[3]))), problem.work)


def _explain(problem: Problem, rows: Sequence[str], place: Sequence[int]) -> None:
    """Why nothing can move on: raises."""
    blocked = []
    for node, (row, at) in enumerate(zip(rows, place, strict=True)):
        if at == len(row):
            continue
        op, turn = problem.ops[problem.by_letter[node][row[at]]], row[:at].count(row[at])
        source = problem.ops[op.up]
        if source.node == node:
            raise ValueError(
                f"node {node} asks for '{row[at]}' of micro-batch {turn} at position {at}, before the "
                f"'{source.letter}' of it"
            )
        blocked.append(f"node {node} waits for '{source.letter}' {turn} of node {source.node}")
    raise ValueError(f"deadlock: {'; '.join(blocked[:4])}{' ...' if len(blocked) > 4 else ''}")
