"""Checkpoints under way: whole or absent, damage named, a full disk harmless; and dice that follow from a key."""

import ctypes
import os
import random
import resource

import numpy as np
import pytest
import torch

from gamut.io.state import NOTE, load_state, own_dice, reseed, save_state, saved


def tensors(step, size=10):
    return {"model": {"w": torch.full((size,), float(step)), "n": torch.tensor(step)}, "model.optim": {}}


def save(folder, step, **more):
    return save_state(folder, step, tensors(step), {"data": {"index": step}, "loss": 0.1 + step}, **more)


def test_what_is_saved_comes_back(tmp_path):
    assert load_state(tmp_path) == (None, [])
    path = save(tmp_path, 7)
    state, problems = load_state(tmp_path)
    assert (state.path, state.step, problems) == (path, 7, []) and path.name == "step_00000007"
    assert state.meta == {"data": {"index": 7}, "loss": 7.1} and list(state.tensors) == ["model"]
    assert torch.equal(state.tensors["model"]["w"], torch.full((10,), 7.0)) and state.tensors["model"]["n"] == 7


def test_the_newest_are_kept(tmp_path):
    for step in (1, 2, 30, 4):  # by step, not by time
        save(tmp_path, step, keep=3)
    assert [path.name for path in saved(tmp_path)] == ["step_00000030", "step_00000004", "step_00000002"]


def test_saving_again_replaces(tmp_path):
    save(tmp_path, 3)
    save_state(tmp_path, 3, tensors(5), {})
    assert load_state(tmp_path)[0].tensors["model"]["n"] == 5 and len(os.listdir(tmp_path)) == 1


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("file", "harm", "message"),
    [
        ("model.safetensors", truncate, "model.safetensors' is truncated: got "),
        ("model.safetensors", flip, "model.safetensors' is damaged: its SHA-256 is not the one in state.json"),
        ("model.safetensors", os.remove, "model.safetensors' is missing"),
        (NOTE, truncate, "state.json' is missing or damaged"),
        (NOTE, os.remove, "state.json' is missing or damaged"),
    ],
)
def test_damage_is_named_and_the_one_before_used(tmp_path, file, harm, message):
    save(tmp_path, 1)
    harm(save(tmp_path, 2) / file)
    state, problems = load_state(tmp_path)
    assert state.step == 1 and len(problems) == 1 and message in problems[0] and "step_00000002" in problems[0]
    harm(tmp_path / "step_00000001" / file)
    with pytest.raises(ValueError, match=r"no whole checkpoint in .*step_00000002.*step_00000001.*Remove that folder"):
        load_state(tmp_path)


def in_child(function):
    """Run in a forked process; its exit status."""
    pid = os.fork()
    if not pid:
        try:
            function()
        except BaseException as error:
            print(repr(error))
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_full_disk_leaves_the_one_before(tmp_path):
    """The kernel refuses to let any file grow beyond 64 kB: the same error path as a disk without space."""
    save(tmp_path, 1)

    def write():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        with pytest.raises(OSError, match=r"could not save .*step_00000002': File too large; .*step_00000001' is "):
            save_state(tmp_path, 2, tensors(2, size=1 << 20), {})
        with pytest.raises(OSError, match=r"nothing was saved before it. Free some space, then resume"):
            save_state(tmp_path / "other", 2, tensors(2, size=1 << 20), {})

    assert in_child(write) == 0
    assert os.listdir(tmp_path / "other") == [] and sorted(os.listdir(tmp_path)) == ["other", "step_00000001"]
    assert load_state(tmp_path)[0].step == 1


def test_a_disk_that_is_really_full(tmp_path):
    """A tmpfs of 256 kB, in a mount namespace of its own; only where this user may make one."""
    refused = 77

    def write():
        if ctypes.CDLL(None, use_errno=True).unshare(0x20000) or os.system(
            f"mount --make-rprivate / 2>/dev/null && mount -t tmpfs -o size=256k none {tmp_path} 2>/dev/null"
        ):
            os._exit(refused)
        save(tmp_path, 1)
        with pytest.raises(OSError, match=r"No space left on device; .*step_00000001' is untouched"):
            save_state(tmp_path, 2, tensors(2, size=1 << 20), {})
        assert load_state(tmp_path)[0].step == 1 and os.listdir(tmp_path) == ["step_00000001"]
        save(tmp_path, 3)  # there is space again

    status = in_child(write)
    if status == refused:
        pytest.skip("mounting needs root")
    assert status == 0


def test_killed_while_saving(tmp_path):
    """What a dead process left unfinished is neither read nor kept."""
    save(tmp_path, 1)

    class Deadly(dict):
        def items(self):
            yield "w", torch.zeros(3)
            os._exit(9)

    assert in_child(lambda: save_state(tmp_path, 2, {"model": {"w": torch.ones(3)}, "late": Deadly(x=1)}, {})) == 9
    assert len(os.listdir(tmp_path)) == 2 and load_state(tmp_path)[0].step == 1
    save(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == ["step_00000001", "step_00000002"]


def draws():
    return torch.rand(2).tolist() + np.random.rand(2).tolist() + [random.random()]


def test_dice_follow_from_their_key():
    reseed(0, "train", 1)
    first = draws()
    assert draws() != first
    others = []
    for key in [(0, "train", 2), (1, "train", 1), (0, "other", 1), (0, "train", 1, 0)]:
        reseed(*key)
        others.append(draws())
    assert all(a != b for a, b in zip(first, others[0], strict=True)) and first not in others
    assert len({tuple(other) for other in others}) == 4
    reseed(0, "train", 1)
    assert draws() == first


def test_own_dice_are_put_back_also_after_an_error():
    reseed(3)
    want = draws()
    reseed(3)
    with pytest.raises(KeyError), own_dice():
        draws()
        raise KeyError
    assert draws() == want
