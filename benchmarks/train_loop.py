"""What `fit` costs a step beside the loop that anybody would write: same model, same optimiser, bare and ours in turn.

    python -m benchmarks.train_loop          # appended to results
    python -m benchmarks.train_loop --dry    # printed only

The bare step runs inside the function that makes batches, so the two alternate step by step in one process; time is
that of the thread, which other programs on the machine do not enter.
"""

import tempfile
import time
from statistics import median, quantiles

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from benchmarks.record import parser, record
from gamut.data.load import Batches
from gamut.io.runs import Run
from gamut.train.loop import Quiet, fit
from gamut.train.optim import Optim

WARM, PARTS = 30, 10


def model(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *[part for _ in range(6) for part in (nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))]
    )


def compare(width: int, rows: int, steps: int, run: Run | None) -> dict[str, float]:
    """Seconds of thread time of a bare step and of one of `fit`, and what `fit` adds."""
    bare, ours, x = model(width), model(width), torch.randn(rows, width)
    groups = [[p for p in bare.parameters() if p.ndim > 1], [p for p in bare.parameters() if p.ndim < 2]]
    adam = torch.optim.AdamW(
        [{"params": groups[0]}, {"params": groups[1], "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        weight_decay=0.1,
        fused=True,
    )
    bare_s, fit_s, ended = [], [], time.thread_time()

    def make(index: int) -> torch.Tensor:
        nonlocal ended
        began = time.thread_time()
        fit_s.append(began - ended)
        loss = (bare(x) - x).square().mean()
        loss.backward()
        clip_grad_norm_(bare.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        loss.item()
        ended = time.thread_time()
        bare_s.append(ended - began)
        return x

    def step(batch: torch.Tensor, phase: str):
        return (ours(batch) - batch).square().mean(), {"tokens": rows}

    fit(step, ours, Batches(make), steps=steps + 1, optim=Optim(schedule="constant"), run=run, view=Quiet())
    assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), ours.parameters(), strict=True)), (
        "not the same steps"
    )
    pairs = list(zip(bare_s[WARM:], fit_s[WARM + 1 :], strict=False))
    size = len(pairs) // PARTS
    ratios = [
        median(b for _, b in part) / median(a for a, _ in part)
        for part in (pairs[i * size : (i + 1) * size] for i in range(PARTS))
    ]
    low, *_, high = quantiles(ratios, n=10)
    slow, fast = median(b for _, b in pairs), median(a for a, _ in pairs)
    return {"ratio": median(ratios), "low": low, "high": high, "slow_s": slow, "fast_s": fast, "added_s": slow - fast}


def main() -> None:
    args = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    for logged in (False, True):
        for width, rows in ((16, 256), (128, 512), (256, 512)):
            with tempfile.TemporaryDirectory() as folder:
                run = Run.create(folder, "run", {}) if logged else None
                values = compare(width, rows, 400, run)
                if run is not None:
                    run.close()
            metric = f"fit / bare loop, width {width}{', logging to a run folder' if logged else ''}"
            record("train_loop", metric, values, dry=args.dry, case=f"6 blocks, {rows} rows, AdamW, clip, 400 steps")


if __name__ == "__main__":
    main()
