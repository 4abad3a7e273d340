"""Fused pipelines of RLHFuse (arXiv 2409.13221, section 5): instances, lower bound, and the deterministic schedules.

A large model's pipeline runs over all nodes; a smaller model's pipelines run the other way, several side by side if it
has fewer stages. Backward takes twice the time of forward. The twelve instances, their times and memories are those of
the released search (FlexFusion/FlexFusion, Apache-2.0), which the paper's Table 3 reports.
"""

import math
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from gamut.plan.pipeline import BACKWARD, FORWARD, WEIGHT, Chain, Problem, simulate


@dataclass(frozen=True)
class Fused:
    """One instance: 0 is the large model, 1 the small one; micro-batches are per pipeline.

    >>> INSTANCES[8].problem.nodes, INSTANCES[8].serial, INSTANCES[8].bound
    (16, 276, 186)
    """

    name: str
    stages0: int
    stages1: int
    micro0: int
    micro1: int
    forward0: int
    forward1: int
    memory0: float
    memory1: float

    def __post_init__(self):
        if self.stages0 % self.stages1:
            raise ValueError(
                f"the small model's stages must divide the large one's; got {self.stages1} and "
                f"{self.stages0}: merge neighbouring stages first"
            )

    @property
    def problem(self) -> Problem:
        large, small = (self.name.split("/") * 2)[:2]
        chains = [
            Chain(tuple(range(self.stages0)), self.micro0, self.forward0, 2 * self.forward0, 0, self.memory0, large)
        ]
        for first in range(0, self.stages0, self.stages1):
            nodes = tuple(reversed(range(first, first + self.stages1)))
            chains.append(Chain(nodes, self.micro1, self.forward1, 2 * self.forward1, 0, self.memory1, small))
        return Problem(tuple(chains))

    @property
    def serial(self) -> int:
        """Makespan of one model's 1F1B after the other's."""
        return 3 * (self.forward0 * (self.micro0 + self.stages0 - 1) + self.forward1 * (self.micro1 + self.stages1 - 1))

    @property
    def serial_memory(self) -> float:
        """Peak activation memory of the serial schedule."""
        return max(min(self.stages0, self.micro0) * self.memory0, min(self.stages1, self.micro1) * self.memory1)

    @property
    def bound(self) -> int:
        """No schedule is shorter; see `lower_bound`."""
        return math.ceil(lower_bound(self.problem))

    @property
    def least_memory(self) -> float:
        """No schedule as short as the bound needs less, if the bound is the large model's own time: its first node then
        never waits, so it holds a micro-batch per stage when the first gradient comes back. Else 0: not known."""
        alone = 3 * self.forward0 * (self.micro0 + self.stages0 - 1)
        return self.stages0 * self.memory0 if self.bound == alone and self.micro0 >= self.stages0 else 0.0


_ROWS = (
    "33B/13B 8 4 32 16 5 4 1.95 2",
    "33B/13B 8 4 16 8 5 4 1.95 2",
    "33B/13B 8 4 8 4 5 4 1.95 2",
    "33B/13B 8 8 32 32 5 2 1.95 1",
    "33B/13B 8 8 16 16 5 2 1.95 1",
    "33B/13B 8 8 8 8 5 2 1.95 1",
    "65B/33B 16 8 64 32 2 2 1.64 2",
    "65B/33B 16 8 32 16 2 2 1.64 2",
    "65B/33B 16 8 16 8 2 2 1.64 2",
    "65B/33B 16 16 64 64 2 1 1.64 1",
    "65B/33B 16 16 32 32 2 1 1.64 1",
    "65B/33B 16 16 16 16 2 1 1.64 1",
)
INSTANCES = tuple(
    Fused(name, *map(int, sizes), *map(float, memory))
    for name, *rest in (row.split() for row in _ROWS)
    for sizes, memory in [(rest[:6], rest[6:])]
)

# makespan and peak memory of the last schedules published with the paper (FlexFusion/FlexFusion, results/, Apache-2.0)
PUBLISHED = (
    (708, 19.70), (372, 15.75), (225, 15.60), (702, 20.50), (366, 18.55), (225, 15.60),
    (618, 39.72), (330, 29.88), (186, 26.24), (613, 38.72), (318, 32.16), (186, 26.24),
)  # fmt: skip


def lower_bound(problem: Problem) -> float:
    """No schedule is shorter: all work over all nodes; or, for any node and for one chain or all of them, the work
    there between the shortest way in and the shortest way out. With two models it is RLHFuse's bound."""
    head, tail = ways(problem)
    best = sum(problem.work) / problem.nodes
    for letters in problem.by_letter:
        here = list(letters.values())
        for c in {problem.ops[i].chain for i in here}:
            some = [i for i in here if problem.ops[i].chain == c]
            for group in (some, here):
                work = sum(problem.ops[i].count * problem.ops[i].time for i in group)
                best = max(best, min(head[i] for i in group) + work + min(tail[i] for i in group))
    return best


def least_memory(problem: Problem, makespan: float) -> float:
    """No schedule of this makespan needs less memory: what a node holds on average, each micro-batch for its shortest
    way from the stage to the chain's end and back, and at least one micro-batch."""
    head, tail = ways(problem)
    best = max(chain.memory for chain in problem.chains)
    for letters in problem.by_letter:
        held, here = 0.0, list(letters.values())
        for i in here:
            op = problem.ops[i]
            if op.kind == FORWARD:
                last = i + (2 if problem.chains[op.chain].weight else 1)
                held += op.count * op.delta * (head[last] + problem.ops[last].time - head[i])
        span = makespan - min(head[i] for i in here) - min(tail[i] for i in here)
        best = max(best, held / span)
    return best


def ways(problem: Problem) -> tuple[list[float], list[float]]:
    """Per op: the shortest time before its first micro-batch can start, and after its last has ended."""
    ops = problem.ops
    head, tail = [0.0] * len(ops), [0.0] * len(ops)
    for c in range(len(problem.chains)):
        mine = [i for i, op in enumerate(ops) if op.chain == c]
        path = [i for i in mine if ops[i].kind == FORWARD] + [i for i in reversed(mine) if ops[i].kind == BACKWARD]
        for i in [i for i in mine if ops[i].kind == WEIGHT]:
            tail[ops[i].up] = ops[i].time
        for a, b in zip(reversed(path[:-1]), reversed(path), strict=False):
            tail[a] = max(tail[a], tail[b] + ops[b].time + ops[b].lag)
        for i in path[1:] + [i for i in mine if ops[i].kind == WEIGHT]:
            head[i] = head[ops[i].up] + ops[ops[i].up].time + ops[i].lag
    return head, tail


def one_f_one_b(stages: int, stage: int, micro: int, window: int | None = None) -> str:
    """Order of one stage under 1F1B: fill, then a backward after each forward. ``window``: most micro-batches held."""
    warm = min(micro, window or stages - stage)
    return "F" * warm + "fF" * (micro - warm) + "f" * warm


def serial(problem: Problem) -> tuple[str, ...]:
    """Each chain's 1F1B one after the other; a chain with chunks or split backwards by `greedy` in 1F1B's windows."""
    rows: list[list[int]] = [[] for _ in range(problem.nodes)]
    first = 0
    for chain in problem.chains:
        alone = Problem((chain,), problem.send)
        if chain.weight or len(set(chain.nodes)) < len(chain.nodes):
            made = greedy(alone, yielding=False, windows=True)
        else:
            made = tuple("".join(one_f_one_b(len(chain.nodes), chain.nodes.index(node), chain.micro)
                                 if node in chain.nodes else "") for node in range(alone.nodes))  # fmt: skip
        for node, codes in enumerate(alone.codes(made)):
            rows[node] += (first + codes).tolist()
        first += len(alone.ops)
    return problem.rows(rows)


class _Placing:
    """A schedule that is being filled in time order: what is placed, and when each node is free."""

    def __init__(self, problem: Problem):
        self.problem, self.ops = problem, problem.ops
        self.ends: list[list[float]] = [[] for _ in self.ops]
        self.clock = [0.0] * problem.nodes
        self.rows = [""] * problem.nodes

    def ready(self, index: int) -> float | None:
        """When the next micro-batch of this op may start as far as its upstream is concerned; None: not known yet."""
        op, turn = self.ops[index], len(self.ends[index])
        if turn == op.count or (op.up >= 0 and len(self.ends[op.up]) <= turn):
            return None
        return self.ends[op.up][turn] + op.lag if op.up >= 0 else 0.0

    def full(self, index: int) -> bool:
        """Whether this is a forward of a stage that holds as many micro-batches as 1F1B would let it."""
        op, chain = self.ops[index], self.problem.chains[self.ops[index].chain]
        freed = index + (2 if chain.weight else 1)
        held = len(self.ends[index]) - len(self.ends[freed]) if op.kind == FORWARD else 0
        return held >= len(chain.nodes) - op.stage

    def place(self, index: int, start: float) -> None:
        op = self.ops[index]
        self.ends[index].append(start + op.time)
        self.clock[op.node] = start + op.time
        self.rows[op.node] += op.letter


def greedy(problem: Problem, *, yielding: bool = True, windows: bool = False) -> tuple[str, ...]:
    """The paper's start: always the op that can start first; a small model's op must not delay the large model's.

    Ties: backward before forward, then node, then chain. The first chain is the large model. Without ``yielding`` all
    are alike, and of ties the op goes first that is farther along its chain. With ``windows`` a stage holds no more
    micro-batches than there are stages from it to the end.
    """
    state = _Placing(problem)
    for _ in range(sum(problem.lengths)):
        found = []
        for index, op in enumerate(problem.ops):
            ready = state.ready(index)
            if ready is not None and not (windows and state.full(index)):
                far = 0 if yielding else -op.stage
                found.append((max(ready, state.clock[op.node]), op.kind != BACKWARD, far, op.node, op.chain, index))
        first = {}
        for start, *_, node, chain, _ in found:
            if yielding and chain == 0:
                first[node] = min(start, first.get(node, start))
        kept = [
            one for one in found if one[-2] == 0 or one[0] + problem.ops[one[-1]].time <= first.get(one[-3], math.inf)
        ]
        start, *_, index = min(kept)
        state.place(index, start)
    return tuple(state.rows)


def fill_gaps(problem: Problem, *, soonest_end: bool = False) -> tuple[str, ...]:
    """The first chain runs its 1F1B undisturbed; the others' ops go into the gaps, the earliest possible first.

    Args:
        soonest_end: take the op that would end first instead of the one that would start first.
    """
    state = _Placing(problem)
    busy: list[list[tuple[float, float, int]]] = [[] for _ in range(problem.nodes)]
    alone = Problem(problem.chains[:1], problem.send)
    for node, index, _, start, end in simulate(alone, serial(alone)).spans:
        state.ends[index].append(end)
        busy[node].append((start, end, index))
    for _ in range(sum(op.count for op in problem.ops if op.chain)):
        found = []
        for index, op in enumerate(problem.ops):
            ready = state.ready(index)
            if ready is None:
                continue
            ready = max(ready, state.ends[index][-1] if state.ends[index] else 0.0)
            for start, end, _ in busy[op.node]:
                if ready + op.time <= start:
                    break
                ready = max(ready, end)
            found.append((ready + op.time * soonest_end, op.kind != BACKWARD, op.node, op.chain, index, ready))
        *_, index, start = min(found)
        op = problem.ops[index]
        state.ends[index].append(start + op.time)
        insort(busy[op.node], (start, start + op.time, index))
    return tuple("".join(problem.ops[index].letter for _, _, index in row) for row in busy)


fillers: dict[str, Callable[[Problem], tuple[str, ...]]] = {
    "gap filler, earliest start": fill_gaps,
    "gap filler, earliest end": partial(fill_gaps, soonest_end=True),
}
