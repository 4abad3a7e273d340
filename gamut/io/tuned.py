"""A model after fine-tuning, as a folder like the one it began from: same dtype, same codec, tokenizer and voices."""

from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from torch import Tensor

import gamut
from gamut.io.convert import CARRIED, code_files, copied
from gamut.io.folders import (
    CODEC,
    KEPT_BACK,
    MENU,
    VOICES,
    Content,
    iterate_tensors,
    load_config,
    save_folder,
    tensor_files,
)

BESIDE = (*CARRIED, MENU, KEPT_BACK, "LICENSE*", "LICENCE*", "NOTICE*")  # what a model is read with


def save_tuned(
    path: str | Path, kind: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor], init: Path,
    files: Mapping[str, Content], card: str,
) -> Path:
    """Write a checkpoint folder of ours; ``gamut export`` makes the official layout of it, with all that ``init``'s
    config.json said.

    Args:
        kind: the class. config: its fields. init: the folder that the model began as, ours or released.
        files: what was learned beside the weights; the rest is carried over from ``init``.
    """
    stored = load_config(init)
    official = stored.get("official", {}) if "gamut" in stored else stored
    wrapped = {"gamut": gamut.__version__, "class": kind, "config": config}
    dtype = next(iterate_tensors(tensor_files(init)))[1].dtype
    cast = {name: tensor.to("cpu", dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    files = _carried(init, official) | dict(files)
    return save_folder(path, cast, wrapped | ({"official": official} if official else {}), card=card, files=files)


def _carried(init: Path, official: Mapping[str, Any]) -> dict[str, Content]:
    """What goes with any weights: a downloaded folder holds much else (its history, other formats of the same)."""
    files = {name: copied(init / name) for name in (CODEC, VOICES) if (init / name).is_dir()}
    wanted = (*BESIDE, *code_files(official))
    kept = [file for file in sorted(init.iterdir()) if any(fnmatch(file.name, name) for name in wanted)]
    return files | {file.name: file for file in kept if file.is_file()}
