"""Two processes against one: one torchrun launch holds the checks that need both (this file is also its script)."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gamut.data.load import Batches
from gamut.io import learners
from gamut.io.runs import Run
from gamut.io.state import saved
from gamut.train import dist
from gamut.train.loop import Interrupted, NotFiniteError, Quiet, fit, update
from gamut.train.optim import Group, Learner, Optim, Phase

OPTIM = Optim(lr=1e-2, warmup=2, ema=0.9, clip=0.5)


class Net(nn.Module):
    """Blocks in a list, an odd width that does not divide by two, dropout, and a method beside forward."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Linear(4, 7)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(7), nn.Linear(7, 7), nn.GELU(), nn.Dropout(0.1)) for _ in range(3)
        )
        self.head = nn.Linear(7, 1)

    def hidden(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return x

    def forward(self, x):
        return self.head(self.hidden(x))


def make(index):
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(index))
    return x, x.square().sum(1, keepdim=True)


def regression(model):
    def step(batch, phase):
        noise = 0.1 * torch.randn_like(batch[0])  # from the dice of this micro-batch, on whatever rank
        weight = 1 + int(batch[0][0, 0] > 0)
        return (model(batch[0] + noise) - batch[1]).square().mean(), {
            "weight": weight,
            "tokens": 4,
            "noise": noise.mean(),
        }

    return step


def regress(model, steps=6, run=None, **settings):
    settings = {"optim": OPTIM, "accumulate": 2, "view": Quiet(), **settings}
    return fit(regression(model), model, Batches(make, prefetch=1), steps=steps, run=run, **settings)


def two_phases(model):
    judge = Net(1)
    optims = Optim(lr=1e-2, groups=(Group("embed*", lr_scale=0.0),)), Optim(lr=1e-2, clip=math.inf)

    def step(batch, phase):
        return (judge(batch[0] * model(batch[0])).square().mean() - (1.0 if phase == "maker" else 0.0)) ** 2, {}

    phases = [Phase("maker", model, optims[0]), Phase("judge", judge, optims[1], every=2)]
    return fit(step, phases, Batches(make), steps=5, accumulate=2, view=Quiet())


def sometimes(model):
    """One half of the head is used in some micro-batches only: on one rank it gets no gradient."""

    def step(batch, phase):
        x = model.hidden(batch[0])
        return (model.head(x).mean() if batch[0][0, 0] > 0 else x.mean()), {}

    return fit(step, model, Batches(make), steps=5, accumulate=2, view=Quiet(), optim=OPTIM)


def outcome(result):
    """What must not depend on the number of processes."""
    tensors = {
        f"{file}/{n}": t.clone()
        for x in result.learners
        for f in [learners.pack(x)]
        for file in f
        for n, t in f[file].items()
    }
    return tensors | {"loss": torch.tensor(result.loss, dtype=torch.float64)}


def worker(folder):
    """The checks of both ranks; rank 0 writes down what it got."""
    dist.start(timeout=60.0)
    assert dist.world() == 2 and dist.gather(dist.rank()) == [0, 1]
    found = {
        "copied": outcome(regress(Net())),
        "sharded": outcome(regress(dist.shard(Net()))),
        "copied, two phases": outcome(two_phases(Net())),
        "sharded, two phases": outcome(two_phases(dist.shard(Net()))),
        "copied, sometimes": outcome(sometimes(Net())),
        "sharded, resumes single": outcome(regress(dist.shard(Net(5)), run=Run.open(folder / "single"))),
    }
    result = regress(dist.shard(Net(), methods=["hidden"]), steps=3, run=Run.open(folder / "shards"))
    notes = {"stats": result.stats}
    model = dist.shard(Net(), methods=["hidden"])
    assert torch.equal(learners.whole(model.blocks[1][1].weight), Net().blocks[1][1].weight)
    assert len(model.blocks[1][1].weight.to_local()) in (3, 4)  # 7 rows, shared out
    notes["hidden"] = (model.hidden(make(0)[0]).sum() - Net().hidden(make(0)[0]).sum()).abs().item()

    for name, broken in [
        ("accumulate", lambda: regress(Net(), accumulate=1)),
        ("nan on one rank", lambda: nan_on_rank_1()),
        ("signal to one rank", lambda: signal_to_rank_1(folder)),
    ]:
        try:
            broken()
        except (ValueError, NotFiniteError, Interrupted) as error:
            notes[name] = dist.gather(f"{type(error).__name__}: {error}")
    if dist.rank() == 0:
        for name, tensors in found.items():
            save_file(tensors, folder / f"{name}.safetensors")
        (folder / "notes.json").write_text(json.dumps(notes))


def nan_on_rank_1():
    model = nn.Linear(4, 1)
    learner = Learner.all(model)[0]
    bad = math.nan if dist.rank() else 1.0
    update(lambda batch, phase: (model(batch[0]).mean() * bad, {}), learner, [make(0)], 1e-2)


def signal_to_rank_1(folder):
    model = dist.shard(Net())
    step, calls = regression(model), []

    def tell(batch, phase):
        calls.append(phase)
        if len(calls) == 3 and dist.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(batch, phase)

    fit(tell, model, Batches(make), steps=50, accumulate=2, run=Run.open(folder / "stopped"), view=Quiet())


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """What two processes gave, from one torchrun of this file."""
    folder = tmp_path_factory.mktemp("dist")
    regress(Net(), steps=3, run=Run.create(folder, "single", {}))
    for name in ("shards", "stopped"):
        Run.create(folder, name, {})
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        __file__,
        str(folder),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, json.loads((folder / "notes.json").read_text())


def difference(folder, name, result):
    ours, theirs = outcome(result), load_file(folder / f"{name}.safetensors")
    assert ours.keys() == theirs.keys()
    return max((ours[n].double() - theirs[n].double()).abs().max().item() for n in ours)


def test_copies_equal_one_process(launched):
    """Two micro-batches, one on each rank: their sum has one order only, so every bit is the same."""
    assert difference(launched[0], "copied", regress(Net())) == 0
    assert difference(launched[0], "copied, two phases", two_phases(Net())) == 0
    assert difference(launched[0], "copied, sometimes", sometimes(Net())) == 0


def test_shards_equal_one_process(launched):
    """FSDP2: the length of the gradient is added up in another order, so up to rounding; weights, moments, averages."""
    assert difference(launched[0], "sharded", regress(Net())) < 1e-6
    assert difference(launched[0], "sharded, two phases", two_phases(Net())) < 1e-6
    assert launched[1]["hidden"] < 1e-6


def test_single_and_sharded_runs_resume_each_other(launched):
    folder, _ = launched
    whole = regress(Net())
    assert difference(folder, "sharded, resumes single", whole) < 1e-6
    run = Run.open(folder / "shards")
    assert saved(run.checkpoints("train"))[0].name == "step_00000003" and len(run.lines()) == 3  # one rank writes
    there, here = outcome(regress(Net(5), run=run)), outcome(whole)
    assert max((there[n].double() - here[n].double()).abs().max().item() for n in here) < 1e-6


def test_stats_are_of_all_ranks(launched):
    stats, single = launched[1]["stats"], regress(Net(), steps=3).stats
    assert stats["tokens"] == single["tokens"] == 8
    for name in ("loss", "noise", "grad_norm", "lr"):
        assert stats[name] == pytest.approx(single[name], rel=1e-6)


def test_all_ranks_stop_together(launched):
    folder, notes = launched
    assert all(
        "multiple of the 2 processes that share it; got steps=6, accumulate=1" in text for text in notes["accumulate"]
    )
    assert notes["nan on one rank"] == ["NotFiniteError: loss is nan, gradient norm is nan"] * 2
    assert notes["signal to one rank"] == ["Interrupted: 143"] * 2
    assert [path.name for path in saved(folder / "stopped" / "checkpoints" / "train")] == ["step_00000003"]


def test_one_process_needs_none_of_it():
    model = nn.Linear(2, 2)
    assert dist.shard(model) is model and type(model) is nn.Linear
    assert (dist.rank(), dist.world(), dist.gather("x")) == (0, 1, ["x"])
    dist.start()
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_who_is_left_does_not_wait_for_ever(end, tmp_path):
    """Rank 1 dies, or hangs, in its third step: rank 0 says so, at once or after the time-out."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in (0, 1):
        pids.append(os.fork())
        if not pids[-1]:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in place.items()})
            try:
                lose_rank_1(end)
            except BaseException as error:
                (tmp_path / f"error {rank}").write_text(f"{type(error).__name__}: {error}")
            os._exit(0)
    began = time.perf_counter()
    os.waitpid(pids[0], 0)
    assert time.perf_counter() - began < 30
    os.kill(pids[1], signal.SIGKILL)
    os.waitpid(pids[1], 0)
    text = (tmp_path / "error 0").read_text()
    assert text.startswith("ConnectionError: rank 0 of 2 lost the others: one of them died or did not answer in time")
    assert "start the same torchrun command again with --resume" in text


def lose_rank_1(end):
    dist.start(timeout=4.0)
    model, calls = Net(), []
    step = regression(model)

    def lose(batch, phase):
        calls.append(phase)
        if len(calls) == 3 and dist.rank() == 1:
            os.kill(os.getpid(), end)
        return step(batch, phase)

    fit(lose, model, Batches(make), steps=50, accumulate=2, view=Quiet())


if __name__ == "__main__":
    torch.set_num_threads(1)
    worker(Path(sys.argv[1]))
