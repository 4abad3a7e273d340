"""StreamRL (arXiv 2504.15930): RL with generation and training apart, streamed. Planning form: simulated, not run.

    gamut run streamrl                            # five modes on one length histogram; a minute on one core
    gamut run streamrl --lengths mine.csv         # a histogram (start, end, weight) or a trace (one length a line)
    gamut run streamrl --size paper               # 72B on 128 GPUs

The modes are those of section 4.1 and Figure 5, the split is Algorithm 1's (section 4.2), placement and order are
Algorithm 2's (section 5). What the paper leaves open was fitted: docs/stream.md holds every published number beside the
simulated one. Every mode runs the same samples; three draws of them give the spread.
"""

from dataclasses import dataclass, replace
from statistics import mean

from gamut.evals.claims import Claim, Result
from gamut.io.report import Heading, Table
from gamut.io.runs import Run
from gamut.plan.stream import Options, Row, compare, read_job, sweep, unit_of
from gamut.plan.stream_generate import generate
from gamut.plan.stream_job import Job, split
from gamut.plan.stream_page import assumed, blocks
from gamut.plan.stream_policy import deal


@dataclass(frozen=True)
class Config:
    """Lengths are tokens, times are seconds."""

    model: str = "7b"  # paper 7b, 32b and 72b (Table 2); or SIZEb:LAYERS:HEADS:KV_HEADS:WIDTH
    gpus: str = "32xH800"  # paper 32xH800, 64 and 128 (section 7.1); GENERATE+TRAIN for two pools
    lengths: str = "20k"  # paper 5k, 10k and 20k (Figure 7); or a CSV file
    batch: int = 1024  # paper 1024 (section 7.1); samples of an iteration
    prompt: float = 300.0  # paper Figure 7 left, its mean; tokens
    policy: str = "best"  # paper Algorithm 2; ours, either objective or no tail, whichever is simulated faster
    noise: float = 0.25  # paper Table 4 by its recall; share of prompts whose length the ranker misses
    use: float = 0.3  # not found in the paper; fitted, share of peak FLOPS in training
    iterations: int = 4  # ours
    draws: int = 3  # ours; samples are drawn anew, for the spread
    seed: int = 0  # ours


TINY = Config()
PAPER = replace(TINY, model="72b", gpus="128xH800")


def job_of(cfg: Config) -> tuple[Job, int, int]:
    """(job, GPUs, GPUs apart for generation), as gamut plan stream reads them."""
    return read_job(
        Options(cfg.model, cfg.gpus, cfg.lengths, cfg.batch, cfg.prompt, use=cfg.use, policy=cfg.policy,
                noise=cfg.noise, iterations=cfg.iterations)
    )  # fmt: skip


def draws(cfg: Config, job: Job, gpus: int, apart: int) -> list[list[Row]]:
    """All modes on every draw of the samples."""
    asked = {"iterations": cfg.iterations, "policy": cfg.policy, "noise": cfg.noise, "unit": unit_of(job, gpus)}
    return [compare(job, gpus, apart=apart, seed=cfg.seed + i, **asked) for i in range(cfg.draws)]


def throughputs(runs: list[list[Row]], batch: int) -> dict[str, float]:
    """samples/s by mode: mean, least and most over the draws; and its use of the GPUs."""
    metrics = {}
    for i, row in enumerate(runs[0]):
        speeds = [float(batch / run[i].outcome.steady) for run in runs]
        metrics[f"samples_per_s/{row.mode}"] = mean(speeds)
        metrics[f"samples_per_s/{row.mode}/low"], metrics[f"samples_per_s/{row.mode}/high"] = min(speeds), max(speeds)
        metrics[f"generating/{row.mode}"] = float(mean(run[i].outcome.generating for run in runs))
        metrics[f"training/{row.mode}"] = float(mean(run[i].outcome.training for run in runs))
        metrics[f"stale/{row.mode}"] = float(max(row.outcome.staleness))
    return metrics


def scheduling(cfg: Config, job: Job, generators: int) -> dict[str, float]:
    """Generation with a cache for 24 samples a replica, where order matters: relative to random placement and order."""
    replicas = [replace(one, slots=24) for one in job.instances(generators)]
    found: dict[str, list[float]] = {"fifo": [], "lpt": [], "round": []}
    for lengths in job.draw(cfg.draws, cfg.seed):
        for policy, ends in found.items():
            queues = deal(lengths, len(replicas), policy=policy)
            ends.append(generate(replicas, queues, lengths).makespan)
    base = mean(found.pop("fifo"))
    return {f"generation/{name}": float(mean(ends) / base) for name, ends in found.items()}


def main(cfg: Config = TINY, run: Run | None = None) -> Result:
    job, gpus, apart = job_of(cfg)
    runs = draws(cfg, job, gpus, apart)
    metrics = throughputs(runs, cfg.batch)
    swept = {}
    if not apart:
        unit = unit_of(job, gpus)
        swept = sweep(job, gpus, seed=cfg.seed, policy=cfg.policy, noise=cfg.noise)
        chosen = split(job, gpus, unit=unit, seed=cfg.seed, policy=cfg.policy, noise=cfg.noise)
        metrics["split/generate"], metrics["split/train"] = map(float, chosen)
        metrics["split/best"] = float(max(speed for _, speed in swept["async"]))
    metrics |= scheduling(cfg, job, runs[0][-1].generators)
    return Result(metrics, notes={"report": [*blocks(job, runs[0], swept), *_spread(metrics), assumed(job)]})


def _spread(metrics: dict[str, float]) -> list:
    modes = [name.partition("/")[2] for name in metrics if name.startswith("samples_per_s/") and name.count("/") == 1]
    rows = [[mode, *(metrics[f"samples_per_s/{mode}{end}"] for end in ("", "/low", "/high"))] for mode in modes]
    return [Heading("Spread over draws of the samples"), Table(("mode", "samples/s", "lowest", "highest"), rows)]


CLAIMS = [
    Claim("streamed and on-policy, apart, is faster than colocated (paper 1.06 to 1.43 x)",
          lambda r: r.metrics["samples_per_s/sync/low"] > r.metrics["samples_per_s/colocated/high"]),
    Claim("fully asynchronous is faster than streamed and on-policy (paper 1.12 to 1.33 x)",
          lambda r: r.metrics["samples_per_s/async/low"] > r.metrics["samples_per_s/sync/high"]),
    Claim("fully asynchronous is faster than one step behind with pauses",
          lambda r: r.metrics["samples_per_s/async/low"] > r.metrics["samples_per_s/one-step/high"]),
    Claim("samples stream faster into training than in eight fixed parts",
          lambda r: r.metrics["samples_per_s/sync/low"] > r.metrics["samples_per_s/mini/high"]),
    Claim("no sample is more than one version old", lambda r: r.metrics["stale/async"] <= 1),
    Claim("longest first ends generation sooner than random order where the cache is short (paper 0.67 to 0.90)",
          lambda r: r.metrics["generation/lpt"] < 0.95),
    Claim("Algorithm 1's split is within 5 % of the best of all splits",
          lambda r: r.metrics["samples_per_s/async"] >= 0.95 * r.metrics["split/best"]),
]  # fmt: skip
