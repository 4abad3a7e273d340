"""What a run made, as it is kept in weights/: every checkpoint of a folder with its weights in half precision.

    python -m dev.ship runs/step_audio_2/model weights/step_audio_2
    python -m dev.ship --measure weights/step_audio_2    # its recipe's examination again, into metrics.json and card

Loading turns them into float32 again; what rounding costs is measured by evaluating the shipped folder.
"""

import json
import re
import sys
from pathlib import Path

import torch

from gamut import api
from gamut.evals.claims import facts
from gamut.evals.talk_report import MEASURED
from gamut.io.files import atomic_dir, atomic_write
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


def measured(folder: Path) -> dict[str, float]:
    """The scores of a shipped folder, measured now and kept in it: metrics.json, and the table of its card if any."""
    metrics = api.module(api.maker(folder)).evaluate(folder).metrics
    atomic_write(folder / MEASURED, json.dumps(metrics, indent=1))
    card = (folder / "README.md").read_text()
    atomic_write(folder / "README.md", re.sub(r"(^\|.*\n)+", facts(metrics), card, count=1, flags=re.MULTILINE))
    return metrics


if __name__ == "__main__" and sys.argv[1] == "--measure":
    print("\n".join(f"{name} {value:.4g}" for name, value in measured(Path(sys.argv[2])).items()))
elif __name__ == "__main__":
    print(f"{ship(Path(sys.argv[1]), Path(sys.argv[2])) / 1e6:.1f} MB in {sys.argv[2]}")
