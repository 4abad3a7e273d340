"""A model after fine-tuning, as a folder like the one it began from: same dtype, same codec, tokenizer and voices."""

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

import gamut
from gamut.io.folders import INDEX, WEIGHTS, Content, iterate_tensors, load_config, save_folder, tensor_files

TAUGHT = "taught.json"  # requests of a small model, each with how it answers (generate/speaker.py)
OWN = ("config.json", "README.md", WEIGHTS, INDEX, "metrics.json")
FOREIGN = (".safetensors", ".bin", ".pt", ".pth", ".py")


def save_tuned(
    path: str | Path, kind: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor], init: Path,
    taught: Mapping[str, Any], card: str,
) -> Path:
    """Write a checkpoint folder of ours; ``gamut export`` makes the official layout of it, with all that ``init``'s
    config.json said.

    Args:
        kind: the class. config: its fields. init: the folder that the model began as, ours or released.
        taught: added to what ``init`` was taught, where that is listed.
    """
    stored = load_config(init)
    official = stored.get("official", {}) if "gamut" in stored else stored
    wrapped = {"gamut": gamut.__version__, "class": kind, "config": config}
    dtype = next(iterate_tensors(tensor_files(init)))[1].dtype
    cast = {name: tensor.to("cpu", dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    files = _carried(init)
    if (init / TAUGHT).is_file():
        known = json.loads((init / TAUGHT).read_text())
        files[TAUGHT] = json.dumps(known | dict(taught), ensure_ascii=False, indent=1)
    return save_folder(path, cast, wrapped | ({"official": official} if official else {}), card=card, files=files)


def _carried(init: Path) -> dict[str, Content]:
    """Everything but the weights and what describes them."""
    files: dict[str, Content] = {}
    for child in sorted(init.iterdir()):
        if child.is_dir():
            files[child.name] = partial(shutil.copytree, child)
        elif child.name not in OWN and child.suffix not in FOREIGN:
            files[child.name] = child
    return files
