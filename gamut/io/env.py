"""What a bug report and a run folder need to know about the machine. Works with or without torch."""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the checkout, or site-packages for an installed wheel
PACKAGES = ("torch", "numpy", "scipy", "safetensors", "jaxtyping", "tyro", "rich")
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "neon", "asimd", "bf16")
PROBES = {  # an extra is named installed when the package that it stands for is
    "text": "tokenizers", "audio": "soundfile", "report": "tensorboard", "judge": "pocketsphinx",
    "voice": "espeakng-loader", "retrieval": "bm25s", "plan": "ortools", "oracle": "transformers", "test": "pytest",
}  # fmt: skip


def shipped(folder: str) -> Path:
    """A folder as given, or, where only that is there, as it lies in the checkout."""
    there = ROOT / folder
    return there if there.exists() and not Path(folder).exists() else Path(folder)


def model_folder(folder: str | Path) -> Path:
    """The folder of a model: as given, as it lies in the checkout, or inside a run."""
    path = shipped(str(folder))
    return path / "model" if (path / "model" / "config.json").exists() else path


def has_bfloat16() -> bool:
    """Whether there is a GPU that computes in bfloat16 itself (a T4 or V100 only imitates it, slowly)."""
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def version(package: str) -> str:
    """Installed version of a distribution, or ``not installed``."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """Short hash of the checkout that gamut runs from, with ``+changes`` if tracked files differ from it."""
    if not (ROOT / ".git").exists():
        return "not a checkout"
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "git not available"
    if head.returncode:
        return "git not available"
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def _cpu() -> tuple[str, str]:
    """Model name and the instruction sets that decide which kernels run."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), "unknown"
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.M)
    known = set(flags.group(1).split()) if flags else set()
    return name.group(1) if name else platform.machine(), " ".join(flag for flag in CPU_FLAGS if flag in known) or "-"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return "unknown"
    return f"{total / 2**30:.1f} GiB"


def _torch() -> dict[str, str]:
    """Facts that only an imported torch can tell; imports it if it is there."""
    try:
        import torch
    except ImportError as error:
        return {"torch import": str(error).splitlines()[0]}
    found = {"torch threads": str(torch.get_num_threads())}
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    mps = ["Apple MPS"] if torch.backends.mps.is_available() else []
    return found | {"gpu": ", ".join(cuda + mps) or "none"}


def environment() -> dict[str, str]:
    """Name -> value, in reading order: versions, machine, commit, extras, data folders."""
    from gamut import __version__

    cpu, features = _cpu()
    return {
        "gamut": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        **{name: version(name) for name in PACKAGES},
        "cpu": cpu,
        "cpu features": features,
        "cores": str(_cores()),
        "memory": _memory(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
        **_torch(),
        "extras": " ".join(extra for extra, probe in PROBES.items() if version(probe) != "not installed") or "none",
        "GAMUT_DATA": _folder("GAMUT_DATA"),
        "GAMUT_PARITY": _folder("GAMUT_PARITY"),
        "executable": sys.executable,
    }


def _folder(variable: str) -> str:
    path = os.environ.get(variable)
    if not path:
        return "not set"
    if not Path(path).is_dir():
        return f"{path} (no such folder)"
    inside = sorted(child.name for child in Path(path).iterdir() if child.is_dir())
    return f"{path} ({', '.join(inside) or 'no folders'})"
