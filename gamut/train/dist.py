"""Several processes, one run: started by torchrun, every function here is also right in a single process.

Ranks share the micro-batches of an update. A model is either copied to every rank (its gradients are added up) or
sharded by blocks (`shard`, FSDP2); checkpoints always hold whole tensors, so either kind resumes the other.
"""

import atexit
import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as td
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gamut.io.env import has_bfloat16
from gamut.io.learners import whole

BUCKET = 1 << 23  # elements that are added up in one message


def start(timeout: float = 1800.0) -> None:
    """Join the other processes if torchrun started this one; once is enough, more does no harm.

    Args:
        timeout: seconds after which a rank that waits for the others gives up: one of them writes all checkpoints, of a
            large model 100 GB. A rank that died is noticed at once.
    """
    if td.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    td.init_process_group(backend, timeout=timedelta(seconds=timeout))
    atexit.register(lambda: td.is_initialized() and td.destroy_process_group())


def rank() -> int:
    return td.get_rank() if td.is_initialized() else 0


def world() -> int:
    return td.get_world_size() if td.is_initialized() else 1


def device() -> torch.device:
    """Where this process computes: its GPU if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def move(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on ``device``: a tensor, or lists, tuples, mappings, dataclasses of them."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: move(part, device) for name, part in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(move(part, device) for part in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(move(part, device) for part in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        parts = {f.name: move(getattr(batch, f.name), device) for f in dataclasses.fields(batch)}
        return dataclasses.replace(batch, **parts)
    return batch


def shard(model: nn.Module, methods: Sequence[str] = ()) -> nn.Module:
    """The weights of ``model`` in float32, spread over the ranks block by block (FSDP2) if there are several.

    Args:
        model: changed in place, before an optimiser is made. The items of its outermost ModuleLists are the blocks.
            Weights that lie memory-mapped in a file are read there by all ranks; each holds its share alone.
        methods: names of methods that are called beside ``forward`` and use weights (``hidden``, ``embed``).
    """
    start()
    if world() == 1:
        return model.float()
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device().type, (world(),))
    half = torch.bfloat16 if has_bfloat16() else None
    for part in [*_blocks(model), model]:  # what a block is given it is given as it is: angles stay float32
        policy = MixedPrecisionPolicy(half, torch.float32, cast_forward_inputs=part is model)
        fully_shard(part, mesh=mesh, mp_policy=policy)
        part.float()  # of its own share, before the next block is read
        part.set_gradient_divide_factor(1.0)  # type: ignore[attr-defined]  # sums: update() divides by the weights
        part.set_force_sum_reduction_for_comms(True)  # type: ignore[attr-defined]  # gloo knows no other
    for name in (*methods, "extra_repr"):
        register_fsdp_forward_method(model, name)
    model.extra_repr()  # FSDP takes what is called first for the outermost module: this does nothing else
    model.reshard()  # type: ignore[operator]
    return model


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside, every rank holds all weights of a sharded ``model``, so that anything of it may be called (to generate,
    say), by all ranks or by one. Weights are not changed inside. Others stay as they are."""
    if world() == 1:
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    parts = [part for part in model.modules() if isinstance(part, FSDPModule)]
    try:
        for part in parts:
            part.unshard()
            if part is not model:  # the outermost keeps its weights after a forward pass anyhow
                part.set_reshard_after_forward(False, recurse=False)
        yield
    finally:
        for part in parts:
            part.reshard()
            if part is not model:
                part.set_reshard_after_forward(True, recurse=False)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _blocks(child)


def gather(value: Any) -> list[Any]:
    """The ``value`` of every rank, in order of rank."""
    if world() == 1:
        return [value]
    values = [None] * world()
    td.all_gather_object(values, value)
    return values


def sum_gradients(params: Iterable[nn.Parameter]) -> None:
    """Add up over all ranks the gradients of whole parameters (those of sharded ones are already added up)."""
    if world() == 1:
        return
    plain = [p for p in params if not isinstance(p, DTensor)]
    used = [any(flags) for flags in zip(*gather([p.grad is not None for p in plain]), strict=True)]
    grads = []
    for p, some in zip(plain, used, strict=True):
        if some:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            grads.append(p.grad)
    while grads:
        count, bucket = 0, []
        while (
            grads
            and (not bucket or count + grads[0].numel() <= BUCKET)
            and (not bucket or grads[0].dtype == bucket[0].dtype)
        ):
            bucket.append(grads.pop(0))
            count += bucket[-1].numel()
        flat = torch.cat([grad.flatten() for grad in bucket])
        td.all_reduce(flat)
        for grad, summed in zip(bucket, flat.split([grad.numel() for grad in bucket]), strict=True):
            grad.copy_(summed.view_as(grad))


def clip_gradients(params: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale the gradients down to the length ``limit`` if they are longer; returns the length they had."""
    with_grad = [p for p in params if p.grad is not None]
    kinds = [[p for p in with_grad if isinstance(p, DTensor) is sharded] for sharded in (False, True)]
    norms = [
        whole(torch.nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds if kind
    ]
    norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm() if norms else torch.zeros(())
    if limit != float("inf"):
        for kind in filter(None, kinds):
            torch.nn.utils.clip_grads_with_norm_(kind, limit, norm)
    return norm


@contextmanager
def peers() -> Iterator[None]:
    """Say what a lost connection means.

    Raises:
        ConnectionError: another process died or did not answer in time.
    """
    try:
        yield
    except RuntimeError as error:
        signs = ("gloo", "NCCL", "Connection closed", "Connection reset", "Timed out", "timeout")
        if world() > 1 and (isinstance(error, td.DistError) or any(sign in str(error) for sign in signs)):
            raise ConnectionError(
                f"rank {rank()} of {world()} lost the others: one of them died or did not answer in time; "
                f"see its own message, then start the same torchrun command again with --resume RUNFOLDER"
            ) from error
        raise


@contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """A function that tells which SIGTERM or SIGINT came to any rank (0: none), which every rank must ask at once.

    A second SIGINT is Python's own again and ends the process.
    """
    came: list[int] = []

    def first() -> int:
        return max(gather(came[0] if came else 0))

    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield first
        return

    def note(number: int, frame: Any) -> None:
        if came and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        came.append(number)
        os.write(2, b"\nfinishing this step, then saving; Ctrl-C again stops at once\n")

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield first
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
