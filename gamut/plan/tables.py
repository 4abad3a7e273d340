"""Tables of training runs: parameters, tokens, loss, and what was counted how.

    table = ScalingTable(N=[1e8, 2e8], D=[2e9, 4e9], loss=[3.4, 3.1])
    table = ScalingTable.read("runs.csv", N="params", D="tokens", loss="val_loss", unit="nats/token")

N parameters · D tokens · C = 6 N D FLOPs of training. Every law in plan/ is fitted to one of these.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

CONVENTIONS = {
    "non-embedding": "every embedding matrix left out",
    "total": "every parameter",
    "no input embedding": "the output head counts, the input embedding does not",
    "matmul": "parameters of matrix products, the head among them",
    "unstated": "nobody said; do not pool with other tables",
}
UNITS = ("nats/token", "bits/character", "bits/byte", "bits/token")
OPTIONAL = ("lr", "batch", "unique", "noise", "aspect")
LEAST_COUNT, DN_MIXED = 1e3, (1e-4, 1e7)  # ours: no run of a language model lies outside
ALIASES = {  # what a column may be called when no map is given; the first that is there is taken
    "N": ("N", "n", "params", "parameters", "params_active_precise", "n_params", "Model Size", "model_size"),
    "D": ("D", "d", "tokens", "n_tokens", "train_tokens", "Training Tokens"),
    "loss": ("loss", "smooth loss", "val_loss", "final_loss", "BPC", "bpc", "val_bpb", "IntelliValSet_Raw|en", "y"),
    "lr": ("lr", "learning_rate", "peak_lr"),
    "batch": ("batch", "batch_tokens"),
    "unique": ("unique", "unique_tokens", "D_unique"),
    "noise": ("noise", "sd"),
    "aspect": ("aspect",),
}


@dataclass(frozen=True)
class ScalingTable:
    """Training runs, a row each.

    Args:
        N: parameters, counted as ``convention`` says; D: tokens seen; loss: in ``unit``, above 0.
        lr: peak learning rate. batch: tokens per update. unique: different tokens (D when nothing was read twice).
        noise: standard deviation of the log loss between repeated runs, a row each or one number; 0 = not known.
        aspect: width / depth of each model; fits then allow for shapes (plan/shapes.py).
        convention: a key of CONVENTIONS. unit: one of UNITS. name, source: for reports.
    Raises:
        ValueError: naming the column, the row and the value that cannot be (NaN, not above 0, unlike lengths), and for
            counts that must be in another unit (every N or D below 1,000; more than 1e7 tokens per parameter).
    """

    N: Any  # what can become a float64 array; an array from then on
    D: Any
    loss: Any
    lr: Any = None
    batch: Any = None
    unique: Any = None
    noise: Any = None
    aspect: Any = None
    convention: str = "unstated"
    unit: str = "nats/token"
    name: str = "table"
    source: str = field(default="", compare=False)

    def __post_init__(self):
        if self.convention not in CONVENTIONS:
            raise ValueError(f"unknown N convention {self.convention!r}; give one of: {', '.join(CONVENTIONS)}")
        if self.unit not in UNITS:
            raise ValueError(f"unknown unit of loss {self.unit!r}; give one of: {', '.join(UNITS)}")
        rows = None
        for name in ("N", "D", "loss", *OPTIONAL):
            given = getattr(self, name)
            if given is None and name in OPTIONAL:
                continue
            column = _floats(name, given)
            if name == "noise" and column.size == 1 and rows is not None:
                column = np.full(rows, column[0])
            rows = len(column) if rows is None else rows
            self._check(name, column, rows)
            column.setflags(write=False)
            object.__setattr__(self, name, column)
        self._check_units()

    def _check(self, name: str, column: np.ndarray, rows: int) -> None:
        if not rows:
            raise ValueError(f"{self.name} has no rows; give N, D and loss of at least one run")
        if len(column) != rows:
            raise ValueError(f"column {name} has {len(column)} values, N has {rows}; every column needs a value a row")
        good = np.isfinite(column) & ((column >= 0) if name == "noise" else (column > 0))
        if not good.all():
            row = int(np.argmin(good))
            low = "at or above 0" if name == "noise" else "above 0"
            raise ValueError(
                f"{name} = {column[row]:g} in row {row + 1} of {self.name}; allowed: finite and {low}; "
                "drop the row, or map another column"
            )

    def _check_units(self) -> None:
        """Counts in billions are the usual slip: laws fit them, and 6 N D is then wrong by 1e18."""
        for name in ("N", "D"):
            if (most := getattr(self, name).max()) < LEAST_COUNT:
                raise ValueError(
                    f"{name} of {self.name} is at most {most:g}; allowed: plain counts, some of them above "
                    f"{LEAST_COUNT:g}; if these are millions or billions, multiply by 1e6 or 1e9"
                )
        ratio = float(np.median(self.D / self.N))
        if not DN_MIXED[0] < ratio < DN_MIXED[1]:
            raise ValueError(
                f"{self.name} has a median of {ratio:.3g} tokens per parameter; allowed: {DN_MIXED[0]:g} to "
                f"{DN_MIXED[1]:g}; are N and D in one unit (plain counts), and is each in its own column?"
            )

    def __len__(self) -> int:
        return len(self.N)

    @property
    def compute(self) -> np.ndarray:
        """6 N D, FLOPs."""
        return 6 * self.N * self.D

    @property
    def sizes(self) -> np.ndarray:
        """The different model sizes, rising; sizes within 0.1% of one another count as one."""
        sizes = np.unique(self.N)
        return sizes[np.r_[True, np.diff(np.log(sizes)) > 1e-3]]

    def take(self, rows: Any) -> "ScalingTable":
        """The rows of a mask or index array."""
        columns = {n: getattr(self, n)[rows] for n in ("N", "D", "loss", *OPTIONAL) if getattr(self, n) is not None}
        return replace(self, **columns)

    @classmethod
    def read(cls, path: str | Path, *, where: Mapping[str, str] | None = None, **options: str) -> "ScalingTable":
        """A CSV or Parquet file with a column map.

        Args:
            where: keep only the rows where these columns hold these values, as text.
            options: N, D, loss, lr, batch, unique, noise, aspect = name of a column (the first three are guessed from
                ALIASES where not given); convention, unit, name, source = as for the class. Give ``flops`` = the name
                of a column of training FLOPs instead of D, and D is taken as C / 6N; ``width`` and ``depth`` instead
                of aspect.
        Raises:
            ValueError: for a column that is not there or a cell that is no number.
        """
        path = Path(path)
        columns = _columns(path)
        told = {key: options.pop(key) for key in list(options) if key in {f.name for f in fields(cls)} - set(ALIASES)}
        flops, width, depth = (options.pop(role, None) for role in ("flops", "width", "depth"))
        if wrong := set(options) - set(ALIASES):
            roles = ", ".join((*ALIASES, "flops", "width", "depth", "where"))
            raise ValueError(f"unknown column role {sorted(wrong)[0]!r}; roles: {roles}")
        if bool(width) != bool(depth):
            raise ValueError(f"width and depth are columns that go together, got width={width!r}, depth={depth!r}")
        keep = np.ones(len(next(iter(columns.values()), [])), dtype=bool)
        for name, value in (where or {}).items():
            keep &= np.array([str(cell) == value for cell in _column(columns, name, path)])
        if not keep.any():
            raise ValueError(
                f"no row of {path} is left{f' where {dict(where)}' if where else ''}; look at the file's values"
            )
        found = {}
        for role, names in ALIASES.items():
            if role == "D" and flops:
                continue
            name = options.get(role) or next((name for name in names if name in columns), None)
            if name is None and role in ("N", "D", "loss"):
                raise ValueError(
                    f"{path} has no column that looks like {role}; it has: {', '.join(columns)}; "
                    f"say which: --{role.lower()} COLUMN ({role}=... in Python)"
                )
            if name and (role in options or role not in OPTIONAL):
                found[role] = _numbers(_column(columns, name, path), keep, name, path)
        if flops:
            found["D"] = _numbers(_column(columns, flops, path), keep, flops, path) / (6 * found["N"])
        if width and depth:
            wide, deep = (_numbers(_column(columns, column, path), keep, column, path) for column in (width, depth))
            found["aspect"] = wide / deep
        return cls(**found, **{"name": path.stem, **told})

    def write(self, path: str | Path) -> Path:
        """The table as CSV, with every digit."""
        from gamut.io.files import atomic_write

        names = [n for n in ("N", "D", "loss", *OPTIONAL) if getattr(self, n) is not None]
        rows = zip(*(getattr(self, n).tolist() for n in names), strict=True)
        return atomic_write(path, "\n".join([",".join(names), *(",".join(map(repr, row)) for row in rows)]) + "\n")


def varied(table: ScalingTable) -> bool:
    """Whether it has two sizes and two token counts, without which no law of both can be fitted."""
    return len(table.sizes) >= 2 and len(np.unique(table.D)) >= 2


def _floats(name: str, given: Any) -> np.ndarray:
    """One column as float64, copied."""
    said = f"column {name} of a ScalingTable must hold one number per run, such as [1e8, 2e8]"
    if given is None:
        raise ValueError(f"{said}; got None; N, D and loss are all needed")
    try:
        raw = np.asarray(given)
        if raw.dtype.kind in "cbmM":
            raise ValueError(f"{raw.dtype} values")
        column = np.array(raw, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{said}; got {type(given).__name__}: {error}") from None
    column = np.atleast_1d(column)
    if column.ndim > 1:
        if max(column.shape) != column.size:
            raise ValueError(f"{said}; got an array of shape {column.shape}")
        column = column.ravel()
    return column


def _columns(path: Path) -> dict[str, list]:
    if not path.exists():
        raise ValueError(f"no file {path}; give a CSV or Parquet file with a row per run")
    if path.suffix in (".parquet", ".pq"):
        try:
            import pyarrow.parquet as pq
        except ImportError:
            raise ImportError("reading Parquet needs pyarrow: pip install gamut[plan]") from None
        return pq.read_table(path).to_pydict()
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.reader(file))
    if len(rows) < 2:
        raise ValueError(f"{path} has no rows; expected a header and a row per run")
    return {name.strip(): [row[i] if i < len(row) else "" for row in rows[1:] if row] for i, name in enumerate(rows[0])}


def _column(columns: dict[str, list], name: str, path: Path) -> list:
    if name not in columns:
        raise ValueError(f"{path} has no column {name!r}; it has: {', '.join(columns)}")
    return columns[name]


def _numbers(cells: list, keep: np.ndarray, name: str, path: Path) -> np.ndarray:
    values = []
    for row, (cell, wanted) in enumerate(zip(cells, keep, strict=True)):
        if wanted:
            try:
                values.append(float(cell))
            except (TypeError, ValueError):
                raise ValueError(f"{path}, row {row + 2}, column {name}: {cell!r} is no number") from None
    return np.array(values)
