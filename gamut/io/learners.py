"""What a checkpoint holds of a phase under training: its modules, AdamW's moments and the running average.

Tensors are whole and on the CPU, whether the weights are spread over processes or not: either resumes the other.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as td
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

Files = dict[str, dict[str, Tensor]]  # file -> name -> tensor


@runtime_checkable
class Learner(Protocol):
    """``gamut.train.optim.Learner``, as far as it is saved."""

    name: str
    modules: dict[str, nn.Module]  # "" for one alone
    params: dict[str, nn.Parameter]  # those that are trained, by module and name
    average: dict[str, Tensor]  # of params

    @property
    def adam(self) -> torch.optim.Optimizer: ...


def pack(learner: Learner) -> Files:
    """Everything to be saved, by file and name (only rank 0 gets it, but every rank must take part)."""
    files = {file: gathered(named) for file, named in _targets(learner).items()}
    averages = gathered({id(learner.params[name]): value for name, value in learner.average.items()})
    for key, module in learner.modules.items() if averages else ():  # a file that loads alone, tied names included
        named = {n: averages.get(id(p)) for n, p in module.named_parameters(remove_duplicate=False)}
        file = join(learner.name, key)
        files[f"{file}.ema"] = files[file] | {n: value for n, value in named.items() if value is not None}
    return files


def first() -> bool:
    """Whether this process is rank 0, or alone."""
    return not td.is_initialized() or td.get_rank() == 0


def gathered(named: Mapping[Any, Tensor]) -> dict[Any, Tensor]:
    """Whole tensors, on the CPU of rank 0; nothing on the other ranks, which must take part."""
    found = {}
    for name, tensor in named.items():
        complete = whole(tensor.detach())
        if first():
            found[name] = complete.cpu()
    return found


def unpack(learner: Learner, tensors: Mapping[str, Mapping[str, Tensor]], where: Path) -> None:
    """Put back what `pack` gave.

    Raises:
        ValueError: a file or tensor is missing, unexpected or has another shape.
    """
    for name in {n.split(".", 1)[1] for n in tensors.get(f"{learner.name}.optim", {})} & set(learner.params):
        p = learner.params[name]
        learner.adam.state[p] = {
            "step": torch.zeros((), dtype=torch.float32, device=p.device),
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": torch.zeros_like(p),
        }
    pairs = {file: (named, tensors.get(file, {})) for file, named in _targets(learner).items()}
    for key, module in learner.modules.items() if learner.average else ():
        file, names = f"{join(learner.name, key)}.ema", [n for n, _ in module.named_parameters()]
        kept = {n: learner.average[join(key, n)] for n in names if join(key, n) in learner.average}
        pairs[file] = kept, {n: t for n, t in tensors.get(file, {}).items() if n in kept}
    for file, (named, found) in pairs.items():
        _fit_together(named, found, f"{where}/{file}.safetensors")
        for name, target in named.items():
            fill(target, found[name])


def _targets(learner: Learner) -> Files:
    """Weights and moments where they live, by file and name."""
    files = {join(learner.name, key): module.state_dict() for key, module in learner.modules.items()}
    moments = [(name, learner.adam.state.get(p, {})) for name, p in learner.params.items()]
    return files | {f"{learner.name}.optim": {f"{kind}.{n}": t for n, state in moments for kind, t in state.items()}}


def join(key: str, name: str) -> str:
    return f"{key}.{name}" if key and name else key or name


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that is spread over the ranks, on every rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def fill(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into ``target``, this rank's part of it where that is spread."""
    with torch.no_grad():
        if isinstance(target, DTensor):
            value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
        target.copy_(value)


def _fit_together(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str) -> None:
    shapes = [n for n in wanted if n in found and found[n].shape != wanted[n].shape]
    kinds = {"missing": wanted.keys() - found.keys(), "unexpected": found.keys() - wanted.keys(), "mis-shaped": shapes}
    text = "; ".join(f"{len(n)} {kind}: {', '.join(sorted(n)[:8])}" for kind, n in kinds.items() if n)
    if text:
        raise ValueError(f"'{where}' does not fit what is trained here: {text}. Resume with the configuration it had")
