"""StreamRL's published cells beside simulated ones: python -m benchmarks.stream

Inputs are the paper's: Figure 6's latency of 7B on one H800, Figure 7's lengths, Table 1's GPUs, Table 2's models. What
it leaves open is set here and named in each line: tensor-parallel degree, share of peak FLOPS in training, exchange of
models. FITTED cells were looked at when these were chosen; all other cells are prediction.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import median

from gamut.plan.stream import Job, compare
from gamut.plan.stream_hardware import GPUS, MODELS
from gamut.plan.stream_lengths import figure7

OUT = Path(__file__).parent / "results" / "stream_published.jsonl"
# Figure 8, samples/s, read off (to 0.1, 0.05, 0.03 for 5K, 10K, 20K): colocated, Sync, Async
FIG8 = {
    ("7b", "5k"): (12.89, 16.06, 21.35), ("7b", "10k"): (8.03, 8.80, 10.63), ("7b", "20k"): (4.79, 5.07, 5.70),
    ("32b", "5k"): (5.96, 6.64, 7.60), ("32b", "10k"): (2.89, 3.22, 3.75), ("32b", "20k"): (1.83, 2.14, 2.43),
    ("72b", "5k"): (4.04, 5.77, 7.21), ("72b", "10k"): (2.40, 3.03, 3.70), ("72b", "20k"): (1.49, 1.85, 2.24),
}  # fmt: skip
SYSTEMS = ("colocated", "sync", "async")
BUDGET = {"7b": 32, "32b": 64, "72b": 128}
TP = {"7b": 1, "32b": 4, "72b": 8}  # not published; ours
FITTED = {("7b", "20k", "colocated"), ("32b", "20k", "async")}  # these set the share of peak FLOPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", default="7b,32b,72b")
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--use", type=float, default=0.3, help="share of peak FLOPS in training")
    options = parser.parse_args()
    job, errors = Job(MODELS["7b"], GPUS["H800"], GPUS["H800"], figure7(), use=options.use), []
    OUT.parent.mkdir(exist_ok=True)
    print("| model | lengths | system | published samples/s | simulated | error | |\n|" + "---|" * 7)
    for (name, lengths), cells in FIG8.items():
        if name not in options.models.split(","):
            continue
        here = replace(job, model=MODELS[name], lengths=figure7(lengths), tp=TP[name])
        rows = {row.mode: row for row in compare(here, BUDGET[name], iterations=options.iterations)}
        for system, published in zip(SYSTEMS, cells, strict=True):
            simulated = here.batch / rows[system].outcome.steady
            error = simulated / published - 1
            fitted = (name, lengths, system) in FITTED
            errors += [] if fitted else [abs(error)]
            print(f"| {name} | {lengths} | {system} | {published} | {simulated:.2f} | {error:+.0%} | "
                  f"{'fitted' if fitted else ''} |", flush=True)  # fmt: skip
            line = {"model": name, "lengths": lengths, "system": system, "published": published}
            line |= {"simulated": round(simulated, 3), "split": [rows[system].generators, rows[system].trainers]}
            line |= {"tp": TP[name], "use": options.use, "fitted": fitted}
            with open(OUT, "a") as file:
                file.write(json.dumps(line) + "\n")
    print(f"\nmedian error over {len(errors)} cells that were not fitted: {median(errors):.0%}")


if __name__ == "__main__":
    main()
