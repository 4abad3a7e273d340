"""Batches by number: the same order whatever is made ahead, errors with the index, a position of one integer."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gamut.data.load import Batches
from gamut.train.dist import move


def made(index):
    time.sleep((index * 7 % 3) * 1e-3)  # threads finish out of order
    return torch.randn(3, generator=torch.Generator().manual_seed(index))


@settings(max_examples=25, deadline=None)
@given(prefetch=st.integers(0, 5), first=st.integers(0, 7), count=st.integers(1, 6))
def test_prefetch_changes_nothing(prefetch, first, count):
    """The same batches in the same order, also after going on in the middle of what was made ahead."""
    batches = Batches(made, prefetch=prefetch)
    for i in range(first):
        assert torch.equal(next(batches), made(i))
    again = Batches(made, prefetch=prefetch)
    again.load_state_dict(batches.state_dict())
    for i in range(first, first + count):
        want = made(i)
        assert torch.equal(next(batches), want) and torch.equal(next(again), want)
    assert batches.state_dict() == again.state_dict() == {"index": first + count}


def test_prefetch_is_bounded_and_works_while_the_consumer_does():
    begun, ended = set(), set()

    def make(index):
        begun.add(index)
        time.sleep(0.02)
        ended.add(index)
        return index

    batches = Batches(make, prefetch=3)
    assert next(batches) == 0
    for _ in range(500):
        time.sleep(0.01)
        if len(ended) == 4:
            break
    assert begun == ended == {0, 1, 2, 3}  # three ahead, done before anybody asked, and not more


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_names_its_batch_and_comes_in_its_turn(prefetch):
    def make(index):
        if index == 3:
            raise OSError("clip 'a.wav' is missing")
        return index

    batches = Batches(make, prefetch=prefetch)
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    for _ in range(2):  # and asking again gives it again: nothing is skipped
        with pytest.raises(OSError, match=r"clip 'a.wav' is missing\nwhile making batch 3 of the data"):
            next(batches)
    assert batches.state_dict() == {"index": 3}


def test_ranks_share_the_batches():
    both = [Batches(lambda i: i, prefetch=2).shard(rank, 2) for rank in (0, 1)]
    assert [next(both[0]), next(both[1]), next(both[0]), next(both[1])] == [0, 1, 2, 3]
    assert both[0].state_dict() == both[1].state_dict() == {"index": 4}


def test_no_threads_are_left():
    batches = Batches(made, prefetch=4)
    next(batches)
    for thread in threading.enumerate():
        if thread.name.startswith("batch "):
            thread.join(2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batch ")]


def test_ctrl_c_ends_a_program_that_waits_for_a_slow_batch():
    code = (
        "import sys, time; sys.modules['torch'] = type(sys)('torch'); sys.modules['torch'].device = object\n"
        "from gamut.data.load import Batches\n"
        "b = Batches(lambda i: time.sleep(0.5 if i else 0), prefetch=2); next(b); print('go', flush=True)\n"
        "while True: next(b)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"go\n"
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    assert b"KeyboardInterrupt" in process.communicate(timeout=5)[1]


@dataclass(frozen=True)
class Clip:
    frames: torch.Tensor
    name: str


def test_move_reaches_every_tensor():
    batch = {"clips": [Clip(torch.zeros(2), "a")], "pair": (torch.ones(1), 3)}
    there = move(batch, torch.device("meta"))
    assert there["clips"][0].frames.is_meta and there["clips"][0].name == "a"
    assert there["pair"][0].is_meta and there["pair"][1] == 3


def test_negative_prefetch_is_refused():
    with pytest.raises(ValueError, match="prefetch is the number of batches made ahead, 0 or more; got -1"):
        Batches(made, prefetch=-1)
