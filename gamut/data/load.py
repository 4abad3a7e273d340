"""Batches by number: a stream whose position is one integer, so a run can go on exactly where it stopped."""

import random
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Stream(Protocol):
    """What `fit` draws batches from. What comes next depends on its state alone, never on the global random states."""

    def __next__(self) -> Any: ...
    def state_dict(self) -> dict: ...
    def load_state_dict(self, state: dict) -> None: ...


def alike(items: Iterable[Any], size: int, length: Callable[[Any], int], rng: random.Random) -> list[list[Any]]:
    """Batches of ``size`` items of like length, in an order that ``rng`` draws."""
    near = sorted(items, key=length)
    return rng.sample([near[i : i + size] for i in range(0, len(near), size)], -(-len(near) // size))


class Batches:
    """``make(0)``, ``make(1)``, ... without end. ``make`` must depend on nothing but the index (and a seed of its own).

    Args:
        make: batch number -> batch. With ``prefetch`` it runs in threads, so it may not use the global random states.
        prefetch: batches made ahead, a thread each. The order and every batch are the same as with 0.
    Raises:
        what ``make`` raised, at the ``next`` that should have returned that batch, with a note that names its index.

    >>> batches = Batches(lambda index: index * 10)
    >>> next(batches), next(batches), batches.state_dict()
    (0, 10, {'index': 2})
    """

    def __init__(self, make: Callable[[int], Any], prefetch: int = 0):
        if prefetch < 0:
            raise ValueError(f"prefetch is the number of batches made ahead, 0 or more; got {prefetch}")
        self.make, self.prefetch = make, prefetch
        self.index, self.rank, self.world = 0, 0, 1
        self._ahead: dict[int, Future] = {}

    def shard(self, rank: int, world: int) -> "Batches":
        """Of every ``world`` batches give the one of this rank; the position still counts the batches of all ranks."""
        self.rank, self.world = rank, world
        self._ahead.clear()
        return self

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Any:
        mine = self.index + self.rank
        try:
            batch = self._ahead.pop(mine).result() if mine in self._ahead else self.make(mine)
        except Exception as error:
            error.add_note(f"while making batch {mine} of the data")
            raise
        self.index += self.world
        for index in range(mine + self.world, mine + self.world * (self.prefetch + 1), self.world):
            if index not in self._ahead:
                self._ahead[index] = self._start(index)
        return batch

    def _start(self, index: int) -> Future:
        future = Future()

        def work() -> None:
            try:
                future.set_result(self.make(index))
            except BaseException as error:  # belongs to the thread that asks for this batch
                future.set_exception(error)

        threading.Thread(target=work, name=f"batch {index}").start()
        return future

    def state_dict(self) -> dict:
        return {"index": self.index}

    def load_state_dict(self, state: dict) -> None:
        self.index = int(state["index"])
        self._ahead.clear()
