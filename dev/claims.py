"""Run every built recipe at tiny size and record minutes and claims: python -m dev.claims [RECIPE ...] [--seeds 0 1 2]

    python -m dev.claims --finished runs/step_audio_2      # only record what a run that is done has measured

Hours. Each finished run is a line in benchmarks/results/claims.jsonl; what is there for this commit and seed is not run
again. gamut/measured.json, which `gamut list` and the README show, is made from the newest lines.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import gamut
from gamut.io.env import environment
from gamut.io.files import atomic_write
from gamut.io.source import find
from gamut.papers import PAPERS, RECIPES

ROOT = Path(__file__).resolve().parent.parent
SPENT = ("data", "forward", "backward", "optimiser", "wait")  # seconds of an update, as fit logs them
RECORD = ROOT / "benchmarks" / "results" / "claims.jsonl"


def record(recipe: str, seed: int, env: dict[str, str]) -> dict:
    """Run it, and return the line."""
    result = gamut.run(recipe, out=ROOT / "runs", name=f"{recipe}-claims", seed=seed)
    assert result.run is not None
    minutes = json.loads((result.run / "result.json").read_text())["minutes"]
    where = {name: env[name] for name in ("commit", "cpu", "cores", "torch", "torch threads")}
    return {"recipe": recipe, "seed": seed, "date": time.strftime("%Y-%m-%d"), "minutes": minutes, **where,
            "metrics": result.metrics, "claims": result.notes["claims"]}  # fmt: skip


def finished(run: Path) -> dict:
    """The line of a run folder that is done; its minutes are those of all its updates, stopped and resumed or not."""
    result, env, config = (json.loads((run / f"{name}.json").read_text()) for name in ("result", "env", "config"))
    log = run / "metrics.jsonl"  # a run that only plans has none
    updates = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    spent = sum(update.get(part, 0.0) for update in updates for part in SPENT) / 60
    where = {name: env[name] for name in ("commit", "cpu", "cores", "torch", "torch threads")}
    return {"recipe": config["recipe"], "seed": config["config"]["seed"], "date": env["started"][:10],
            "minutes": round(max(spent, result["minutes"]), 2), **where, "metrics": result["metrics"],
            "claims": result["claims"]}  # fmt: skip


def summary(lines: list[dict]) -> dict[str, dict]:
    """Of each recipe's newest commit: minutes (longest), claims that held with every seed, seeds, commit, date."""
    found = {}
    for name in dict.fromkeys(line["recipe"] for line in lines):
        last = [line for line in lines if line["recipe"] == name][-1]
        rows = [line for line in lines if (line["recipe"], line["commit"]) == (name, last["commit"])]
        verdicts = [[claim["passed"] for claim in line["claims"]] for line in rows]
        held = [all(one) for one in zip(*verdicts, strict=True)]
        found[name] = {
            "minutes": max(line["minutes"] for line in rows),
            "passed": sum(held),
            "claims": len(held),
            "seeds": [line["seed"] for line in rows],
            "commit": last["commit"],
            "date": last["date"],
        }
    return found


def main() -> int:
    """0 if every claim held, 1 if not, 2 if the checkout has changes that no commit names."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("recipes", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--finished", type=Path, nargs="+", default=[])
    asked = parser.parse_args()
    env = environment()
    if "+changes" in env["commit"] and not asked.finished:
        print(f"the checkout differs from {env['commit'].partition('+')[0]}; commit first: a record names its commit")
        return 2
    lines = [json.loads(line) for line in RECORD.read_text().splitlines()] if RECORD.exists() else []
    ours = [name for paper in PAPERS for name in [paper.name, *paper.parts] if (RECIPES / f"{name}.py").exists()]
    for run in asked.finished:
        lines.append(finished(run))
        atomic_write(RECORD, "".join(json.dumps(line) + "\n" for line in lines))
    for recipe in [] if asked.finished else [find(name) for name in asked.recipes] or ours:
        for seed in asked.seeds:
            if (recipe, seed, env["commit"]) not in {(line["recipe"], line["seed"], line["commit"]) for line in lines}:
                lines.append(record(recipe, seed, env))
                atomic_write(RECORD, "".join(json.dumps(line) + "\n" for line in lines))
    shown = summary(lines)
    atomic_write(ROOT / "gamut" / "measured.json", json.dumps(shown, indent=2) + "\n")
    for name, row in shown.items():
        print(f"{name}: {row['passed']} of {row['claims']} claims, {row['minutes']:.0f} minutes, seeds {row['seeds']}")
    return 0 if all(row["passed"] == row["claims"] for row in shown.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
