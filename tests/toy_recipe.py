"""Toy (arXiv 0000.00000): a recipe of a few milliseconds, for the tests of everything around recipes.

    gamut run tests/toy_recipe.py
"""

from dataclasses import dataclass, replace
from pathlib import Path

from gamut.codecs.mel import pad_mels
from gamut.data.load import Batches
from gamut.evals.claims import Claim, Result
from gamut.io.report import Heading
from gamut.io.runs import Run


@dataclass(frozen=True)
class Config:
    """A line that falls."""

    steps: int = 20  # ours; updates
    heads: int = 4  # paper 48 (section 2.1)
    rates: tuple[float, ...] = (0.5, 0.25)  # not found in the paper; ours
    fast: bool = False  # ours
    fail: str = ""  # ours; bug, disk, note or stop: how it ends


TINY = Config()
PAPER = replace(TINY, heads=48)


def main(cfg: Config, run: Run) -> Result:
    for step in range(1, cfg.steps + 1):
        run.log("fall", step, {"loss": 1 / step, "tokens": 3, "forward": 0.25, "eval/loss": 2 / step})
    if cfg.fail == "disk":
        Path("/dev/full").write_text("a device on which every write finds the disk full")
    if cfg.fail == "bug":
        int("not from gamut")
    if cfg.fail == "note":
        next(Batches(lambda index: pad_mels([])))
    if cfg.fail == "stop":
        raise KeyboardInterrupt
    blocks = [Heading("Said"), "<script>alert('quote')</script>"]
    return Result({"loss": 1 / cfg.steps, "loss/chance": 1.0, "heads": float(cfg.heads)}, notes={"report": blocks})


def plan(cfg: Config) -> dict[str, float]:
    return {"parameters": 1000.0 * cfg.heads}


def evaluate(path: Path) -> Result:
    return Result({"loss": 0.5, "loss/chance": 1.0})


CLAIMS = [
    Claim("the loss is below a tenth of chance", lambda r: r.metrics["loss"] < 0.1 * r.metrics["loss/chance"]),
    Claim("there are 48 heads", lambda r: r.metrics["heads"] == 48),
    Claim("something is measured", lambda r: r.metrics["nothing"] > 0),
]
