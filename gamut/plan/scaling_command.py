"""`gamut plan scaling`: the command line of plan/scaling.py; the page is plan/scaling_page.py."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from gamut.plan.scaling import fit
from gamut.plan.surface import DN_RANGE, Surface
from gamut.plan.tables import ScalingTable


def main(
    table: Path,
    /,
    *,
    against: Path | None = None,
    target_flops: float | None = None,
    target_n: float | None = None,
    target_d: float | None = None,
    law: str = "auto",
    n: str = "",
    d: str = "",
    flops: str = "",
    loss: str = "",
    unique: str = "",
    convention: str = "unstated",
    unit: str = "nats/token",
    dn_range: tuple[float, float] = DN_RANGE,
    seed: int = 0,
    out: Path = Path("scaling.html"),
    json: Path | None = None,
) -> None:
    """Fit scaling laws to a table of runs; predict the next run with an error bar; write a one-page report.

    Args:
        table: CSV or Parquet, a row per run.
        against: a second table with the same columns: a map of which recipe wins where, in place of a prediction.
        target_flops: training compute to plan for, C = 6 N D.
        target_n: parameters to predict for; with target_d or target_flops.
        target_d: tokens to predict for.
        law: auto, chinchilla, kappa, farseer, farseer-piecewise or repeated.
        n: column of parameters, if its name is not an obvious one.
        d: column of tokens.
        flops: column of training FLOPs, in place of tokens: D = C / 6N.
        loss: column of losses.
        unique: column of different tokens, for runs that repeat data.
        convention: non-embedding, total, no input embedding, matmul or unstated.
        unit: nats/token, bits/token, bits/character or bits/byte.
        dn_range: tokens per parameter between which the best point is sought.
        out: where the report goes.
        json: where the surface goes, with every digit.
    """
    from gamut.plan.scaling_page import summary, target, write

    roles = {"N": n, "D": d, "flops": flops, "loss": loss, "unique": unique}
    columns: dict[str, Any] = {role: name for role, name in roles.items() if name}
    runs = ScalingTable.read(table, convention=convention, unit=unit, **columns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the notes are printed and stand on the page
        surface = fit(runs, law, seed=seed)
        if against is not None:
            others = ScalingTable.read(against, convention=convention, unit=unit, **columns)
            return _against((runs, others), (surface, fit(others, law, seed=seed)), out, dn_range)
        aim = target(surface, target_flops, target_n, target_d, dn_range)
    print("\n".join(summary(runs, surface, aim)))
    if json:
        print(surface.save(json))
    print(write(out, runs, surface, aim, dn_range))


def _against(
    tables: tuple[ScalingTable, ScalingTable],
    surfaces: tuple[Surface, Surface],
    out: Path,
    dn_range: tuple[float, float],
) -> None:
    from gamut.plan import compare_page

    runs = np.concatenate([table.N for table in tables]), np.concatenate([table.D for table in tables])
    path, found = compare_page.write(out, *surfaces, dn_range, runs)
    print("\n".join([*compare_page.summary(found, *surfaces), str(path)]))
