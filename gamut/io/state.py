"""Checkpoints of a run that is under way: folders step_00000040/ of safetensors files and one state.json.

A folder takes its name only when everything in it is on the disk. Reading checks length and SHA-256 of every file, so
a damaged checkpoint is named and the one before it is used. Random states are not saved: every draw follows from a
key (`reseed`), so knowing the step is knowing the dice.
"""

import hashlib
import json
import random
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from gamut.io.files import atomic_dir, sha256
from gamut.io.folders import write_tensors

NOTE = "state.json"


@dataclass(frozen=True)
class State:
    """A checkpoint as read: ``tensors[file][name]``, and ``meta``, whatever JSON the writer put beside them."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    meta: dict


def save_state(
    folder: str | Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], meta: Mapping, *, keep: int = 2
) -> Path:
    """Write ``folder/step_XXXXXXXX`` whole, then remove all but the newest ``keep`` checkpoints.

    Args:
        tensors: file -> name -> tensor; ``model`` becomes model.safetensors. Empty files are left out.
        meta: JSON values.
    Raises:
        OSError: the disk is full, say. What was saved before is untouched; the message names it.
    """
    folder = Path(folder)
    path = state_path(folder, step)
    for stale in folder.glob(".step_*.tmp"):  # left by a process that was killed while it saved
        shutil.rmtree(stale, ignore_errors=True)
    try:
        with atomic_dir(path) as part:
            files = {}
            for name, named in tensors.items():
                if named:
                    file = part / f"{name}.safetensors"
                    write_tensors(file, named)
                    files[file.name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
            (part / NOTE).write_text(json.dumps({"step": step, "files": files, "meta": meta}) + "\n")
    except OSError as error:
        before = saved(folder)
        safe = f"'{before[0]}' is untouched" if before else "nothing was saved before it"
        raise OSError(
            error.errno or 0,
            f"could not save checkpoint '{path}': {error.strerror or error}; {safe}. Free some space, then resume",
        ) from error
    for old in saved(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def state_path(folder: str | Path, step: int) -> Path:
    """The folder of one step's checkpoint."""
    return Path(folder) / f"step_{step:08d}"


def saved(folder: str | Path) -> list[Path]:
    """The checkpoints in a folder, newest first, whole or not."""
    found = [path for path in Path(folder).glob("step_*") if re.fullmatch(r"step_\d{8,}", path.name)]
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def load_state(folder: str | Path) -> tuple[State | None, list[str]]:
    """The newest whole checkpoint (None if there is none at all), and a sentence for each damaged one passed over.

    Raises:
        ValueError: there are checkpoints and every one is damaged.
    """
    problems = []
    for path in saved(folder):
        try:
            return _read(path), problems
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError(
            f"no whole checkpoint in '{folder}': {'; '.join(problems)}. Remove that folder to start the stage again"
        )
    return None, []


def _read(path: Path) -> State:
    note = path / NOTE
    try:
        found = json.loads(note.read_text())
        step, files, meta = found["step"], found["files"], found["meta"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"'{note}' is missing or damaged ({type(error).__name__})") from error
    for name, wanted in files.items():
        size = (path / name).stat().st_size if (path / name).is_file() else None
        if size is None:
            raise ValueError(f"'{path / name}' is missing")
        if size != wanted["bytes"]:
            raise ValueError(f"'{path / name}' is truncated: got {size:,} bytes of {wanted['bytes']:,}")
        if sha256(path / name) != wanted["sha256"]:
            raise ValueError(f"'{path / name}' is damaged: its SHA-256 is not the one in {NOTE}")
    return State(path, step, {Path(name).stem: load_file(path / name) for name in files}, meta)


def reseed(*key: str | int) -> None:
    """Set the random states of torch (every device), numpy and python to what follows from ``key`` alone."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    seed = int.from_bytes(digest, "little") >> 1
    torch.default_generator.manual_seed(seed)  # torch.manual_seed formats a stack trace on every call: 0.2 ms
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def own_dice() -> Iterator[None]:
    """Leave the random states of torch, numpy and python as they were found, whatever happens inside."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
