"""Documents of unlike length into batches with little padding: one after another in a row, or beside their like.

B rows · T tokens · N documents by number
"""

import bisect
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Groups = list[list[int]]


@dataclass(frozen=True)
class Packed:
    """Rows of several documents: ``segments_BT`` numbers them in a row, padding last; ``learn_BT`` marks targets."""

    ids_BT: Int[Tensor, "B T"]
    segments_BT: Int[Tensor, "B T"]
    learn_BT: Bool[Tensor, "B T"]


def pack(lengths: Sequence[int], room: int) -> Groups:
    """Documents to be joined: no group longer than ``room`` tokens. Longest first, each where it fits most tightly.

    Raises:
        ValueError: a document is longer than ``room`` or empty.

    >>> pack([5, 3, 7, 2, 1], room=8)
    [[2, 4], [0, 1], [3]]
    """
    _check(lengths, room, "room")
    groups: Groups = []
    left: list[tuple[int, int]] = []  # (free tokens, group), ascending
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect.bisect_left(left, (lengths[number], 0))
        if at == len(left):
            free, group = room, len(groups)
            groups.append([])
        else:
            free, group = left.pop(at)
        groups[group].append(number)
        bisect.insort(left, (free - lengths[number], group))
    return groups


def buckets(lengths: Sequence[int], tokens: int) -> Groups:
    """Documents to be padded to the longest of their group: rows x longest is at most ``tokens``. Shortest first.

    Raises:
        ValueError: a document is longer than ``tokens`` or empty.

    >>> buckets([5, 3, 7, 2, 1], tokens=8)
    [[4, 3], [1], [0], [2]]
    """
    _check(lengths, tokens, "tokens")
    groups: Groups = [[]]
    for number in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if (len(groups[-1]) + 1) * lengths[number] > tokens:
            groups.append([])
        groups[-1].append(number)
    return groups


def _check(lengths: Sequence[int], most: int, name: str) -> None:
    if not lengths:
        raise ValueError("no documents to group; check the path of the data")
    for number, length in enumerate(lengths):
        if not 1 <= length <= most:
            raise ValueError(f"document {number} has {length} tokens, allowed are 1 to {name}={most}; cut or drop it")


def shuffled(groups: Groups, seed: int) -> Callable[[int], list[int]]:
    """The group of each batch number, for `Batches`: every group once an epoch, each epoch in an order of its own."""

    def group(index: int) -> list[int]:
        epoch, place = divmod(index, len(groups))
        if epoch not in orders:
            orders.clear()
            orders[epoch] = random.Random(f"{seed} {epoch}").sample(range(len(groups)), len(groups))
        return groups[orders[epoch][place]]

    orders: dict[int, list[int]] = {}
    return group


def packed(rows: Sequence[Sequence[Sequence[int]]], room: int, pad: int = 0) -> Packed:
    """Token ids of the documents of each row, one after another, padded to ``room``.

    The first token of a document is no target: nothing before it belongs to it.
    """
    ids = torch.full((len(rows), room), pad)
    segments = torch.empty_like(ids)
    learn = torch.zeros_like(ids, dtype=torch.bool)
    for b, documents in enumerate(rows):
        at = 0
        for number, document in enumerate(documents):
            end = at + len(document)
            if end > room:
                raise ValueError(f"row {b} holds more than room={room} tokens; group the documents with pack()")
            ids[b, at:end] = torch.as_tensor(document)
            segments[b, at:end], learn[b, at + 1 : end] = number, True
            at = end
        segments[b, at:] = len(documents)
    return Packed(ids, segments, learn)
