"""PyTorch's own files (.pt, .pth, .bin, .ckpt) as plain tensors; one that holds code is refused."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

WRAPPERS = ("state_dict", "model", "module")  # what training scripts nest a state dict in


def unpickled(file: Path) -> dict[str, Tensor]:
    """The state dict of a file, memory-mapped.

    Raises:
        ValueError: truncated, another format, or more than tensors in it (loading that could run code).
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0][:200]
        raise ValueError(
            f"'{file}' was refused: it holds more than tensors, and loading it could run code ({reason}). "
            f"Ask for a safetensors version, or save its state dict alone"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        reason = str(error).split("\n")[0][:200]
        raise ValueError(
            f"'{file}' is truncated or no PyTorch file: got {file.stat().st_size:,} bytes ({reason}); "
            f"download it again, or save it with torch >= 1.6"
        ) from error
    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        raise ValueError(f"'{file}' must hold a state dict (names -> tensors), got {type(content).__name__}")
    if others := [str(name) for name, tensor in content.items() if not isinstance(tensor, Tensor)]:
        raise ValueError(f"'{file}' must hold a state dict (names -> tensors), got others: {', '.join(others[:4])}")
    return {str(name): tensor for name, tensor in content.items()}
