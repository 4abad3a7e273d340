"""Timing in interleaved pairs, and result lines that say where and from what they come.

A ratio taken pair by pair in one process survives a busy machine; seconds do not. With one thread the clock is the
process's own CPU time, so that being pushed aside by others in the middle of a call does not count either.
"""

import argparse
import datetime
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from gamut.io.env import environment
from gamut.nn.linear import linear

RESULTS = Path(__file__).parent / "results"


def clock_name() -> str:
    """What `seconds` reads."""
    return "process_time" if torch.get_num_threads() == 1 else "perf_counter"


def seconds(run: Callable[[], object], repeat: int = 1) -> float:
    """Time of one call, a mean of ``repeat``: CPU time with one thread, wall time with several."""
    clock = getattr(time, clock_name())
    begin = clock()
    for _ in range(repeat):
        run()
    return (clock() - begin) / repeat


def ratio(slow: Callable[[], object], fast: Callable[[], object], pairs: int = 7, repeat: int = 1) -> dict[str, float]:
    """How many times longer ``slow`` takes: median and range over pairs, each pair back to back, after one warm-up.

    ``repeat`` calls are timed as one where a single one is too short for the clock; seconds are those of one call.
    """
    slow(), fast()
    times = [(seconds(slow, repeat), seconds(fast, repeat)) for _ in range(pairs)]
    ratios = sorted(a / b for a, b in times)
    return {
        "ratio": median(ratios), "low": ratios[0], "high": ratios[-1], "pairs": pairs,
        "slow_s": median(a for a, _ in times), "fast_s": median(b for _, b in times),
    }  # fmt: skip


def peak() -> float:
    """Floating-point operations per second of a large fp32 product, measured now: the best of four."""
    square = torch.randn(2048, 2048)
    return max(2 * 2048**3 / seconds(lambda: linear(square, square)) for _ in range(4))


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The command line of a benchmark, described by its module's docstring; all know ``--dry``."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--dry", action="store_true", help="print, write nothing")
    return made


def record(theme: str, metric: str, values: dict[str, float], *, dry: bool = False, **facts) -> None:
    """Print a result and append it as one line to results/<theme>_<hardware>_<yyyymm>.jsonl (``dry``: print it whole).

    Raises:
        ValueError: the commit is not known: a number without its code is worth nothing.
    """
    verdict = "no difference measured: the range contains 1" if values["low"] < 1 < values["high"] else ""
    print(f"{metric}: {values['ratio']:.2f} ({values['low']:.2f} .. {values['high']:.2f}), "
          f"{values['fast_s'] * 1e3:.1f} ms against {values['slow_s'] * 1e3:.1f}, "
          f"{torch.get_num_threads()} threads {verdict}", flush=True)  # fmt: skip
    if dry:
        print(f"  {({name: round(value, 5) for name, value in values.items()})} {facts or ''}", flush=True)
        return
    env, today = environment(), datetime.date.today()
    if not re.match(r"[0-9a-f]{12}", env["commit"]):
        raise ValueError(f"results need a commit, got {env['commit']!r}; run from a git checkout with git installed")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{env['cpu']} ({env['cores']} cores)"
    line = {"metric": metric, **{k: round(v, 5) for k, v in values.items()}, **facts, "device": device,
            "threads": torch.get_num_threads(), "torch": torch.__version__, "commit": env["commit"],
            "date": today.isoformat()}  # fmt: skip
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    RESULTS.mkdir(exist_ok=True)
    with open(RESULTS / f"{theme}_{slug}_{today:%Y%m}.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")
