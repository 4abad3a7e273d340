"""`gamut plan scaling`: the command line of plan/scaling.py; the page is plan/scaling_page.py."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from gamut.plan.scaling import fit
from gamut.plan.surface import DN_RANGE
from gamut.plan.tables import ScalingTable

Wanted = tuple[float | None, float | None, float | None]  # FLOPs, N, D


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
    width: str = "",
    depth: str = "",
    convention: str = "unstated",
    unit: str = "nats/token",
    where: str = "",
    dn_range: tuple[float, float] = DN_RANGE,
    seed: int = 0,
    out: Path = Path("scaling.html"),
    json: Path | None = None,
) -> None:
    """How good will the next run be? Scaling laws, fitted to a table of finished runs, predict it with an error bar.

    The table has a row per run: parameters N, training tokens D, final loss. Columns of usual names are found. The
    answer is printed, and written as a page with the fit, hold-outs of every law and the runs to add next.

    Args:
        table: CSV or Parquet file, a row per run.
        against: a second table with the same columns: a map of which recipe wins where, in place of a prediction.
        target_flops: training compute to plan for, 6 N D.
        target_n: parameters to predict for; with --target-d or --target-flops.
        target_d: tokens to predict for; with --target-n.
        law: auto (the best predictor), chinchilla, kappa, farseer, farseer-piecewise or repeated (with --unique).
        n: column of parameters, where it is not found.
        d: column of tokens, where it is not found.
        flops: column of training FLOPs, in place of tokens: D = FLOPs / 6N.
        loss: column of losses, where it is not found.
        unique: column of different tokens, for runs that repeat data.
        width: column of model widths; with --depth: fits then allow for shapes.
        depth: column of layers; with --width.
        convention: how N was counted: non-embedding, total, no input embedding, matmul or unstated.
        unit: of the loss: nats/token, bits/token, bits/character or bits/byte.
        where: keep only some rows: COLUMN=VALUE, several joined by commas.
        dn_range: least and most tokens per parameter among which the best size is sought.
        seed: of the bootstrap behind the interval.
        out: where the page goes.
        json: where the fitted surface goes, with every digit.
    """
    roles = ("N", n), ("D", d), ("flops", flops), ("loss", loss), ("unique", unique), ("width", width), ("depth", depth)
    told: dict[str, Any] = {role: name for role, name in roles if name}
    told |= {"convention": convention, "unit": unit, "where": _filters(where)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the notes are printed and stand on the page
        if against is None:
            _answer(table, told, (target_flops, target_n, target_d), law, dn_range, seed, out, json)
        else:
            _against((table, against), told, law, dn_range, seed, out)


def _filters(where: str) -> dict[str, str]:
    """Column -> value."""
    found = [part.partition("=") for part in where.split(",") if part.strip()]
    if wrong := [name for name, sign, _ in found if not sign or not name.strip()]:
        raise ValueError(f"--where takes COLUMN=VALUE, several joined by commas, got {wrong[0]!r}; such as kind=ladder")
    return {name.strip(): value.strip() for name, _, value in found}


def _answer(
    table: Path, told: dict[str, Any], wanted: Wanted, law: str, dn_range: tuple[float, float],
    seed: int, out: Path, json: Path | None,
) -> None:  # fmt: skip
    from gamut.plan.scaling_page import asked, summary, target, write

    asked(*wanted)  # before the seconds of a fit
    runs = ScalingTable.read(table, **told)
    surface = fit(runs, law, seed=seed)
    try:
        aim = target(surface, *wanted, dn_range)
    except ValueError as error:  # the table's doubts are often why: columns swapped, N and D collinear
        raise ValueError("; ".join([str(error), *(f"careful: {note}" for note in surface.notes)])) from None
    print("\n".join(summary(runs, surface, aim)))
    if json:
        print(surface.save(json))
    print(write(out, runs, surface, aim, dn_range))


def _against(
    paths: tuple[Path, Path], told: dict[str, Any], law: str, dn_range: tuple[float, float], seed: int, out: Path
) -> None:
    from gamut.plan import compare_page

    tables = [ScalingTable.read(path, **told) for path in paths]
    first, second = (fit(table, law, seed=seed) for table in tables)
    runs = np.concatenate([table.N for table in tables]), np.concatenate([table.D for table in tables])
    path, found = compare_page.write(out, first, second, dn_range, runs)
    print("\n".join([*compare_page.summary(found, first, second), str(path)]))
