"""A checkpoint is a folder: config.json, model.safetensors (or shards and their index), README.md, tokenizer files.

Tensors are read memory-mapped: a folder opens at once, and pages are read when they are used.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import gamut
from gamut.io.files import atomic_dir

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CODEC, VOICES = "token2wav", "voices"  # folders beside the weights of a model that speaks
TAUGHT, MENU = "taught.json", "menu.json"  # requests a small one knows, each with how it answers; orders it takes
KEPT_BACK = "kept_back.json"  # the fold of orders and the person that a small one did not learn from
WRITTEN = "written.json"  # requests that a large one was tuned to answer in writing
SHARD_BYTES = 4 << 30
MAPPED_BYTES = 16 << 20  # read from one mapping before it is renewed
FOREIGN = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.onnx")
SHOWN = 8  # names per kind in an error
Content = str | bytes | Path | Callable[[Path], object]


def save_folder(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    config: Mapping,
    *,
    card: str = "",
    files: Mapping[str, Content] | None = None,
    shard_bytes: int = SHARD_BYTES,
    check: Callable[[Path], object] | None = None,
) -> Path:
    """Write a checkpoint folder as a whole: on any error an older folder of that name stays as it was.

    Args:
        tensors: by name; those that share memory (tied weights) are written once each.
        config: becomes config.json.
        card: text of README.md; empty writes none.
        files: further files by name: text, bytes, the path of a file to copy (tokenizer files), or what writes a folder
            when it is called with its path (a codec's).
        shard_bytes: tensors are split into shards of at most this many bytes (one tensor may exceed it).
        check: called with the written folder before it takes its name; whatever it raises leaves nothing behind.
    Raises:
        OSError: the file system refused (full, read-only); the message names the folder.
    """
    path = Path(path)
    shards = _shards(tensors, shard_bytes)
    try:
        with atomic_dir(path) as part:
            for name, names in shards.items():
                write_tensors(part / name, {key: tensors[key] for key in names})
            if list(shards) != [WEIGHTS]:
                total = sum(t.nbytes for t in tensors.values())
                where = {key: name for name, names in shards.items() for key in names}
                (part / INDEX).write_text(
                    json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=1)
                )
            (part / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
            if card:
                (part / "README.md").write_text(card)
            for name, content in (files or {}).items():
                if callable(content):
                    content(part / name)
                elif isinstance(content, Path):
                    shutil.copyfile(content, part / name)
                else:
                    (part / name).write_bytes(content.encode() if isinstance(content, str) else content)
            if check:
                check(part)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(
            error.errno or 0,
            f"could not save checkpoint '{path}': {reason}; what was there before is untouched. "
            f"Free some space or choose another folder, then save again",
        ) from error
    return path


def _shards(tensors: Mapping[str, Tensor], shard_bytes: int) -> dict[str, list[str]]:
    groups, size = [[]], 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.nbytes > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.nbytes
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": names for i, names in enumerate(groups, 1)}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> None:
    """One safetensors file; tensors that share memory are written once each, ``notes`` go into its header. Raises
    OSError when the disk refuses."""
    seen, ready = set(), {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        ready[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    try:
        save_file(ready, path, metadata={"format": "pt", **(notes or {})})
    except SafetensorError as error:  # the writer wraps the system's error in its own
        code = re.search(r"os error (\d+)", str(error))
        raise (OSError(int(code[1]), os.strerror(int(code[1]))) if code else OSError(str(error))) from error


def load_config(path: str | Path) -> dict:
    """config.json of a checkpoint folder.

    Raises:
        ValueError: no such folder, no config.json in it, or not JSON.
    """
    path = Path(path)
    file = path / "config.json"
    if not path.is_dir():
        raise ValueError(f"checkpoint folder '{path}' not found; give the path of a folder with config.json in it")
    if not file.is_file():
        raise ValueError(f"checkpoint '{path}' has no config.json, got {_listing(path)}; {_convert_hint(path)}")
    return json_object(file, "restore it or download the checkpoint again")


def json_object(file: Path, again: str) -> dict:
    """What a JSON file holds. Raises ValueError, with what to do ``again``, where that is no object."""
    try:
        content = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{file}' is not JSON ({error}); {again}") from error
    if not isinstance(content, dict):
        raise ValueError(f"'{file}' must hold a JSON object, got {type(content).__name__}")
    return content


def tensor_files(path: str | Path) -> list[Path]:
    """The safetensors files of a checkpoint folder: one, or the shards its index names.

    Raises:
        ValueError: none there, a shard is missing, or the folder holds a foreign format.
    """
    path = Path(path)
    if (path / INDEX).is_file():
        names = sorted(set(_index(path).values()))
        if missing := [name for name in names if not (path / name).is_file()]:
            raise ValueError(
                f"checkpoint '{path}': {len(missing)} of {len(names)} shards missing: {_some(missing)}; "
                f"copy them beside {INDEX}"
            )
        return [path / name for name in names]
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    raise ValueError(f"checkpoint '{path}' has no {WEIGHTS}, got {_listing(path)}; {_convert_hint(path)}")


def _index(path: Path) -> dict[str, str]:
    try:
        names = json.loads((path / INDEX).read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"'{path / INDEX}' is not a shard index ({error!r}); download it again") from error
    if outside := [name for name in names.values() if Path(name).name != name]:
        raise ValueError(f"'{path / INDEX}' names shards outside its folder: {_some(outside)}")
    return names


def read_tensors(file: str | Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """All tensors of one safetensors file, memory-mapped; floats are cast when ``dtype`` is given.

    Raises:
        ValueError: truncated, damaged, or another format; the message names the file and its size.
    """
    return dict(iterate_tensors([file], dtype))


def read_notes(file: str | Path) -> dict[str, str]:
    """The notes in a safetensors file's header. Raises ValueError as `read_tensors`."""
    return _open(Path(file)).metadata() or {}


def iterate_tensors(files: Sequence[str | Path], dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every file in turn; pages of tensors that the caller drops are given back as it goes."""
    for file in map(Path, files):
        handle, mapped = _open(file), 0
        for name in list(handle.keys()):
            if mapped > MAPPED_BYTES:
                handle, mapped = _open(file), 0
            tensor = handle.get_tensor(name)
            mapped += tensor.nbytes
            yield name, tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor


def _open(file: Path):
    try:
        return safe_open(file, "pt")
    except FileNotFoundError:
        raise ValueError(f"'{file}' not found; give the path of a safetensors file") from None
    except (SafetensorError, OSError) as error:
        size = os.path.getsize(file)
        hint = _convert_hint(file.parent) if file.suffix != ".safetensors" else "download or save it again"
        raise ValueError(
            f"'{file}' is truncated or not a safetensors file: got {size:,} bytes{_promised(file)} ({error}); {hint}"
        ) from error


def _promised(file: Path) -> str:
    """What the header says of the length, where the header itself is whole."""
    with open(file, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        try:
            header = json.loads(handle.read(length)) if length < 1 << 27 else {}
            end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError):
            return ""
    return f", its header promises {8 + length + end:,}"


def load_tensors(path: str | Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder by name, memory-mapped; floats are cast when ``dtype`` is given.

    Raises:
        ValueError: a missing, truncated or incomplete shard (by name), or a folder without safetensors.
    """
    path = Path(path)
    tensors = dict(iterate_tensors(tensor_files(path), dtype))
    if (path / INDEX).is_file() and (lost := {k: v for k, v in _index(path).items() if k not in tensors}):
        shards = sorted(set(lost.values()))
        raise ValueError(f"checkpoint '{path}': {_some(list(lost))} not in {_some(shards)}, where {INDEX} puts them")
    return tensors


def finite(tensors: dict[str, Tensor], where: str | Path) -> dict[str, Tensor]:
    """The tensors themselves. Raises ValueError where one of them holds nan or infinity: a damaged download."""
    if bad := [name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]:
        raise ValueError(f"'{where}' holds nan or infinite weights in {_some(bad)}; download or save it again")
    return tensors


def check_loads(part: Path, src: Path, kind: str = "model") -> None:
    """What was made of ``src``, as every use of it will load it. Raises ValueError if it does not: names, shapes."""
    try:
        gamut.load(part, dtype=None)
    except (ValueError, TypeError) as error:
        reason = str(error).replace(f"checkpoint '{part}'", "what it holds")
        raise ValueError(f"'{src}' is no whole {kind}: {reason}. Nothing was written") from error


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """Put ``tensors`` into ``module``, whose state dict must have exactly these names and shapes.

    A module on the meta device takes the tensors themselves (no second copy, their dtype); any other is copied into.

    Raises:
        ValueError: every missing, unexpected, mis-shaped or wrongly typed name (eight of each), and ``where``.
    """
    wanted = module.state_dict()
    both = [name for name in wanted if name in tensors]
    shapes = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in both
        if tensors[name].shape != wanted[name].shape
    ]
    types = [
        f"{name} {_dtype(tensors[name])} instead of {_dtype(wanted[name])}"
        for name in both
        if tensors[name].dtype != wanted[name].dtype
        and not (tensors[name].is_floating_point() and wanted[name].is_floating_point())
    ]
    problems = {
        "missing": [name for name in wanted if name not in tensors],
        "unexpected": [name for name in tensors if name not in wanted],
        "mis-shaped": shapes,
        "wrong dtype": types,
    }
    if any(problems.values()):
        text = "; ".join(f"{len(names)} {kind}: {_some(names)}" for kind, names in problems.items() if names)
        raise ValueError(
            f"checkpoint '{where}' does not fit {type(module).__name__}: {text}. "
            f"Check that its config.json describes these weights"
        )
    module.load_state_dict(dict(tensors), assign=any(t.is_meta for t in wanted.values()))


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _some(names: list[str]) -> str:
    more = f" ... and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _listing(path: Path) -> str:
    if not path.is_dir():
        return "no such folder"
    return _some(sorted(file.name for file in path.iterdir())) or "an empty folder"


def _convert_hint(path: Path) -> str:
    if path.is_dir() and any(match for pattern in FOREIGN for match in path.glob(pattern)):
        return f"use: gamut convert {path} NEW_FOLDER"
    return "give a folder written by gamut, or convert one with: gamut convert SRC DST"
