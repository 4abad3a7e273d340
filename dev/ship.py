"""What a run made, as it is kept in weights/: every checkpoint of a folder with its weights in half precision.

    python -m dev.ship runs/step_audio_2/model weights/step_audio_2

Loading turns them into float32 again; what rounding costs is measured by evaluating the shipped folder.
"""

import sys
from pathlib import Path

import torch

from gamut.io.files import atomic_dir
from gamut.io.folders import read_tensors, write_tensors


def ship(src: Path, dst: Path) -> int:
    """Copy ``src`` to ``dst``, floats as float16; returns the bytes written.

    Raises:
        ValueError: no checkpoint in ``src``, or a weight that float16 cannot hold.
    """
    files = sorted(file for file in src.rglob("*") if file.is_file())
    if not any(file.match("model*.safetensors") for file in files):
        raise ValueError(f"'{src}' holds no model.safetensors; give the folder of a run that a checkpoint lies in")
    with atomic_dir(dst) as part:
        for file in files:
            target = part / file.relative_to(src)
            target.parent.mkdir(parents=True, exist_ok=True)
            if file.match("model*.safetensors"):
                write_tensors(target, {name: _half(name, tensor) for name, tensor in read_tensors(file).items()})
            else:
                target.write_bytes(file.read_bytes())
    return sum(file.stat().st_size for file in dst.rglob("*") if file.is_file())


def _half(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    if not (half := tensor.half()).isfinite().all():
        raise ValueError(f"{name} has values that float16 cannot hold (largest {float(tensor.abs().max()):.3g})")
    return half


if __name__ == "__main__":
    print(f"{ship(Path(sys.argv[1]), Path(sys.argv[2])) / 1e6:.1f} MB in {sys.argv[2]}")
