"""The default predictor: chosen with every table left out in turn, and what it then says about that table.

    GAMUT_DATA=../shared/data python benchmarks/scaling.py            # minutes on one core; resumes
    GAMUT_DATA=../shared/data python benchmarks/scaling.py --table    # only print what is in the results

POOL random rules (gamut/plan/auto.py) are scored on all splits of all tables. For table k the MEMBERS rules with the
least mean ln(error + 0.1%) on the OTHER ten are averaged, refitted to table k without its held-out rows, and judged
on those. No number of table k reaches the choice. The second line of the table leaves whole families out (the six
Gadre tables share runs). The median of Chinchilla, kappa and Farseer is the yardstick.
"""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from gamut.io.files import atomic_write
from gamut.plan import public
from gamut.plan.auto import Rule, fit_rules
from gamut.plan.fitting import epochs_of, fit_theta, prepare
from gamut.plan.holdout import Split, percent, standard, top_compute
from gamut.plan.scaling import _predict, compare_laws, fit
from gamut.plan.surface import Part
from gamut.plan.tables import ScalingTable

RESULTS = Path(__file__).parent / "results" / "scaling_nested.jsonl"
POOL, MEMBERS, SEED = 60, 6, 0
THIN = 120  # rows that rules are scored on; the judgement uses all rows


def pool(seed: int = SEED, count: int = POOL) -> list[Rule]:
    """Random rules, wide around published fits (alpha and beta 0.2 to 0.4, E a third to 0.85 of the lowest loss)."""
    rng = np.random.default_rng(seed)

    def between(low: float, high: float, log: bool = False) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))) if log else rng.uniform(low, high))

    return [
        Rule(
            frontier=float(rng.choice([0, 0.2, 0.4, 0.7])), threshold=float(rng.choice([0.1, 0.3, 1.0])),
            floor=(round(float(np.log(between(0.35, 0.85))), 3), round(between(0.1, 0.6, True), 3)),
            alpha=(round(between(0.2, 0.4), 3), round(between(0.02, 0.15, True), 3)),
            beta=(round(between(0.2, 0.42), 3), round(between(0.02, 0.15, True), 3)),
            kappa=(round(float(np.log(between(0.25, 0.8))), 3), round(between(0.1, 0.7, True), 3)),
        )
        for _ in range(count)
    ]  # fmt: skip


def splits(table: ScalingTable) -> list[Split]:
    """More ways to hold out than the two that are judged, so that a rule is not chosen for one lucky point."""
    logs = np.round(np.log(table.N), 3)
    sizes = np.unique(logs)
    found = [*standard(table), *(top_compute(table, share) for share in (0.1, 0.25, 0.4))]
    found += [Split(f"{k} largest sizes", logs >= sizes[-k]) for k in (2, 3) if len(sizes) >= max(2 * k, k + 3)]
    count = max(2, round(0.2 * len(table)))
    found.append(Split("most tokens", table.D >= np.sort(table.D)[-count]))
    return [split for split in found if (~split.test).sum() >= 9]


def thinned(table: ScalingTable) -> ScalingTable:
    if len(table) <= THIN:
        return table
    return table.take(np.sort(np.random.default_rng(0).permutation(len(table))[:THIN]))


def scores(table: ScalingTable) -> dict[str, list[float]]:
    """Split -> error in percent of every rule of the pool."""
    rules, found = pool(), {}
    for split in splits(table):
        left, kept = thinned(table.take(~split.test)), table.take(split.test)
        ready = prepare(left)
        found[split.name] = [
            percent(_predict(ready, [part], kept), kept.loss) for part in fit_rules(left, rules, ready)
        ]
    return found


def yardstick(table: ScalingTable, split: Split) -> dict[str, float]:
    """Each published law alone, and the pointwise median of three."""
    left, kept = table.take(~split.test), table.take(split.test)
    ready, found = prepare(left), {}
    for law in ("chinchilla", "kappa", "farseer"):
        found[law] = _predict(ready, [Part(law, *fit_theta(left, law, ready))], kept)
    found["median"] = np.median(list(found.values()), axis=0)
    return {name: percent(values, kept.loss) for name, values in found.items()}


def judge(table: ScalingTable, split: Split, rules: Sequence[Rule]) -> float:
    """Error of the chosen rules in percent on the rows that they have not seen."""
    return compare_laws(table, ("auto",), rules=rules, splits=[split])[0]["auto"]


def further(table: ScalingTable, rules: Sequence[Rule]) -> dict[str, list[dict[str, float]]]:
    """Kind of split -> errors of each law: other ways to hold out, and fits to ten rows."""
    rng, sizes = np.random.default_rng(0), table.sizes
    some = sizes[np.unique(np.linspace(0, len(sizes) - 1, 5).round().astype(int))]
    ratio, count = table.D / table.N, max(2, round(0.2 * len(table)))
    found = [("one size", table, np.abs(np.log(table.N / size)) < 1e-3) for size in some]
    found += [("top 40% of compute", table, top_compute(table, 0.4).test)]
    found += [("most tokens", table, table.D >= np.sort(table.D)[-count])]
    found += [("most tokens per parameter", table, ratio >= np.sort(ratio)[-count])]
    found += [("a random fifth", table, rng.permutation(len(table)) < count) for _ in range(2)]
    top = top_compute(table).test
    for _ in range(3):
        few = rng.choice(np.flatnonzero(~top), min(10, (~top).sum()), replace=False)
        runs = table.take(np.r_[few, np.flatnonzero(top)])
        found.append(("top 15%, fitted to ten rows", runs, np.arange(len(runs)) >= len(few)))
    rows: dict[str, list[dict[str, float]]] = {}
    for kind, runs, test in found:
        split, left = Split(kind, test), runs.take(~test)
        if len(left) >= 8 and len(left.sizes) > 1 and len(np.unique(left.D)) > 1:
            errors = {**yardstick(runs, split), "auto": judge(runs, split, rules)}
            rows.setdefault(kind, []).append({law: round(error, 4) for law, error in errors.items()})
    return rows


def deviations(table: ScalingTable, split: Split, rules: Sequence[Rule], draws: int) -> list[float]:
    """|error| in bootstrap deviations, of every held-out row."""
    left, kept = table.take(~split.test), table.take(split.test)
    surface = fit(left, draws=draws, check=False, rules=rules)
    errors = np.abs(np.log(surface.predict(kept.N, kept.D) / kept.loss))
    return np.round(errors / surface.deviation(kept.N, kept.D), 3).tolist()


def chosen(found: dict[str, dict[str, list[float]]], without: Sequence[str], members: int) -> list[int]:
    """Numbers of the best rules by mean ln(error + 0.1%), every table counting once."""
    per_table = [
        np.log(np.array(list(rows.values())) + 0.1).mean(0) for name, rows in found.items() if name not in without
    ]
    return np.argsort(np.mean(per_table, axis=0), kind="stable")[:members].tolist()


def family(name: str) -> list[str]:
    return [other for other in public.REAL if other.startswith("gadre")] if name.startswith("gadre") else [name]


def stamp() -> dict[str, str]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "commit": commit,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
    }


def recorded() -> dict[str, dict]:
    if not RESULTS.exists():
        return {}
    return {row["key"]: row for row in map(json.loads, RESULTS.read_text().splitlines())}


def record(key: str, **values: object) -> None:
    with open(RESULTS, "a") as file:
        file.write(json.dumps({"key": key, **values, **stamp()}) + "\n")


def repeated(cap: float = 64) -> dict[str, object]:
    """The repeated-data law on the real table, by epochs, and with runs kept back."""
    table = public.datablations(repeated=True)
    table = table.take(epochs_of(table) <= cap)
    epochs = epochs_of(table)
    once = fit(table.take(epochs <= 1), "chinchilla", draws=0, check=False)

    def row(what: str, law, rows: np.ndarray) -> tuple[str, int, float, float]:
        N, D, loss = table.N[rows], table.D[rows], table.loss[rows]
        errors = percent(np.exp(law._logs(N, D, epochs[rows], False)), loss), percent(once.predict(N, D), loss)
        return what, int(rows.sum()), *(round(error, 3) for error in errors)

    full = fit(table, "repeated", draws=0, check=False)
    found = [row("1 epoch", full, epochs <= 1)]
    for low, high in ((1, 4), (4, 16), (16, cap)):
        found.append(row(f"{low:g} to {high:g} epochs", full, (epochs > low) & (epochs <= high)))
    for what, rows in (
        ("held out: largest two sizes", table.N >= table.sizes[-2]),
        ("held out: more than 4 epochs, up to 16", (epochs > 4) & (epochs <= 16)),
    ):
        left = table.take(~rows & (epochs <= 4) if "epochs" in what else ~rows)
        found.append(row(what, fit(left, "repeated", draws=0, check=False), rows))
    return {"rows": found, "constants": full.constants()}


def work(draws: int) -> None:
    """Whatever is not in the results yet."""
    tables = {name: make() for name, make in public.REAL.items()}
    for name, table in tables.items():
        if f"scores/{name}" not in recorded():
            begun = time.process_time()
            found = {key: [round(v, 4) for v in values] for key, values in scores(table).items()}
            record(f"scores/{name}", errors=found, seconds=round(time.process_time() - begun, 1))
    found = {name: recorded()[f"scores/{name}"]["errors"] for name in tables}
    rules = pool()
    picks = [("table", name, [name]) for name in tables] + [
        ("family", name, family(name)) for name in tables if len(family(name)) > 1
    ]
    for kind, name, without in picks:
        picked = chosen(found, without, MEMBERS)
        for split in standard(tables[name]):
            if (key := f"judged/{kind}/{name}/{split.name}") not in recorded():
                more = yardstick(tables[name], split) if kind == "table" else {}
                record(key, error=judge(tables[name], split, [rules[i] for i in picked]), rules=picked, **more)
    for name, table in tables.items():
        picked = chosen(found, [name], MEMBERS)
        for split in standard(table):
            if draws and (key := f"deviations/{name}/{split.name}") not in recorded():
                record(key, z=deviations(table, split, [rules[i] for i in picked], draws))
    for name, table in tables.items():
        if (key := f"further/{name}") not in recorded():
            record(key, errors=further(table, [rules[i] for i in chosen(found, [name], MEMBERS)]))
    shaped, picked = public.gemstones(shapes=True), [rules[i] for i in chosen(found, ["gemstones"], MEMBERS)]
    for split in standard(shaped):
        if (key := f"shapes/gemstones/{split.name}") not in recorded():
            record(key, **compare_laws(shaped, rules=picked, splits=[split])[0])
    if "repeated" not in recorded():
        record("repeated", **repeated())
    print("rules on all eleven tables:")
    for i in chosen(found, [], MEMBERS):
        print("   ", asdict(rules[i]))


def coverage(level: float) -> dict[str, tuple[float, float, float]]:
    """Hold-out -> (share of its rows inside as drawn, with the widening chosen on the other families, the widening).

    The widening of a table is the least at which, in the mean over all other families' hold-outs, ``level`` of the rows
    lie inside.
    """
    from scipy.special import ndtri

    z = {key.split("/", 1)[1]: np.array(row["z"]) for key, row in recorded().items() if key.startswith("deviations/")}
    half, widths, found = ndtri(0.5 + level / 2), np.linspace(0.2, 12, 600), {}
    for name, one in z.items():
        others = [values for other, values in z.items() if other.split("/")[0] not in family(name.split("/")[0])]
        covered = np.array([np.mean([np.mean(values < half * width) for values in others]) for width in widths])
        width = float(widths[np.argmax(covered >= level)])
        found[name] = float(np.mean(one < half)), float(np.mean(one < half * width)), width
    return found


def page() -> str:
    """docs/scaling.md: the 22 hold-outs and the coverage of intervals."""
    rows = recorded()
    columns = ("chinchilla", "kappa", "farseer", "median", "auto")
    lines = [
        "# Scaling laws on runs that they had not seen", "",
        "Made by `python benchmarks/scaling.py` from `benchmarks/results/scaling_nested.jsonl`. Mean error in",
        "percent; `auto` is chosen with the table left out, `median` is the pointwise median of the three laws.", "",
        "| table | held out | " + " | ".join(columns) + " |", "|---|---|" + "--:|" * len(columns),
    ]  # fmt: skip
    errors: dict[str, list[list[float]]] = {}
    for key, row in rows.items():
        if key.startswith("judged/table/"):
            _, _, name, split = key.split("/")
            errors.setdefault(split, []).append([*(row[c] for c in columns[:4]), row["error"]])
            lines.append(f"| {name} | {split} | " + " | ".join(f"{v:.2f}" for v in errors[split][-1]) + " |")
    for split, values in errors.items():
        kinds = (("geometric mean", np.exp(np.log(values).mean(0))), ("best", np.min(values, 0)))
        for what, one in (*kinds, ("worst", np.max(values, 0))):
            lines.append(f"| **{what}** | {split} | " + " | ".join(f"{v:.2f}" for v in one) + " |")
    lines += [
        "", "## Intervals", "",
        "Share of the held-out rows inside the interval: by bootstrap alone, and widened by the factor that the tables",
        "of all other families need (the six Gadre tables are one). Mean over the 22 hold-outs, least and most.", "",
        "| interval | bootstrap alone | widened | least | most | factors |", "|---|--:|--:|--:|--:|---|",
    ]  # fmt: skip
    for level in (0.5, 0.8, 0.9):
        alone, wide, factor = np.array(list(coverage(level).values())).T
        lines.append(f"| {level:.0%} | {alone.mean():.0%} | {wide.mean():.0%} | {wide.min():.0%} | {wide.max():.0%} | "
                     f"{factor.min():.2f} to {factor.max():.2f} |")  # fmt: skip
    lines += ["", *_further(rows)]
    if "repeated" in rows:
        lines += [
            "", "## Data that is read again", "",
            "The repeated-data law on the real table (datablations, C4; at most 64 epochs) against Chinchilla on its",
            "runs of one epoch, which takes every token for new. Error in percent on the rows fitted, or held out.", "",
            "| rows | count | repeated-data law | tokens taken for new |", "|---|--:|--:|--:|",
        ]  # fmt: skip
        lines += [f"| {what} | {n} | {a:.2f} | {b:.2f} |" for what, n, a, b in rows["repeated"]["rows"]]
        constants = rows["repeated"]["constants"]
        said = f"R_D = {constants['R_D']:.3g}, R_N = {constants['R_N']:.3g} (Muennighoff et al. print 15.4 and 5.3)."
        lines += ["", said, "The form cannot rise again, so it does not describe runs beyond 16 epochs, which overfit."]
    return "\n".join(lines) + "\n"


def _further(rows: dict[str, dict]) -> list[str]:
    """Other splits, every table once; and Gemstones with its shapes declared."""
    laws = ("chinchilla", "kappa", "farseer", "median", "auto")
    kinds: dict[str, list[np.ndarray]] = {}
    for key, row in rows.items():
        for kind, errors in row["errors"].items() if key.startswith("further/") else ():
            logs = [[np.log(one[law] + 0.02) for law in laws] for one in errors]
            kinds.setdefault(kind, []).append(np.mean(logs, axis=0))
    lines = [
        "## Other ways to hold out", "",
        "Geometric means over the tables, percent; `auto` is chosen without the table.", "",
        "| held out | " + " | ".join(laws) + " |", "|---|" + "--:|" * len(laws),
    ]  # fmt: skip
    for kind, values in kinds.items():
        lines.append(f"| {kind} | " + " | ".join(f"{v:.2f}" for v in np.exp(np.mean(values, axis=0)) - 0.02) + " |")
    shaped = {key.split("/")[2]: row for key, row in rows.items() if key.startswith("shapes/")}
    if shaped:
        laws = ("chinchilla", "kappa", "farseer", "auto")
        lines += ["", "Gemstones with width and depth declared (plan/shapes.py):", ""]
        lines += ["| held out | " + " | ".join(laws) + " |", "|---|" + "--:|" * len(laws)]
        lines += [f"| {name} | " + " | ".join(f"{row[law]:.2f}" for law in laws) + " |" for name, row in shaped.items()]
    return lines


def show() -> None:
    """The table of the 22 hold-outs, and the two numbers."""
    rows = recorded()
    columns = ("chinchilla", "kappa", "farseer", "median", "auto", "auto, family left out")
    print(f"{'table':26s}{'held out':22s}" + "".join(f"{c:>12.12s}" for c in columns))
    errors: dict[str, list[list[float]]] = {}
    for key, row in rows.items():
        if key.startswith("judged/table/"):
            _, _, name, split = key.split("/")
            other = rows.get(f"judged/family/{name}/{split}", {}).get("error", row["error"])
            values = [*(row[c] for c in columns[:4]), row["error"], other]
            errors.setdefault(split, []).append(values)
            print(f"{name:26s}{split:22s}" + "".join(f"{v:12.2f}" for v in values))
    for split, values in errors.items():
        means, worst = np.exp(np.log(values).mean(0)), np.max(values, axis=0)
        print(f"{'geometric mean':26s}{split:22s}" + "".join(f"{v:12.2f}" for v in means))
        print(f"{'worst':26s}{split:22s}" + "".join(f"{v:12.2f}" for v in worst))
    z = [row["z"] for key, row in rows.items() if key.startswith("deviations/")]
    if z:
        widths = np.linspace(0.2, 8, 400)
        covered = np.array([np.mean([np.mean(np.array(one) < 1.2816 * width) for one in z]) for width in widths])
        print(
            f"80% intervals cover {100 * np.interp(1, widths, covered):.0f}% as drawn; "
            f"80% at spread {widths[np.argmax(covered >= 0.8)]:.2f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the results that are there")
    parser.add_argument("--draws", type=int, default=24, help="bootstrap draws behind the coverage")
    args = parser.parse_args()
    if not args.table:
        work(args.draws)
    show()
    atomic_write(Path(__file__).resolve().parent.parent / "docs" / "scaling.md", page())
