"""Real signals to real processes: killed at any moment, asked to stop, asked twice."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
import torch.utils.tensorboard  # once here, not in every child
from safetensors.torch import load_file
from torch import nn

from gamut.data.load import Batches
from gamut.io.runs import Run
from gamut.io.state import saved
from gamut.train.loop import Quiet, fit
from gamut.train.optim import Optim, Phase

STEPS = 21


@pytest.fixture
def tmp_path(tmp_path_factory):
    """In memory where there is such a disk: processes die here, not machines, and hundreds of fsyncs take a minute."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path_factory.mktemp("kill")
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def train(run, phases=1, pause=0.0, steps=STEPS, tell=None, view=None):
    torch.manual_seed(0)
    a, b = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 4)), nn.Linear(4, 1)

    def step(batch, phase):
        if tell is not None:
            os.write(tell, b".")
        time.sleep(pause)
        score = b(a(batch)).mean()
        return (score if phase == "a" else (score - 1).square()), {}

    def make(index):
        return torch.randn(8, 4, generator=torch.Generator().manual_seed(index))

    both = [Phase("a", a, Optim(ema=0.9)), Phase("b", b, Optim(lr=0.1), every=2)][:phases]
    data = Batches(make, prefetch=phases - 1)
    return fit(step, both, data, steps=steps, run=run, save_every=4, accumulate=2, view=view or Quiet())


def child(function):
    """The id of a forked process that runs ``function`` and exits as a program would."""
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        function()
        os._exit(0)
    except SystemExit as error:
        os._exit(error.code)
    except KeyboardInterrupt:
        os._exit(99)
    except BaseException as error:
        os.write(2, repr(error).encode())
        os._exit(1)


def status(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def result(run):
    newest = saved(run.checkpoints("train"))[0]
    assert newest.name == f"step_{STEPS:08d}"
    return {file.name: load_file(file) for file in newest.glob("*.safetensors")}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[file][n], b[file][n]) for file in a for n in a[file])


@pytest.mark.parametrize("phases", [1, 2])
def test_killed_at_any_moment(tmp_path, phases):
    """SIGKILL after random times, in steps and in saves, until it comes through: the same bits as undisturbed."""
    whole, torn = Run.create(tmp_path, "whole", {}), Run.create(tmp_path, "torn", {})
    began = time.perf_counter()
    assert status(child(lambda: train(whole, phases))) == 0
    long, dice, kills = time.perf_counter() - began, random.Random(phases), 0
    for _ in range(5):
        pid = child(lambda: train(torn, phases))
        time.sleep(dice.random() * 0.5 * long)
        os.kill(pid, signal.SIGKILL)
        kills += status(pid) == -signal.SIGKILL
    assert status(child(lambda: train(torn, phases))) == 0
    assert kills > 1 and same(result(whole), result(torn))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop_it_saves_and_says_how_to_go_on(tmp_path, number, code):
    whole, stopped = Run.create(tmp_path, "whole", {}), Run.create(tmp_path, "stopped", {})
    train(whole, 2)
    hear, tell = os.pipe()

    class Note(Quiet):
        def note(self, text):
            (tmp_path / "note").write_text(text)

    pid = child(lambda: train(stopped, 2, tell=tell, pause=0.005, view=Note()))
    os.read(hear, 1)
    time.sleep(0.05)
    os.kill(pid, number)
    assert status(pid) == code
    step = int(saved(stopped.checkpoints("train"))[0].name[5:])
    text = (tmp_path / "note").read_text()
    assert 0 < step < STEPS and f"{number.name} at step {step} of {STEPS} of 'train'; saved in '{stopped.path}" in text
    assert text.endswith(f"To go on: gamut run --resume {stopped.path}")
    assert stopped.lines()[-1]["step"] == step
    assert train(stopped, 2).steps == STEPS and same(result(whole), result(stopped))


def test_a_second_ctrl_c_does_not_wait_for_the_step(tmp_path):
    run = Run.create(tmp_path, "run", {})
    hear, tell = os.pipe()
    pid = child(lambda: train(run, pause=5.0, tell=tell))
    os.read(hear, 1)
    os.kill(pid, signal.SIGINT)
    time.sleep(0.2)
    began = time.perf_counter()
    os.kill(pid, signal.SIGINT)
    assert status(pid) == 99 and time.perf_counter() - began < 2
    assert not saved(run.checkpoints("train"))


def test_a_program_ends_without_a_traceback(tmp_path):
    """As a shell sees it: the handlers are put back, the exit code is 143, nothing on stderr but the sentence."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_fit_kill as t\n"
        "from gamut.train.log import View\n"
        "t.train(t.Run.create(sys.argv[2], 'run', {}), pause=0.005, steps=10**6, tell=2, view=View())"
    )
    command = [sys.executable, "-c", code, os.path.dirname(__file__), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stderr.read(5)
    process.terminate()
    out, err = process.communicate(timeout=30)
    assert process.returncode == 143 and b"Traceback" not in err
    assert b"finishing this step, then saving; Ctrl-C again stops at once" in err
    said = b" ".join(out.split())
    assert b"SIGTERM at step" in said and b"To go on: gamut run --resume" in said
