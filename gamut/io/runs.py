"""A run folder: what was asked, where it ran, what was measured, and what came out.

    runs/<name>/{config.json, env.json, metrics.jsonl, tensorboard/, checkpoints/, samples/, report.html, result.json}
"""

import difflib
import json
import math
import re
import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gamut.io.env import environment
from gamut.io.files import atomic_write

BOARD = 1.0  # seconds between two steps in tensorboard, at least
Curves = dict[str, dict[str, list[tuple[int, float]]]]  # stage -> name -> [(step, value), ...] by step


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"


class Run:
    """One folder; made by `create` or `open`, never by its constructor."""

    def __init__(self, path: Path):
        self.path = path
        self._log = None  # the open metrics.jsonl
        self._boards: dict[str, Any] = {}  # stage -> tensorboard writer; one folder each: purging one spares the rest
        self._shown: dict[str, float] = {}  # stage -> when tensorboard was last written to
        self._waiting: dict[str, tuple[int, Mapping[str, float]]] = {}  # stage -> what was left out since

    @classmethod
    def create(cls, root: str | Path, name: str, config: Mapping[str, Any]) -> "Run":
        """Make ``root/name``, or ``name-2``, ``name-3``, ... where that is taken, and write config.json and env.json.

        Raises:
            ValueError: if ``name`` is not a plain folder name.
        """
        if not re.fullmatch(r"[\w][\w.+-]*", name):
            raise ValueError(f"a run name has only letters, digits and . _ + -, got {name!r}; choose one with --name")
        if not Path(root).is_dir() and any(part.is_file() for part in (Path(root), *Path(root).parents)):
            raise ValueError(f"'{root}' is to be a folder of runs, but a file is in the way; choose another with --out")
        Path(root).mkdir(parents=True, exist_ok=True)
        for number in range(1, 10_000):
            path = Path(root) / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            try:
                atomic_write(path / "config.json", _json(dict(config)))
                atomic_write(path / "env.json", _json(environment() | {"started": time.strftime("%Y-%m-%d %H:%M:%S")}))
            except OSError:
                shutil.rmtree(path, ignore_errors=True)  # no half-made run takes the name
                raise
            return cls(path)
        raise ValueError(f"{root}/{name} and 9,998 numbered ones exist; choose another name with --name")

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """An existing run, to read it or to go on with it.

        Raises:
            ValueError: if there is no such folder, or it holds no config.json.
        """
        path = Path(path)
        if not path.is_dir():
            siblings = [str(child) for child in path.parent.glob("*") if (child / "config.json").exists()]
            near = difflib.get_close_matches(str(path), siblings, n=3, cutoff=0.5) or sorted(siblings)[:5]
            raise ValueError(f"no run folder '{path}'; there is: {', '.join(near) or 'none beside it'}")
        if not (path / "config.json").exists():
            raise ValueError(f"'{path}' is not a run folder: it has no config.json; start one with gamut run RECIPE")
        return cls(path)

    def forget(self) -> None:
        """Remove the folder of a run that was refused before it began: one that holds what `create` wrote alone."""
        if {file.name for file in self.path.glob("*")} <= {"config.json", "env.json"}:
            shutil.rmtree(self.path, ignore_errors=True)

    @property
    def config(self) -> dict[str, Any]:
        """What `create` was given."""
        return json.loads((self.path / "config.json").read_text())

    @property
    def env(self) -> dict[str, str]:
        """The machine that the run was started on."""
        return json.loads((self.path / "env.json").read_text())

    @property
    def samples(self) -> Path:
        """Folder for things to look at or listen to; made on first use."""
        return self._folder("samples")

    def checkpoints(self, stage: str) -> Path:
        """Folder of one stage's checkpoints; made on first use."""
        return self._folder(f"checkpoints/{stage}")

    def _folder(self, name: str) -> Path:
        (self.path / name).mkdir(parents=True, exist_ok=True)
        return self.path / name

    def log(self, stage: str, step: int, stats: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl (and tensorboard, where installed). Stats are floats or 0-d tensors."""
        values = {name: float(value) for name, value in stats.items()}
        if self._log is None:
            self._repair()
            self._log = open(self.path / "metrics.jsonl", "a", encoding="utf-8")
        line = {"stage": stage, "step": step, "time": round(time.time(), 3)}
        line |= {name: value if math.isfinite(value) else str(value) for name, value in values.items()}  # JSON: no nan
        self._log.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._log.flush()
        self._board(stage, step, values)

    def _repair(self) -> None:
        """Cut off a last line that was being written when the process died."""
        path = self.path / "metrics.jsonl"
        if path.exists() and (data := path.read_bytes()) and not data.endswith(b"\n"):
            atomic_write(path, data[: data.rfind(b"\n") + 1])

    def _board(self, stage: str, step: int, values: Mapping[str, float], *, all: bool = False) -> None:
        """Tensorboard's copy: about one step a second (an event costs more than a small model's step), and the last."""
        if not all and time.monotonic() - self._shown.get(stage, -math.inf) < BOARD:
            self._waiting[stage] = step, values
            return
        self._shown[stage] = time.monotonic()
        self._waiting.pop(stage, None)
        try:
            if stage not in self._boards:
                from torch.utils.tensorboard import SummaryWriter

                folder = self.path / "tensorboard" / stage
                self._boards[stage] = SummaryWriter(str(folder), purge_step=step if folder.exists() else None)
            if writer := self._boards[stage]:
                for name, value in values.items():
                    writer.add_scalar(name, value, step)
        except ImportError:  # an extra; metrics.jsonl has everything
            self._boards[stage] = None
        except Exception as error:
            self._boards[stage] = None
            warnings.warn(f"tensorboard events of '{stage}' stop here ({error}); metrics.jsonl goes on", stacklevel=2)

    def lines(self) -> list[dict[str, Any]]:
        """Every whole line of metrics.jsonl; a half-written last one is left out.

        Raises:
            ValueError: if a line before the last is not JSON.
        """
        path = self.path / "metrics.jsonl"
        rows = path.read_bytes().split(b"\n") if path.exists() else []
        found = []
        for number, row in enumerate(rows[:-1], 1):  # what follows the last newline is empty or unfinished
            try:
                found.append(json.loads(row))
            except ValueError:
                raise ValueError(f"{path}, line {number}, is not JSON; remove that line to read the rest") from None
        return found

    def curves(self) -> Curves:
        """Everything logged, as points by stage and name; of two values for one step the later one counts."""
        found: dict[str, dict[str, dict[int, float]]] = {}
        for line in self.lines():
            for name, value in line.items():
                if name not in ("stage", "step", "time"):
                    found.setdefault(line["stage"], {}).setdefault(name, {})[line["step"]] = float(value)
        return {stage: {name: sorted(points.items()) for name, points in by.items()} for stage, by in found.items()}

    def truncate(self, stage: str, step: int) -> None:
        """Forget what ``stage`` logged after ``step``: a resumed run writes those lines again."""
        kept = [line for line in self.lines() if line["stage"] != stage or line["step"] <= step]
        self.close()
        atomic_write(self.path / "metrics.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write result.json and close the logs. The run may still be opened and logged to."""
        atomic_write(self.path / "result.json", _json(dict(result)))
        self.close()

    def close(self) -> None:
        """Flush and close metrics.jsonl and the tensorboard files; logging again reopens them."""
        if self._log is not None:
            self._log.close()
        for stage, (step, values) in list(self._waiting.items()):
            self._board(stage, step, values, all=True)
        for writer in self._boards.values():
            if writer is not None:
                writer.close()
        self._log, self._boards, self._shown = None, {}, {}
