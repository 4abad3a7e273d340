"""A disk that fills up under a whole run: what is said, what is kept, and that the run goes on once there is room.

The run folder lies in a small tmpfs, mounted where this user may mount one.
"""

import subprocess

import pytest
import torch

from gamut import cli
from gamut.io.runs import Run
from gamut.io.state import load_state

RECIPE = '''"""Line (arXiv 0000.00000): a small regression that saves often.

    gamut run line.py
"""

from dataclasses import dataclass

import torch

from gamut.data.load import Batches
from gamut.evals.claims import Claim, Result
from gamut.train.loop import fit
from gamut.train.optim import Optim


@dataclass(frozen=True)
class Config:
    """One matrix."""

    width: int = 400  # ours; a checkpoint of 1.9 MB
    steps: int = 8  # ours


TINY = Config()


def main(cfg, run):
    torch.manual_seed(0)
    model = torch.nn.Linear(cfg.width, cfg.width, bias=False)

    def step(batch, phase):
        return (model(batch) - batch.flip(-1)).square().mean(), {}

    def make(index):
        return torch.randn(4, cfg.width, generator=torch.Generator().manual_seed(index))

    done = fit(step, model, Batches(make), steps=cfg.steps, optim=Optim(lr=1e-3), run=run, save_every=2)
    return Result({"loss": done.loss[-1]})


CLAIMS = [Claim("it is measured", lambda r: r.metrics["loss"] > 0)]
'''


@pytest.fixture
def disk(tmp_path):
    """(folder on a disk of 5 MB, function that gives it 64 MB)"""
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(path)], capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    yield path, lambda: subprocess.run(["mount", "-o", "remount,size=64m", str(path)], check=True)
    subprocess.run(["umount", "-l", str(path)], check=True)


def call(capsys, *args):
    code = cli.main([str(arg) for arg in args])
    said = capsys.readouterr()
    return code, said.out, " ".join(said.err.split())


def test_a_run_that_fills_the_disk_is_told_so_keeps_what_it_had_and_goes_on(disk, tmp_path, capsys):
    small, enlarge = disk
    recipe = tmp_path / "line.py"
    recipe.write_text(RECIPE)
    assert call(capsys, "run", recipe, "--out", tmp_path, "--name", "whole")[0] == 0
    code, _, said = call(capsys, "run", recipe, "--out", small, "--name", "full")
    run = Run.open(small / "full")
    for _ in range(2):  # the same again as long as there is no room
        state, problems = load_state(run.checkpoints("train"))
        assert code == 2 and state.step == 4 and not problems
        assert "No space left on device" in said and "step_00000004' is untouched" in said
        assert said.endswith(f"make room, then: gamut run --resume {small}/full")
        assert [line["step"] for line in run.lines()][:4] == [1, 2, 3, 4]
        code, _, said = call(capsys, "run", "--resume", small / "full")
    enlarge()
    code, out, _ = call(capsys, "run", "--resume", small / "full")
    assert code == 0 and out.splitlines()[-1] == f"{small}/full/report.html"
    wanted, found = (load_state(r.checkpoints("train"))[0] for r in (Run.open(tmp_path / "whole"), run))
    assert wanted.step == found.step == 8
    assert torch.equal(wanted.tensors["model"]["weight"], found.tensors["model"]["weight"])
    assert run.curves()["train"]["loss"] == Run.open(tmp_path / "whole").curves()["train"]["loss"]


@pytest.mark.parametrize("left", [0, 12])
def test_a_disk_without_room_for_a_line(disk, tmp_path, capsys, left):
    """Full before the run begins, and with a few kilobytes left: never a traceback."""
    small, _ = disk
    (tmp_path / "line.py").write_text(RECIPE)
    (small / "ballast").write_bytes(bytes(5 * 2**20 - left * 2**12))
    code, _, said = call(capsys, "run", tmp_path / "line.py", "--out", small)
    assert code == 2 and "No space left on device" in said and "make room" in said
    assert left or not (small / "line").exists()
