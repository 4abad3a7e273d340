"""Published numbers of RL systems beside simulated ones: python -m benchmarks.stream

    python -m benchmarks.stream            # a minute on one core
    python -m benchmarks.stream --speed    # seconds of one simulated iteration of 1,024 samples on 128 GPUs

Writes benchmarks/results/stream_published.jsonl, a line for every cell, and docs/stream.md, the tables made from it.
Inputs are the papers': latency of 7B by batch size, lengths, GPUs, models, splits where printed. What they leave open
was fitted, each number on the cells that `FITTED` names; every other cell is prediction.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks import stream_cells as cells
from benchmarks.figures import strips
from gamut.io.env import environment
from gamut.io.files import atomic_write
from gamut.plan.fusion import chat_lengths
from gamut.plan.stream_generate import fuse_inference, generate, place
from gamut.plan.stream_hardware import FILL, GPUS, MODELS, replica
from gamut.plan.stream_job import Job, elastic, split, stages
from gamut.plan.stream_lengths import Lengths, figure7
from gamut.plan.stream_modes import MODES, simulate
from gamut.plan.stream_policy import MISSED, deal, rank_noise
from gamut.plan.stream_pool import pool

ROOT = Path(__file__).resolve().parent.parent
OUT, PAGE = ROOT / "benchmarks" / "results" / "stream_published.jsonl", ROOT / "docs" / "stream.md"
POLICY, NOISE, ITERATIONS = "best", MISSED, 4
RLHFUSE_TP = 4  # GPUs of a replica; fitted
VLLM = 256  # samples that it decodes at once by default; the engine under verl
VERL_USE = 0.095  # share of peak FLOPS of verl's trainer in Figure 8; fitted
DAPO = 0.6  # lengths of verl's runs relative to DeepSeek-R1's in production; fitted
H20_USE = {"colocated": 0.165, "async": 0.65}  # share of an H20's peak FLOPS that verl's training reaches; fitted
FITTED = {
    "training reaches 0.30 of the peak": {"32b 20k async", "72b 20k async", "32b train on 24", "72b train on 48"},
    "a replica has the fewest GPUs that hold 24 samples of the greatest length": {
        f"{name} {lengths} async" for name in ("32b", "72b") for lengths in ("5k", "10k", "20k")
    },
    "and decodes at most 36 samples at once": {"32b generate on 40", "72b generate on 80", *cells.TABLE3},
    "an all-reduce takes 50 us; RLHFuse's replicas have 4 GPUs": {
        "13b/33b 512 generation", "33b/13b 512 generation", "65b/33b 512 generation"
    },
    "the ranker misses a quarter of the prompts by a factor of about two": {f"{name} ranker" for name in cells.FIGURE9},
    "an iteration ends with 10 s of training that do not shrink with the batch": {"7b 5k sync", "7b 5k async"},
    "colocated: 0.3 s per 1e9 parameters to exchange models": {"72b 20k colocated", *cells.TABLE3},
    "verl's trainer in Figure 8 reaches 0.095 of the peak": {"72b 10k verl"},
    "verl's own runs: 0.6 x the lengths of DeepSeek-R1's service; training reaches 0.165 of an H20's peak colocated, "
    "0.65 apart": {"32 cards colocated", "32 cards asynchronous"},
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    table: str
    cell: str
    published: float
    simulated: float
    unit: str

    @property
    def error(self) -> float:
        return self.simulated / self.published - 1

    @property
    def fitted(self) -> bool:
        return any(self.cell in named for named in FITTED.values())


def job_of(name: str, lengths: Lengths, gpu: str = "H800", **more: float) -> Job:
    tp = replica(MODELS[name], GPUS[gpu], lengths.longest + 300)
    return replace(Job(MODELS[name], GPUS[gpu], GPUS["H800"], lengths, tp=tp), **more)


def throughput(job: Job, mode: str, pools: tuple[int, int], policy: str = POLICY) -> float:
    setup = job.setup(mode, *pools, policy=policy, noise=NOISE)
    return job.batch / simulate(setup, job.draw(ITERATIONS, 0), seed=0).steady


def figure8() -> Iterator[Cell]:
    """End to end. The split is Figure 10's where it is printed, else Algorithm 1's on the simulator."""
    for (name, lengths), published in cells.FIGURE8.items():
        job, gpus = job_of(name, figure7(lengths)), cells.BUDGET[name]
        pools = cells.SPLIT.get(name) if lengths == "20k" else None
        pools = pools or split(job, gpus, policy=POLICY, noise=NOISE)
        for system, value in zip(cells.SYSTEMS, published, strict=True):
            together = system in ("verl", "colocated")
            here = replace(job, use=VERL_USE, most=VLLM) if system == "verl" else job
            made = throughput(here, "colocated" if together else system, (gpus, gpus) if together else pools,
                              "fifo" if together else POLICY)  # fmt: skip
            yield Cell("StreamRL Figure 8: throughput", f"{name} {lengths} {system}", value, made, "samples/s")


def table3() -> Iterator[Cell]:
    """What each part of the system adds, 72B at 20K."""
    job, gpus = job_of("72b", figure7()), (128, 128)
    base = throughput(job, "colocated", gpus, "fifo")
    made = [throughput(job, "colocated", gpus)] + [throughput(job, m, cells.SPLIT["72b"]) for m in ("sync", "async")]
    for (name, value), one in zip(cells.TABLE3.items(), made, strict=True):
        yield Cell("StreamRL Table 3: ablation", name, value, one / base, "x colocated")


def generation(job: Job, gpus: int, policy: str, noise: float, seeds: int = 4) -> float:
    """Seconds to generate one batch, mean over draws."""
    times, replicas = [], job.instances(gpus)
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        true = job.lengths.sample(job.batch, rng)
        guess = rank_noise(true, noise, rng) if noise else true
        prompts = np.full(job.batch, job.prompt)
        queues = place(replicas, guess, prompts, policy, rng=rng)
        times.append(generate(replicas, queues, true, prompts).makespan)
    return float(np.mean(times))


def figure2() -> Iterator[Cell]:
    """Why one pool for both stages is a poor fit: 7B, relative to 8 GPUs and to 1K tokens."""
    job = job_of("7b", figure7().scaled(8 / 20))
    base = generation(job, 8, "fifo", 0.0)
    for gpus, value in cells.FIGURE2.items():
        yield Cell("StreamRL Figure 2: scaling of 7B", f"generate on {gpus} GPUs", value,
                   generation(job, gpus, "fifo", 0.0) / base, "x 8 GPUs")  # fmt: skip
    base = replace(job, lengths=alike(1024), prompt=0.0)
    for size, published in cells.FIGURE2_LENGTH.items():
        here = replace(base, lengths=alike(1024 * size))
        made = (generation(here, 32, "fifo", 0.0) / generation(base, 32, "fifo", 0.0), trained(here) / trained(base))
        for what, value, one in zip(("generate", "train on"), published, made, strict=True):
            yield Cell("StreamRL Figure 2: scaling of 7B", f"{what} {size}K tokens", value, one, "x 1K")


def alike(tokens: int) -> Lengths:
    """Every sample has so many."""
    return Lengths(np.array([tokens]), np.array([tokens]), np.ones(1))


def trained(job: Job) -> float:
    one = job.training(32)
    return one.update + one.token * job.batch * (job.lengths.mean + job.prompt)


def figure9() -> Iterator[Cell]:
    """Generation by Algorithm 2 relative to random placement, with the ranker's errors and with true lengths."""
    for name, published in cells.FIGURE9.items():
        job, gpus = job_of(name, figure7()), cells.SPLIT.get(name, (16, 16))[0]
        base = generation(job, gpus, "fifo", 0.0)
        for what, value, noise in zip(("ranker", "true lengths"), published, (NOISE, 0.0), strict=True):
            yield Cell("StreamRL Figure 9: scheduling", f"{name} {what}", value,
                       generation(job, gpus, POLICY, noise) / base, "x random")  # fmt: skip


def figure10() -> Iterator[Cell]:
    """Stages with half of the GPUs each and with the printed split, relative to generation with half of them."""
    for name, published in cells.FIGURE10.items():
        half, (x, y) = cells.BUDGET[name] // 2, cells.SPLIT[name]
        timed = stages(job_of(name, figure7()), POLICY, NOISE)
        base, made = timed(half)[0], (timed(half)[1], timed(x)[0], timed(y)[1])
        for what, value, one in zip((f"train on {half}", f"generate on {x}", f"train on {y}"), published, made,
                                    strict=True):  # fmt: skip
            yield Cell("StreamRL Figure 10: allocation", f"{name} {what}", value, one / base, "x half")
        found = split(job_of(name, figure7()), cells.BUDGET[name], policy=POLICY, noise=NOISE)
        yield Cell("StreamRL Figure 10: allocation", f"{name} Algorithm 1, GPUs that generate", x, found[0], "GPUs")


def figure11() -> Iterator[Cell]:
    """The elastic rule while lengths grow from the 10K set to the 20K set over 23 iterations, from 32 GPUs."""
    sets = [figure7().scaled(0.5 + 0.5 * i / 22) for i in range(23)]
    lines = elastic(job_of("7b", figure7()), 16, 16, sets, policy=POLICY)
    grown = [line["iteration"] for line in lines if line["grow"]]
    for i, value in enumerate(cells.FIGURE11):
        yield Cell("StreamRL Figure 11: elastic rule", f"machine {i + 1} added after", value,
                   grown[i] if i < len(grown) else float("nan"), "iterations")  # fmt: skip


def figure12() -> Iterator[Cell]:
    """Two datacentres, 32 H20 that generate and 16 H800 that train by 80 Gbps, against 32 H800; equal cost."""
    price = 32 * GPUS["H20"].cost + 16 * GPUS["H800"].cost
    for lengths, published in cells.FIGURE12.items():
        job = job_of("7b", figure7(lengths))
        one = throughput(job, "async", split(job, 32, policy=POLICY, noise=NOISE))
        far = throughput(job_of("7b", figure7(lengths), "H20", wire=10e9), "async", (32, 16))
        made = (far, one * price / (32 * GPUS["H800"].cost))
        for what, value, one in zip(("32 H20 + 16 H800", "32 H800"), published, made, strict=True):
            yield Cell("StreamRL Figure 12: cost", f"{lengths} {what}", value, one, "samples/s")


def fused(pair: tuple[str, str], longest: int, thresholds: tuple[float, ...], inference: float):
    """Generation on 256 H100s, fused with inference at the best of the thresholds."""
    gpu, model = GPUS["H100"], MODELS[pair[0]]
    lengths = chat_lengths(longest)
    job = Job(model, gpu, gpu, lengths, 128, 512, RLHFUSE_TP)
    replicas = job.instances(256)
    true = job.draw(1, 0)[0]
    queues = deal(true, len(replicas), policy="fifo", rng=np.random.default_rng(0))
    return fuse_inference(replicas, queues, true, inference, thresholds=thresholds, saturated=FILL,
                          capacity=replicas[0].slots)  # fmt: skip


def rlhfuse() -> Iterator[Cell]:
    """Generation is simulated; inference and training are the published seconds of the base system."""
    grid = tuple(np.arange(0.05, 0.951, 0.05))
    for (actor, critic, longest), row in cells.RLHFUSE8.items():
        made = fused((actor, critic), longest, grid, row[1])
        plain = fused((actor, critic), longest, (), row[1])
        name = f"{actor}/{critic} {longest}"
        yield Cell("RLHFuse Figure 8: stages", f"{name} generation", row[0], plain.generation, "s")
        yield Cell("RLHFuse Figure 8: stages", f"{name} fused with inference", row[2], made.seconds, "s")
        base, ours = cells.RLHFUSE7[actor, critic, longest]
        yield Cell("RLHFuse Figure 7: throughput, training as published", f"{name} base", base,
                   512 / (plain.seconds + row[3] + row[4] + row[6]), "samples/s")  # fmt: skip
        yield Cell("RLHFuse Figure 7: throughput, training as published", f"{name} RLHFuse", ours,
                   512 / (made.seconds + row[5] + row[7]), "samples/s")  # fmt: skip
    for pair, published in cells.RLHFUSE9.items():
        inference = cells.RLHFUSE8[(*pair, 1024)][1]
        for share, value in published.items():
            made = fused(pair, 1024, (share,) if share else (), inference)
            yield Cell("RLHFuse Figure 9: when to migrate", f"{pair[0]}/{pair[1]} {share:.0%}", value, made.seconds,
                       "s")  # fmt: skip


def verl() -> Iterator[Cell]:
    """512 prompts x 16 samples a step on H20 cards, half of them generate; DAPO trains the actor alone."""
    lengths = production().scaled(DAPO)
    lengths = Lengths(np.minimum(lengths.low, 28e3), np.minimum(lengths.high, 28e3), lengths.weight)
    h20 = GPUS["H20"]
    job = Job(MODELS["7b"], h20, h20, lengths, 150, 8192, 1, flops=6 + 2, most=512)
    table = "verl: asynchronous trainer"

    def ahead(cards: int, share: float) -> float:
        here = replace(job, use=H20_USE["async"], flops=6)  # log-probabilities come with the samples
        setup = replace(here.setup("async", cards // 2, cards // 2), parts=4)
        return pool(setup, np.concatenate(job.draw(ITERATIONS, 0)), job.batch, ahead=share, prompt=150).steady

    for cards, published in cells.VERL.items():
        together = replace(job, use=H20_USE["colocated"]).setup("colocated", cards, cards)
        base = simulate(together, job.draw(ITERATIONS, 0)).steady
        for what, value, one in zip(("colocated", "asynchronous"), published, (base, ahead(cards, 0.5)), strict=True):
            yield Cell(table, f"{cards} cards {what}", value, one, "s")
    for share, value in cells.VERL_STALENESS.items():
        yield Cell(table, f"128 cards, staleness <= {share}", value, ahead(128, share), "s")


def production() -> Lengths:
    """DeepSeek-R1's output lengths in production by a log-normal of their median and P99 (792 and 12,607 tokens)."""
    edges = np.geomspace(16, 32768, 60)
    spread = np.log(12607 / 792) / 2.326
    density = np.exp(-0.5 * (np.log(np.sqrt(edges[:-1] * edges[1:]) / 792) / spread) ** 2)
    return Lengths(edges[:-1], edges[1:], density)


TABLES: tuple[Callable[[], Iterator[Cell]], ...] = (
    figure8, table3, figure9, figure10, figure11, figure12, figure2, rlhfuse, verl,
)  # fmt: skip


def read() -> list[Cell]:
    rows = map(json.loads, OUT.read_text().splitlines())
    return [Cell(*(row[name] for name in ("table", "cell", "published", "simulated", "unit"))) for row in rows]


def page(found: list[Cell]) -> str:
    """docs/stream.md: a summary, what was fitted, then every cell."""

    def spread(some: list[Cell]) -> str:
        errors = [abs(cell.error) for cell in some]
        return f"{median(errors):.0%} | {min(errors):.0%} to {max(errors):.0%}" if errors else "- | -"

    lines = [
        "# RL systems: simulated beside published", "",
        "Made by `python -m benchmarks.stream`; the numbers are those of `benchmarks/results/stream_published.jsonl`.",
        "A cell that was looked at when a number was fitted is marked; the errors count the others only.",
        "The form of the model was chosen with StreamRL's figures in view; of RLHFuse's cells three had a part in it.",
        "", "![Every cell: simulated over published](stream.svg)", "",
        "| source | cells | of them fitted | median error | range |", "|---|--:|--:|--:|--:|",
    ]  # fmt: skip
    tables = {name: [cell for cell in found if cell.table == name] for name in dict.fromkeys(c.table for c in found)}
    for name, some in tables.items():
        kept = [cell for cell in some if not cell.fitted]
        lines.append(f"| {name} | {len(some)} | {len(some) - len(kept)} | {spread(kept)} |")
    kept = [cell for cell in found if not cell.fitted]
    lines.append(f"| **all** | {len(found)} | {len(found) - len(kept)} | {spread(kept)} |")
    lines += ["", *orderings(found), "", "## What cannot be predicted, and why", "", *cells.UNPREDICTED]
    lines += ["", "## What was fitted", "", "| number | cells it was fitted on |", "|---|---|"]
    lines += [f"| {name} | {', '.join(sorted(on))} |" for name, on in FITTED.items()]
    for name, some in tables.items():
        lines += ["", f"## {name}", ""]
        lines += ["| cell | published | simulated | unit | error | |", "|---|--:|--:|---|--:|---|"]
        lines += [f"| {c.cell} | {c.published:g} | {c.simulated:.3g} | {c.unit} | {c.error:+.0%} | "
                  f"{'fitted' if c.fitted else ''} |" for c in some]  # fmt: skip
    return "\n".join(lines) + "\n"


def figure(found: list[Cell]) -> str:
    rows = {name: [(1 + cell.error, cell.fitted) for cell in found if cell.table == name]
            for name in dict.fromkeys(cell.table for cell in found)}  # fmt: skip
    return strips(rows, "simulated / published", band=(1 / 1.15, 1.15), ticks=(0.25, 0.5, 0.75, 1, 1.25, 1.5),
                  note="hollow: looked at when a number was fitted; tinted: within 15 %")  # fmt: skip


def orderings(found: list[Cell]) -> list[str]:
    """Which systems come out in the published order, and the steps of the ablation."""
    values = {cell.cell: cell for cell in found}
    right = 0
    for name, lengths in cells.FIGURE8:
        here = [values[f"{name} {lengths} {system}"] for system in cells.SYSTEMS]
        right += all(a.simulated < b.simulated for a, b in pairwise(here))
    shares = [1.0, *(values[name].simulated for name in cells.TABLE3)]
    printed = [1.0, *cells.TABLE3.values()]
    both = zip(pairwise(shares), pairwise(printed), strict=True)
    steps = [f"{100 * (b - a):+.0f} ({100 * (d - c):+.0f})" for (a, b), (c, d) in both]
    return [
        f"Figure 8: verl < colocated < sync < async holds in {right} of {len(cells.FIGURE8)} rows. "
        f"Table 3, points that each part adds, published in brackets: {', '.join(steps)}."
    ]


def speed(pairs: int = 9) -> dict[str, float]:
    """CPU seconds of one iteration of 72B on 128 GPUs, all five modes together and the slowest alone."""
    job, times = job_of("72b", figure7()), {mode: [] for mode in MODES}
    lengths = job.draw(1, 0)
    for _ in range(pairs):
        for mode, taken in times.items():
            begun = time.thread_time()
            simulate(job.setup(mode, *((128, 128) if mode == "colocated" else (80, 48)), policy=POLICY), lengths)
            taken.append(time.thread_time() - begun)
    return {mode: round(median(taken), 4) for mode, taken in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--speed", action="store_true", help="only time the simulator")
    if parser.parse_args().speed:
        env = environment()
        line = {"metric": "CPU seconds of an iteration: 1,024 samples, 72B, 128 GPUs", **speed(), "cpu": env["cpu"],
                "commit": env["commit"], "date": time.strftime("%Y-%m-%d")}  # fmt: skip
        with open(OUT.with_name("stream_speed.jsonl"), "a") as file:
            file.write(json.dumps(line) + "\n")
        return print(line)
    found = []
    for table in TABLES:
        for cell in table():
            found.append(cell)
            print(f"{cell.table:54s}{cell.cell:42s}{cell.published:8.2f}{cell.simulated:8.2f} {cell.unit:10s}"
                  f"{cell.error:+6.0%}{'  fitted' if cell.fitted else ''}", flush=True)  # fmt: skip
    rows = [asdict(cell) | {"error": round(cell.error, 4), "fitted": cell.fitted} for cell in found]
    atomic_write(OUT, "".join(json.dumps(row) + "\n" for row in rows))
    atomic_write(PAGE, page(read()))
    atomic_write(PAGE.with_suffix(".svg"), figure(read()))
    print(page(read()).partition("## What was fitted")[0])


if __name__ == "__main__":
    main()
