"""Foreign checkpoints -> ours, and back: `gamut convert SRC DST`, `gamut export DIR DST --to hf`.

The only place that reads foreign formats. Pickles are read as plain tensors; one that holds code is refused.
Tensors keep their dtype and are only renamed (experts: stacked), so convert and export undo each other byte for byte.
"""

import json
import re
import shutil
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType

from torch import Tensor

import gamut
from gamut.io import paraformer, token2wav
from gamut.io.adapters import check_adapter, merge_adapter, read_adapter, write_adapter
from gamut.io.convert_onnx import convert_onnx
from gamut.io.env import model_folder
from gamut.io.folders import CODEC, INDEX, WEIGHTS, Content, check_loads, finite, load_config, load_tensors, save_folder
from gamut.io.keys import qwen, step1, step_audio_2
from gamut.io.pickles import unpickled

FAMILIES: dict[str, tuple[str, ModuleType]] = {  # model_type of config.json -> our class, its tables of names
    **{name: ("LM", keys) for keys in (qwen, step1) for name in keys.FAMILIES},
    **{name: ("Omni", step_audio_2) for name in step_audio_2.FAMILIES},
}
CARRIED = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json", "generation_config.json",
    "preprocessor_config.json", "LICENSE",
)  # fmt: skip
PICKLES = ("pytorch_model.bin", "pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.bin")


def convert(src: str | Path, dst: str | Path) -> Path:
    """Read an official checkpoint folder and write ours: `Class.from_pretrained(dst)` loads it.

    Args:
        src: a folder with config.json and safetensors, or .bin / .pt files, of one of FAMILIES (a token2wav folder in
            it is converted with it); or a token2wav folder; or Step-Audio-Tokenizer; or one .onnx file of those that
            ``io/convert_onnx.py`` names.
        dst: a folder that does not exist yet.
    Raises:
        ValueError: an unknown family, damaged or unsafe files, names that are missing or do not belong, shapes that are
            not those of config.json, dst exists. Nothing is left then, and the same can be asked again.
    """
    src, dst = Path(src), _fresh(dst)
    if src.suffix == ".onnx":
        return convert_onnx(src, dst)
    if paraformer.looks(src):
        return paraformer.convert(src, dst)
    if token2wav.looks(src) and not (src / "config.json").exists():
        return token2wav.convert(src, dst)
    official = load_config(src)
    if "gamut" in official:
        raise ValueError(f"'{src}' is a gamut checkpoint already; to write another layout: gamut export {src} DST")
    kind, keys = family(official, src)
    config = keys.config_from_official(official)
    tensors = keys.to_ours(finite(_foreign_tensors(src), src), config)
    keys.to_official(tensors, config)  # raises for a name that does not belong, before anything is written
    card = (
        f"# {official.get('_name_or_path') or src.resolve().name}, converted\n\n"
        f"A `{official['model_type']}` checkpoint in gamut's layout: `{kind}.from_pretrained(folder)` loads it, "
        f"`gamut export` writes the official layout back. Weights, licence and training are those of the original.\n"
    )
    wrapped = {"gamut": gamut.__version__, "class": kind, "config": config, "official": official}
    files, voice = _carried(src, official), src / CODEC
    if token2wav.looks(voice):
        files[CODEC] = partial(token2wav.convert, voice)
    check = partial(check_loads, src=src, kind=kind)
    return save_folder(dst, tensors, wrapped, card=card, files=files, check=check)


def export(
    src: str | Path, dst: str | Path, to: str = "hf", *, lora: str | Path | None = None, merge: bool = False
) -> Path:
    """Write one of our checkpoints in the official layout, which transformers and other tools load.

    The code that a released config.json names goes along as it is, and so does a codec in its released form. What of
    that is not in ``src`` is named in a warning and on the card.

    Args:
        src: a folder of ours.
        dst: a folder that does not exist yet.
        to: "hf", the only layout so far.
        lora: an adapter folder (peft's layout). Without ``merge`` it becomes ``dst/adapter``.
        merge: add the adapter to the weights instead.
    Raises:
        ValueError: not a folder of ours, no official family for it, an adapter that is damaged or does not fit, dst
            exists. Nothing is written then.
    """
    src, dst = model_folder(src), _fresh(dst)
    if to != "hf":
        raise ValueError(f"unknown layout {to!r}; allowed: hf")
    if merge and lora is None:
        raise ValueError("merge needs an adapter; give --lora ADAPTER_FOLDER, or drop --merge")
    wrapped = load_config(src)
    if "gamut" not in wrapped:
        raise ValueError(f"'{src}' is not a gamut checkpoint; got config.json of {wrapped.get('model_type')!r}")
    config, keys = wrapped["config"], keys_of(wrapped["class"], wrapped["config"])
    tensors, official = load_tensors(src), _overlaid(wrapped.get("official", {}), keys.config_to_official(config))
    files, lacks = _carried(src, official), _lacking(src, official)
    if token2wav.looks(src / CODEC):
        files[CODEC] = copied(src / CODEC)
    if lora is not None:
        adapter, alphas = read_adapter(lora, keys, config)
        check_adapter(tensors, adapter, alphas)
        if merge:
            tensors = merge_adapter(tensors, adapter, alphas)
        else:
            files["adapter"] = partial(write_adapter, tensors=adapter, alphas=alphas, keys=keys, config=config,
                                       base=str(dst))  # fmt: skip
    card = "\n".join([_card(src), *lacks]).strip() + "\n" if lacks else _card(src)
    save_folder(dst, keys.to_official(tensors, config), official, card=card, files=files)
    if lacks:
        warnings.warn(f"'{dst}' is not whole. {' '.join(lacks)}", stacklevel=2)
    return dst


def family(official: Mapping, src: str | Path) -> tuple[str, ModuleType]:
    """Our class and the table of names for an official config.json; ``src`` is for the message.

    Raises:
        ValueError: a model_type that is not built.
    """
    name = official.get("model_type")
    if name not in FAMILIES:
        raise ValueError(f"model_type in '{src}/config.json' must be one of {', '.join(FAMILIES)}; got {name!r}")
    return FAMILIES[name]


def keys_of(kind: str, config: Mapping) -> ModuleType:
    """The table of names that holds one of our models. Raises ValueError for a class without an official layout."""
    if kind == "LM":
        return step1 if config.get("positions") == "sqrt_alibi" else qwen
    for name, keys in FAMILIES.values():
        if name == kind:
            return keys
    allowed = ", ".join(sorted({name for name, _ in FAMILIES.values()}))
    raise ValueError(f"a {kind} has no official layout; exportable classes: {allowed}")


def _overlaid(old: Mapping, new: Mapping) -> dict:
    """``new`` on top of ``old``, dicts inside dicts too: fields we have no use for come back as they were."""
    inner = {k: _overlaid(old[k], v) for k, v in new.items() if isinstance(v, dict) and isinstance(old.get(k), dict)}
    return {**old, **new, **inner}


def _fresh(dst: str | Path) -> Path:
    dst = Path(dst)
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise ValueError(f"'{dst}' exists already; nothing was written. Choose another folder, or remove that one")
    return dst


def code_files(official: Mapping) -> list[str]:
    """The Python files that auto_map of a config.json names. They are carried as data: gamut runs none of them."""
    named = official.get("auto_map")
    listed = [name for value in (named.values() if isinstance(named, dict) else ())
              for name in (value if isinstance(value, list) else [value])]  # fmt: skip
    found = (re.fullmatch(r"(\w+)\.\w+", name) for name in listed if isinstance(name, str))
    return sorted({f"{match[1]}.py" for match in found if match})


def copied(folder: Path) -> Content:
    """What writes a folder again, hidden files left out."""
    return partial(shutil.copytree, folder, ignore=shutil.ignore_patterns(".*"))


def _carried(src: Path, official: Mapping) -> dict[str, Content]:
    return {name: src / name for name in (*CARRIED, *code_files(official)) if (src / name).is_file()}


def _lacking(src: Path, official: Mapping) -> list[str]:
    """Sentences on what an official folder would hold and ``src`` does not."""
    code = [name for name in code_files(official) if not (src / name).is_file()]
    lost = [f"{', '.join(code)}: named by auto_map in config.json and not in '{src}'; transformers cannot load the "
            f"folder without, copy from the released one."] if code else []  # fmt: skip
    if (src / CODEC).is_dir() and not token2wav.looks(src / CODEC):
        lost.append(f"{CODEC}/: it is in gamut's layout and stays in '{src}'; to speak, the folder needs the released "
                    f"one.")  # fmt: skip
    return lost


def _card(src: Path) -> str:
    return (src / "README.md").read_text() if (src / "README.md").is_file() else ""


def _foreign_tensors(src: Path) -> dict[str, Tensor]:
    if (src / INDEX).is_file() or (src / WEIGHTS).is_file():
        return load_tensors(src)
    index = src / "pytorch_model.bin.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if bad := [name for name in names if Path(name).name != name or not (src / name).is_file()]:
            raise ValueError(f"'{index}' names shards that are not in the folder: {', '.join(bad[:8])}")
        files = [src / name for name in names]
    else:
        found = (sorted(src.glob(pattern)) for pattern in PICKLES)
        files = next((list(group) for group in found if group), [])
        if not files:
            there = ", ".join(sorted(file.name for file in src.iterdir())[:8])
            raise ValueError(f"'{src}' has no weights; looked for {WEIGHTS} and {', '.join(PICKLES)}; got {there}")
    tensors = {}
    for file in files:
        tensors |= unpickled(file)
    return tensors
