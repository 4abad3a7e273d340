"""RLHFuse (arXiv 2409.13221): RLHF with its stages and pipelines fused. Planning form: simulated, not run.

    gamut run rlhfuse                                  # 65B actor, 33B critic on 256 GPUs; a minute on one core
    gamut run rlhfuse --actor 33B --critic 13B --actor-stages 8 --critic-stages 4 --training 11.1 --inference 7.0
    gamut plan pipeline --instance 9                   # one of the paper's twelve pipeline problems alone

Section 4, between stages: when few samples are still being generated, they are gathered on few instances, and
reference, reward and critic begin on the other GPUs. Section 5, within training: the pipelines of actor and critic run
in opposite directions on the same nodes; a schedule is searched that is as short as can be, then one that needs less
memory. Instances of the paper's Table 3 are solved beside it, to be held against the published times and memory.
"""

from dataclasses import dataclass, replace

from gamut.evals.claims import Claim, Result
from gamut.io.report import Heading, Table
from gamut.io.runs import Run
from gamut.plan.fusion import Cluster
from gamut.plan.pipeline_fused import INSTANCES, PUBLISHED
from gamut.plan.pipeline_search import Search
from gamut.plan.rlhfuse import Planned, blocks, planned
from gamut.plan.timeline import script


@dataclass(frozen=True)
class Config:
    """Times of pipelines are units of the released instances; everything else is in seconds, tokens and samples."""

    actor: str = "65B"  # paper 13B, 33B and 65B (Table 2); reference has the same size
    critic: str = "33B"  # paper 13B, 33B and 65B (Table 2); reward has the same size
    gpus: int = 256  # paper 256 (section 7.1)
    actor_stages: int = 16  # paper 8 and 16 (Table 3)
    critic_stages: int = 8  # paper 8, 4 and 16 (Table 3)
    tp: int = 8  # not found in the paper; ours, one machine
    batch: int = 512  # paper 512 (section 7.1); samples of an iteration
    mini_batch: int = 64  # paper 64 (section 7.1); samples of an update
    micro_batch: int = 1  # not found in the paper; ours
    longest: int = 1024  # paper 1024, 512 and 2048 (section 7.1); tokens of the longest answer
    prompt: int = 128  # not found in the paper; ours, tokens
    inference: float = 7.2  # paper 7.2 (Figure 8, this pair at 1024, read off); seconds, measured alone
    training: float = 20.0  # paper 20.0 (Figure 8, this pair at 1024, read off); seconds, one model after the other
    instances: tuple[int, ...] = (2, 5, 11)  # paper 0 to 11 (Table 3); which of them to solve
    seconds: float = 10.0  # ours; CPU time of the search of each schedule (paper: 768 cores, 20 s to 83 minutes)
    seed: int = 0  # ours


TINY = Config()
PAPER = replace(TINY, instances=tuple(range(12)), seconds=600.0)


def cluster(cfg: Config) -> Cluster:
    """What gamut plan rlhfuse takes; ValueError for what does not fit together."""
    return Cluster(cfg.gpus, cfg.actor, cfg.critic, cfg.actor_stages, cfg.critic_stages, cfg.tp, cfg.mini_batch,
                   cfg.micro_batch, cfg.batch, cfg.longest, cfg.prompt, cfg.inference, cfg.training)  # fmt: skip


def solve(cfg: Config) -> tuple[dict[str, float], list]:
    """Published instances, searched from nothing: metrics, and a table for the report."""
    metrics, rows = {"late": 0.0, "heavy": 0.0}, []
    for index in cfg.instances:
        if not 0 <= index < len(INSTANCES):
            raise ValueError(f"instances are numbered 0 to {len(INSTANCES) - 1}, got {index}")
        one, (time, memory) = INSTANCES[index], PUBLISHED[index]
        found = Search(one.problem, seed=cfg.seed).run(cfg.seconds, memory_goal=one.least_memory)
        metrics["late"] += found.makespan > time
        metrics["heavy"] += (found.makespan, round(found.peak_memory, 6)) > (time, memory)
        what = f"{index}: {one.name}, {one.stages0}/{one.stages1} stages, {one.micro0}/{one.micro1} micro-batches"
        rows.append((what, one.serial, time, found.makespan, one.bound, memory, found.peak_memory,
                     round(found.seconds, 1)))  # fmt: skip
    metrics["instances"] = float(len(rows))
    names = ("instance", "serial", "published", "ours", "bound", "memory published", "memory, ours", "CPU seconds")
    text = ("Makespan and peak memory of the schedules published with the paper, found with 768 cores, and of ours. "
            "No schedule is shorter than the bound.")  # fmt: skip
    return metrics, [Heading("The paper's own instances", text), Table(names, rows)]


def numbers(made: Planned) -> dict[str, float]:
    before, after = map(float, made.seconds)
    return {
        "training/speedup": made.gain,
        "training/over_bound": made.best.makespan / made.one.bound,
        "training/memory": made.best.peak_memory / made.one.serial_memory,
        "stages/speedup": float(made.plain.seconds / made.fused.seconds),
        "stages/threshold": made.fused.threshold,
        "iteration/speedup": before / after,
        "samples_per_s": made.plan.batch / after,
        "samples_per_s/not fused": made.plan.batch / before,
    }


def main(cfg: Config = TINY, run: Run | None = None) -> Result:
    made = planned(cluster(cfg), 2 * cfg.seconds, cfg.seed)
    metrics, table = solve(cfg)
    if run is not None:
        from gamut.plan.pipeline_export import save

        save(run.samples / "schedule.json", made.one.problem, list(made.schedules.values())[-1])
    return Result(numbers(made) | metrics, notes={"report": [*blocks(made), *table, script()]})


def plan(cfg: Config) -> dict[str, float]:
    """What is known without a search: sizes of the pipeline problem, serial time and bound."""
    from gamut.plan.fusion import fused_problem

    one, count = fused_problem(cluster(cfg))
    return {"blocks of nodes": float(count), "nodes of a block": float(one.stages0), "micro-batches": float(one.micro0),
            "serial makespan": float(one.serial), "bound": float(one.bound)}  # fmt: skip


CLAIMS = [
    Claim("every instance solved is as short as published, or shorter", lambda r: r.metrics["late"] == 0),
    Claim("and needs no more memory than the last published schedule", lambda r: r.metrics["heavy"] == 0),
    Claim("training with fused pipelines is at least 1.2 x as fast as serial (paper 1.2 to 1.3 x)",
          lambda r: r.metrics["training/speedup"] >= 1.2),
    Claim("its schedule is within 2 % of what no schedule can beat",
          lambda r: r.metrics["training/over_bound"] <= 1.02),
    Claim("generation and inference fused are at least 1.2 x as fast (paper 1.2 to 1.6 x)",
          lambda r: r.metrics["stages/speedup"] >= 1.2),
    Claim("migrating with 10 to 40 % of the samples unfinished is within 1 % of the best moment (paper: best at 20 %)",
          lambda r: 0.1 <= r.metrics["stages/threshold"] <= 0.4),
]  # fmt: skip
