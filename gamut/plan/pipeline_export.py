"""A schedule as data: JSON in and out, and the instruction list that each rank executes."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from gamut.plan.pipeline import Chain, Problem, simulate

WORDS = ("F", "B", "W")


@dataclass(frozen=True)
class Instruction:
    """One step of a rank. ``do``: F, B, W, RECV_F, RECV_B, SEND_F, SEND_B; F and B after RECV and SEND say what
    travels.

    ``peer``: the other rank of a transfer, -1 for a computation. ``start``: when a computation starts, or when the
    message is there to be sent, on the time scale of the problem.
    """

    do: str
    chain: int
    stage: int
    micro: int
    peer: int
    start: float


def instructions(problem: Problem, rows: Iterable[str]) -> tuple[tuple[Instruction, ...], ...]:
    """Each rank's list, in the order in which it must be issued.

    Sends follow at once the op that made the message and must not block. Receives come before the op that needs them.
    Messages between two ranks appear on both in the order in which they are sent, which is all that a backend needs
    that pairs messages by order; a receive waits in front of an earlier op where that order asks for it.
    """
    ops, timing = problem.ops, simulate(problem, rows)
    users = {
        (op.up, ops[op.up].node, op.node): i for i, op in enumerate(ops) if op.up >= 0 and ops[op.up].node != op.node
    }
    lists: list[list[Instruction]] = [[] for _ in range(problem.nodes)]
    queues: dict[tuple[int, int], list[tuple[int, int, float]]] = {}
    for node, index, turn, _, end in sorted(timing.spans, key=lambda span: span[4]):
        for (source, a, b), user in users.items():
            if source == index and a == node:
                queues.setdefault((a, b), []).append((user, turn, end))
    for node, index, turn, start, end in timing.spans:
        op = ops[index]
        if op.up >= 0 and ops[op.up].node != node:
            queue = queues[ops[op.up].node, node]
            while any(waiting[:2] == (index, turn) for waiting in queue):
                user, micro, sent = queue.pop(0)
                lists[node].append(_transfer("RECV", problem, user, micro, ops[op.up].node, sent))
        lists[node].append(Instruction(WORDS[op.kind], op.chain, op.stage, turn, -1, start))
        for (source, a, b), user in users.items():
            if source == index and a == node:
                lists[node].append(_transfer("SEND", problem, user, turn, b, end))
    return tuple(tuple(one) for one in lists)


def _transfer(do: str, problem: Problem, user: int, micro: int, peer: int, start: float) -> Instruction:
    op = problem.ops[user]
    return Instruction(f"{do}_{WORDS[op.kind]}", op.chain, op.stage, micro, peer, start)


def save(path: str | Path, problem: Problem, rows: Iterable[str]) -> Path:
    """Problem, rows and what they cost as JSON, which `load` reads; instruction lists are made from it by
    `instructions`."""
    from gamut.io.files import atomic_write

    rows = tuple(rows)
    timing = simulate(problem, rows)
    text = {
        "chains": [asdict(chain) for chain in problem.chains],
        "send": problem.send,
        "makespan": timing.makespan,
        "peak_memory": timing.peak_memory,
        "nodes": rows,
    }
    return atomic_write(path, json.dumps(text, indent=1) + "\n")


def load(path: str | Path) -> tuple[Problem, tuple[str, ...]]:
    """Raises ValueError if the rows are no schedule of the problem in the same file, or the file holds neither."""
    try:
        data = json.loads(Path(path).read_text())
        chains = tuple(Chain(**{**chain, "nodes": tuple(chain["nodes"])}) for chain in data["chains"])
        problem, rows = Problem(chains, data["send"]), tuple(data["nodes"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no schedule ({error!r}); gamut plan pipeline --save FILE writes one") from error
    simulate(problem, rows)
    return problem, rows
