"""Parity fixtures: what an official module was given and what it returned, and how far ours is from it.

A fixture is a safetensors file with w.* (official weights), in.* and out.*, whose metadata holds config and source; or
a JSON file of lists of cases.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from gamut.io.folders import json_object, read_tensors


@dataclass(frozen=True)
class Fixture:
    """One file. ``config`` is the official one; the tensors have lost their prefixes."""

    path: Path
    config: dict[str, Any]
    weights: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Fixture":
        """Read a fixture. For a JSON file, ``config`` is all of it.

        Raises:
            ValueError: truncated, damaged, or without the metadata a fixture has.
        """
        if path.suffix == ".json":
            return cls(path, json_object(path, "copy the fixture again"))
        tensors = read_tensors(path)
        with safe_open(path, "pt") as file:
            config = (file.metadata() or {}).get("config")
        if config is None or not any(name.startswith("out.") for name in tensors):
            raise ValueError(f"'{path}' is no parity fixture: it needs metadata 'config' and tensors named out.*")
        parts = {p: {k[len(p) :]: t for k, t in tensors.items() if k.startswith(p)} for p in ("w.", "in.", "out.")}
        return cls(path, json.loads(config), *parts.values())


@dataclass(frozen=True)
class Ours:
    """Our side of one output. Only where ``where`` is true does the fixture mean anything (None: everywhere)."""

    value: Tensor
    where: Tensor | None = None


class Row(NamedTuple):
    """One output compared. ``text`` is the difference or what went wrong."""

    name: str
    text: str
    allowed: str
    passed: bool


def compare(name: str, ours: Ours | None, wanted: Tensor, tolerance: float) -> Row:
    """Largest absolute difference where it counts; integers and booleans must be equal, unless 1 or more is allowed."""
    exact = not wanted.is_floating_point() and tolerance < 1
    allowed = "equal" if exact else f"{tolerance:.0e}" if tolerance < 1 else f"{tolerance:g}"
    if ours is None:
        return Row(name, "not computed", allowed, False)
    value = ours.value.detach().cpu()
    if value.shape != wanted.shape:
        return Row(name, f"shape {tuple(value.shape)}, not {tuple(wanted.shape)}", allowed, False)
    if ours.where is not None:
        where = ours.where.cpu().expand(wanted.shape)
        value, wanted = value[where], wanted[where]
    if exact:
        wrong = int((value.to(wanted.dtype) != wanted).sum())
        return Row(name, f"{wrong} of {wanted.numel()} differ" if wrong else "equal", allowed, not wrong)
    gap = (value.double() - wanted.double()).abs()
    worst = float(gap.max()) if gap.numel() else 0.0  # nan, where ours is, is no pass
    return Row(name, f"{worst:.1e}", allowed, worst <= tolerance)


def below(lengths: Tensor, steps: int) -> Tensor:
    """(rows, steps, 1): true for the first ``lengths[row]`` steps of each row."""
    return (torch.arange(steps) < lengths[:, None])[..., None]
