"""A GPU that is none: every tensor lies on the CPU, some say that they are on cuda:0, and what a GPU would refuse is
refused. Unlike torch's FakeTensorMode it computes, so code that looks at values (generation, CTC, masks) runs whole.

    with gpu():
        model.to("cuda")(batch.to("cuda"))          # fine
        model.to("cuda")(batch)                     # RefusedError: aten.addmm: cuda:0 beside cpu

What it knows: two devices in one operation (with CUDA's exceptions: numbers without axes, indices on the CPU, copies),
a CPU generator for a tensor on the GPU, .numpy() there, products of whole numbers, transforms of half precision,
kernels of oneDNN, CTC's targets. `torch.autocast("cuda")` is the CPU's, whose lists differ. What it cannot know: what
kernels compute, speed, memory, streams, NCCL; nor what Python inside of `Tensor.backward` asks for as `.device`.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # torch imports it when it first meets a mode: not under ours
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
COPIES = {"copy_", "_to_copy", "_foreach_copy_", "set_", "lift_fresh", "detach", "alias", "_local_scalar_dense"}
INDEXED = {"index", "index_put_", "index_put", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
JOINED = {"cat", "stack", "index_select", "gather", "embedding", "index_copy", "index_copy_", "bucketize"}
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "vdot", "convolution", "_convolution"}
LENGTHS = {"_ctc_loss": 2, "_ctc_loss_backward": 3}  # so many arguments must agree, the lengths behind them need not
LEAVES = {torch.Tensor.numpy, torch.Tensor.__array__}
FRESH = {torch.from_numpy, torch.frombuffer}


class RefusedError(RuntimeError):
    """What a GPU would not do."""


class Places:
    """Which storages pretend. A weak reference is held, so that no other storage gets the same address."""

    def __init__(self):
        self.known: dict[int, StorageWeakRef] = {}
        self.inside: list[torch.device] = []  # of operations: what C++ makes in them, it makes where a storage says

    def of(self, t: torch.Tensor) -> torch.device:
        if (real := _real(t)).type != "cpu" or type(t).__name__ == "DTensor" or t.layout is torch._mkldnn:
            return real
        return CUDA if t.untyped_storage()._cdata in self.known else CPU

    def put(self, t: torch.Tensor, device: torch.device) -> torch.Tensor:
        if _real(t).type == "cpu" and t.layout is not torch._mkldnn:
            storage = t.untyped_storage()
            if device.type == "cuda":
                self.known[storage._cdata] = StorageWeakRef(storage)
            else:
                self.known.pop(storage._cdata, None)
        if len(self.known) > 20000:
            self.known = {key: value for key, value in self.known.items() if not value.expired()}
        return t


def _real(t: torch.Tensor) -> torch.device:
    with torch._C.DisableTorchFunction():
        return t.device


PLACES = Places()


def tensors(tree: Any) -> list[torch.Tensor]:
    return [t for t in tree_flatten(tree)[0] if isinstance(t, torch.Tensor)]


class Kernels(TorchDispatchMode):
    """What a kernel would refuse; and where its result lies. Active in the backward pass, too."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), func.overloadpacket.__name__
        wanted = kwargs.get("device")
        if wanted is not None and torch.device(wanted).type == "cuda":
            kwargs["device"] = CPU
        if "pin_memory" in kwargs:
            kwargs["pin_memory"] = None
        given = tensors((args, kwargs))
        place = self.place(func, name, args, given)
        if PLACES.inside and (not given or name.startswith("new_")):
            place = PLACES.inside[-1]
        elif name == "_to_copy":  # Python's moves do not come here: this one changes the type
            place = PLACES.of(given[0])
        elif wanted is not None:
            place = CUDA if torch.device(wanted).type == "cuda" else torch.device(wanted)
        if kwargs.get("generator") is not None and place == CUDA:  # every generator here is the CPU's
            raise RefusedError(f"{func}: a generator of the CPU draws nothing for {place}")
        out = func(*args, **kwargs)
        if name not in ("_local_scalar_dense", "copy_", "_foreach_copy_", "set_") and place.type != "meta":
            for t in tensors(out):
                PLACES.put(t, place)
        return out

    def place(self, func, name, args, given) -> torch.device:
        places = {PLACES.of(t) for t in given}
        if len(places) <= 1:
            place = next(iter(places), CPU)
        elif name in COPIES or name.startswith("_foreach"):
            place = PLACES.of(given[0]) if name == "_to_copy" else CUDA if CUDA in places else next(iter(places))
        else:
            place = self.mixed(func, name, args, given)
        if place == CUDA:
            self.possible(func, name, given)
        return place

    def mixed(self, func, name, args, given) -> torch.device:
        alike = [t for t in given if t.dim()]
        if name in INDEXED and PLACES.of(args[0]) == CUDA:  # indices may lie elsewhere, values not
            alike = [t for t in args[2:] if isinstance(t, torch.Tensor) and t.dim()]
        elif name in LENGTHS:
            alike = [t for t in args[: LENGTHS[name]] if isinstance(t, torch.Tensor)]
        elif name in JOINED:
            alike = given
        if all(PLACES.of(t) == CUDA for t in alike):
            return CUDA
        raise RefusedError(f"{func}: " + ", ".join(f"{PLACES.of(t)} {t.dtype} {tuple(t.shape)}" for t in given))

    def possible(self, func, name, given) -> None:
        kinds = {t.dtype for t in given}
        if func.namespace in ("mkldnn", "quantized"):
            raise RefusedError(f"{func} is the CPU's")
        if name in PRODUCTS and any(not kind.is_floating_point and not kind.is_complex for kind in kinds):
            raise RefusedError(f"{func}: no product of {kinds} on a GPU")
        if name.startswith("_fft") and kinds & {torch.bfloat16, torch.float16}:
            raise RefusedError(f"{func}: no transform of {kinds}")


class Python(TorchFunctionMode):
    """Devices as Python sees them."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        owner = getattr(func, "__self__", None)
        if owner is torch.Tensor.device:
            return PLACES.of(args[0])
        if owner is torch.Tensor.is_cuda:
            return PLACES.of(args[0]) == CUDA
        if func in LEAVES and PLACES.of(args[0]) == CUDA:
            raise RefusedError("can't convert cuda:0 device type tensor to numpy")
        if func in FRESH:
            return PLACES.put(func(*args, **kwargs), CPU)
        if func is torch.Tensor.__deepcopy__:
            return PLACES.put(func(*args, **kwargs), PLACES.of(args[0]))
        if func in (torch.Tensor.cpu, torch.Tensor.cuda):
            return _moved(args[0], CPU if func is torch.Tensor.cpu else CUDA, None)
        if func is torch.Tensor.to:
            return _to(*args, **kwargs)
        if func in (torch.tensor, torch.as_tensor):
            return self.made(func, args, kwargs)
        if kwargs.get("device") is not None or CUDA not in {PLACES.of(t) for t in tensors((args, kwargs))}:
            return func(*args, **kwargs)
        PLACES.inside.append(CUDA)
        try:
            return func(*args, **kwargs)
        finally:
            PLACES.inside.pop()

    def made(self, func, args, kwargs):
        given, wanted = args[0] if args else kwargs.get("data"), kwargs.pop("device", None)
        out = func(*args, **kwargs)
        if wanted is None:
            return PLACES.put(out, PLACES.of(given) if isinstance(given, torch.Tensor) else CPU)
        if (place := torch.device(wanted)).type == "meta":
            return out.to("meta")
        return PLACES.put(out.clone() if func is torch.as_tensor and place.type == "cuda" else out, place)


def _to(x, *args, **kwargs):
    place, dtype = kwargs.get("device"), kwargs.get("dtype")
    for one in args:
        if isinstance(one, torch.dtype):
            dtype = one
        elif isinstance(one, torch.Tensor):
            place, dtype = PLACES.of(one), one.dtype
        elif isinstance(one, str | torch.device):
            place = one
    place = PLACES.of(x) if place is None else torch.device(place)
    if "meta" in (place.type, PLACES.of(x).type):
        with torch._C.DisableTorchFunction():
            return x.to(place, dtype or x.dtype)
    return _moved(x, place, dtype, kwargs.get("copy", False))


def _moved(x, place, dtype, copy=False):
    place = CUDA if place.type == "cuda" else place
    if PLACES.of(x) == place:
        with torch._C.DisableTorchFunction():
            return x.to(dtype=dtype or x.dtype, copy=copy)
    return _Move.apply(x, place, dtype) if x.requires_grad and torch.is_grad_enabled() else _copied(x, place, dtype)


def _copied(x, place, dtype):
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        made = x.clone() if dtype in (None, x.dtype) else x.to(dtype=dtype)
    return PLACES.put(made, place)


class _Move(torch.autograd.Function):
    """To the other device, gradients back."""

    @staticmethod
    def forward(ctx, x, place, dtype):
        ctx.back = PLACES.of(x), x.dtype
        return _copied(x, place, dtype)

    @staticmethod
    def backward(ctx, grad):
        return _copied(grad, *ctx.back), None, None


class _Autocast(torch.autocast):
    def __init__(self, device_type, *args, **kwargs):
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


@contextlib.contextmanager
def gpu() -> Iterator[None]:
    """Inside there is one GPU, which has bfloat16."""
    cuda = {
        "is_available": lambda: True, "is_initialized": lambda: True, "device_count": lambda: 1,
        "is_bf16_supported": lambda including_emulation=True: True, "current_device": lambda: 0,
        "set_device": lambda device: None, "manual_seed_all": lambda seed: None, "manual_seed": lambda seed: None,
        "get_device_name": lambda device=0: "none", "get_rng_state_all": list, "set_rng_state_all": lambda states: None,
        "synchronize": lambda device=None: None, "get_rng_state": lambda device=0: torch.get_rng_state(),
        "set_rng_state": lambda state, device=0: None,
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        for name, value in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch, "autocast", _Autocast))
        stack.enter_context(mock.patch("torch.utils.checkpoint._infer_device_type", lambda *a: "cpu"))
        stack.enter_context(Python())
        stack.enter_context(Kernels())
        yield
