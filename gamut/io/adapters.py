"""LoRA adapters on disk, in peft's layout: adapter_config.json and adapter_model.safetensors, under official names.

In memory an adapter is two dicts: tensors ("blocks.0.attn.q.lora_A" and "...lora_B") and alphas ("blocks.0.attn.q").
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from torch import Tensor

from gamut.io.files import atomic_dir
from gamut.io.folders import json_object, read_tensors, write_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
ONLY = {  # fields of which one value is built
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "fan_in_fan_out": False,
    "lora_bias": False,
    "modules_to_save": None,
    "target_parameters": None,
    "layer_replication": None,
    "trainable_token_indices": None,
}


def write_adapter(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    alphas: Mapping[str, float],
    keys: ModuleType,
    config: Mapping,
    *,
    base: str = "",
) -> Path:
    """A folder that peft loads onto the official model.

    Args:
        keys: the model's table of names, a module of io/keys; ``config``: our configuration as a dict.
        base: where the base model is, for tools that load both.
    """
    official = {}
    for name in alphas:
        (found,) = keys.to_official({f"{name}.weight": tensors[f"{name}.lora_A"]}, config)
        official[name] = found.removesuffix(".weight")
    ranks = {name: tensors[f"{name}.lora_A"].shape[0] for name in alphas}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or None,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {official[n]: r for n, r in ranks.items() if r != rank},
        "alpha_pattern": {official[n]: a for n, a in alphas.items() if a != alpha},
        "target_modules": list(official.values()),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    renamed = {f"{PREFIX}{official[n]}.{k}.weight": tensors[f"{n}.{k}"] for n in alphas for k in ("lora_A", "lora_B")}
    with atomic_dir(path) as part:
        write_tensors(part / WEIGHTS, renamed)
        (part / CONFIG).write_text(json.dumps(settings, indent=2) + "\n")
    return Path(path)


def read_adapter(path: str | Path, keys: ModuleType, config: Mapping) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Tensors and alphas of an adapter folder, ours or peft's, under our names.

    Raises:
        ValueError: no adapter there, damaged files, half a pair, or a kind of adapter other than plain LoRA.
    """
    path = Path(path)
    settings, tensors, alphas = _settings(path), {}, {}
    for key, tensor in read_tensors(path / WEIGHTS).items():
        match = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.(lora_[AB])(?:\.default)?\.weight", key)
        if match is None:
            raise ValueError(f"'{path / WEIGHTS}' holds {key!r}; allowed: {PREFIX}NAME.lora_A.weight and lora_B")
        official, part = match.groups()
        (ours,) = keys.to_ours({f"{official}.weight": tensor}, {**config, "tied": False})
        name = ours.removesuffix(".weight")
        tensors[f"{name}.{part}"] = tensor
        alpha = float(_by_pattern(settings.get("alpha_pattern"), official, settings["lora_alpha"]))
        if tensor.ndim != 2:
            raise ValueError(f"{key!r} in '{path / WEIGHTS}' must have two axes, got shape {tuple(tensor.shape)}")
        rank = tensor.shape[part == "lora_B"]
        alphas[name] = alpha * math.sqrt(rank) if settings.get("use_rslora") else alpha  # alpha / sqrt(rank) there
    if halves := [name for name in alphas if not {f"{name}.lora_A", f"{name}.lora_B"} <= tensors.keys()]:
        raise ValueError(f"'{path / WEIGHTS}' has only one of lora_A, lora_B for {', '.join(halves[:8])}")
    if not alphas:
        raise ValueError(f"'{path / WEIGHTS}' holds no adapter; give the folder that peft or gamut wrote one to")
    return tensors, alphas


def _settings(path: Path) -> dict:
    file = path / CONFIG
    if not file.is_file():
        raise ValueError(f"'{path}' has no {CONFIG}; give the folder that peft or gamut wrote the adapter to")
    settings = json_object(file, "save the adapter again")
    for name, allowed in ONLY.items():
        if settings.get(name, allowed) not in (allowed, None, [], {}):
            raise ValueError(f"{name}={settings[name]!r} in '{file}' is not built; allowed: {allowed!r}")
    patterns = settings.get("alpha_pattern") or {}
    alphas = {"lora_alpha": settings.get("lora_alpha")} | (patterns if isinstance(patterns, dict) else {"": patterns})
    for name, alpha in alphas.items():
        if not isinstance(alpha, int | float):
            field = "lora_alpha" if name == "lora_alpha" else f"alpha_pattern {name!r}"
            raise ValueError(f"{field} in '{file}' must be a number, got {alpha!r}; save the adapter again")
    return settings


def check_adapter(
    weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], alphas: Mapping[str, float]
) -> None:
    """Raises ValueError where an adapter is for layers that are not there, or for layers of other shapes."""
    if lost := [name for name in alphas if f"{name}.weight" not in weights]:
        raise ValueError(f"the adapter is for layers this checkpoint does not have: {', '.join(lost[:8])}")
    wrong = []
    for name in alphas:
        a, b, weight = (tuple(one.shape) for one in
                        (tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"], weights[f"{name}.weight"]))  # fmt: skip
        if (b[0], a[1]) != weight or a[0] != b[1] or not a[0]:
            wrong.append(f"{name} has A {a} and B {b} for a weight of {weight}")
    if wrong:
        more = f" ... and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ValueError(f"the adapter does not fit this checkpoint: {'; '.join(wrong[:8])}{more}; give the model it "
                         f"was trained on")  # fmt: skip


def merge_adapter(
    weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], alphas: Mapping[str, float]
) -> dict[str, Tensor]:
    """Weights with the adapter added, each sum taken in fp32 and rounded to the weight's dtype.

    Raises:
        ValueError: as ``check_adapter``.
    """
    check_adapter(weights, tensors, alphas)
    merged = dict(weights)
    for name, alpha in alphas.items():
        a, b, weight = tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"], weights[f"{name}.weight"]
        delta = (b.float() @ a.float()) * (alpha / len(a))
        merged[f"{name}.weight"] = (weight.float() + delta).to(weight.dtype)
    return merged


def _by_pattern(patterns: Mapping | None, name: str, default):
    """peft's rule: a key matches the end of the name, at a dot."""
    found = (value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", name))
    return next(found, default)
