"""Any language model here with int8 weights: an 8 B model fits in 10 GB, and is never in memory as floats."""

from collections.abc import Sequence
from pathlib import Path

import torch

from gamut.io.convert import family
from gamut.io.folders import iterate_tensors, load_config, load_strict, load_tensors, tensor_files
from gamut.io.meta import meta
from gamut.models.lm import LM, LMConfig
from gamut.models.omni import Omni, OmniConfig
from gamut.nn.int8 import int8_tensors, use_int8

ROUTERS = ("*.router", "*.shared_gate")  # a few rows that decide which experts run
CLASSES = {"LM": (LM, LMConfig), "Omni": (Omni, OmniConfig)}


def load_int8(path: str | Path, dtype: torch.dtype = torch.bfloat16, *, keep: Sequence[str] = ()) -> LM | Omni:
    """An LM or Omni, from a folder of ours or an official one, with int8 linear layers; one tensor is read at a time.

    Args:
        dtype: of everything else: embeddings, norms, convolutions, activations, and a mixture's experts and router.
        keep: patterns of linear layers that stay in ``dtype``, e.g. "lm.head".
    Raises:
        ValueError: another class or family, damaged files, names or shapes that do not fit.
    """
    stored, files = load_config(path), tensor_files(path)
    if "gamut" in stored:
        kind, config, pairs = stored["class"], stored["config"], iterate_tensors(files)
    else:
        kind, keys = family(stored, path)
        config = keys.config_from_official(stored)
        if config.get("moe"):  # experts are stacked from many tensors
            pairs = iter(keys.to_ours(load_tensors(path), config).items())
        else:
            read = iterate_tensors(files)
            pairs = (pair for name, tensor in read for pair in keys.to_ours({name: tensor}, config).items())
    if kind not in CLASSES:
        raise ValueError(f"'{path}' holds a {kind}; int8 loading is for: {', '.join(CLASSES)}")
    model_class, config_class = CLASSES[kind]
    with meta():
        model = model_class(config_class.from_dict(config))
    use_int8(model, keep=[*ROUTERS, *keep], dtype=dtype)
    load_strict(model, dict(int8_tensors(model, pairs, dtype)), path)
    return model.eval()
