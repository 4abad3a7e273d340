"""Shapes in signatures are executed here: a wrong one fails at the call and names the argument."""

import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two OpenMP threads on two busy cores spin at barriers

import hypothesis
import jaxtyping
import pytest
import torch

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would ours
CHECKED = ("nn", "losses", "io", "codecs", "models", "data", "generate", "train", "evals", "recipes", "api", "cli")
jaxtyping.install_import_hook([f"gamut.{name}" for name in CHECKED], "checker.checked")  # numba compiles plan/ itself
torch.set_num_threads(1)
hypothesis.settings.register_profile("gamut", deadline=None)  # wall-clock limits fail on a busy machine
hypothesis.settings.load_profile("gamut")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def golden() -> Path:
    """Folder of the committed fixtures."""
    return ROOT / "tests" / "golden"
