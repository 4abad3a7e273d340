"""The released token2wav folder of Step-Audio 2 -> one folder of ours, which `gamut.load` turns into a Token2Wav.

    flow.yaml  flow.pt  hift.pt     needed: they become the codec
    speech_tokenizer_v2_25hz.onnx   for new voices alone: a folder tokenizer/ inside, of S3Tokenizer
    campplus.onnx                   for new voices alone: a folder speaker/ inside, of SpeakerNet

Source: fact sheet step_audio_2 §6. HyperPyYAML is read as plain YAML: tags are dropped, references to plain values
are followed, nothing is built.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gamut
from gamut.io.convert_onnx import convert_onnx
from gamut.io.files import atomic_dir
from gamut.io.folders import check_loads, finite, save_folder
from gamut.io.keys import flow as flow_keys
from gamut.io.keys import hift as hift_keys
from gamut.io.pickles import unpickled

NEEDED = ("flow.yaml", "flow.pt", "hift.pt")
INSIDE = {"speech_tokenizer_v2_25hz.onnx": "tokenizer", "campplus.onnx": "speaker"}
_REFERENCE = re.compile(r"<(\w+)>")


def looks(folder: Path) -> bool:
    """Whether a folder is meant to be a token2wav folder: it has at least one of its three files."""
    return folder.is_dir() and any((folder / name).is_file() for name in NEEDED)


def convert(src: Path, dst: Path) -> Path:
    """Write ``dst``: config.json, both halves' weights, a folder for each ONNX file, a card that names what is missing.

    Raises:
        ValueError: missing files, all of them named; files or names that do not belong; weights that are missing or do
            not fit what flow.yaml says.
    """
    there = sorted(file.name for file in src.iterdir())
    if missing := [name for name in NEEDED if name not in there]:
        got = ", ".join(there[:8])
        raise ValueError(f"'{src}' is no whole token2wav folder: {', '.join(missing)} missing, got {got}; download it")
    flow, hift = (finite(unpickled(src / name), src / name) for name in ("flow.pt", "hift.pt"))
    config = {
        "flow": flow_keys.config_from_official(flow_arguments(src / "flow.yaml"), flow),
        "hift": {"dilations": (1, 3, 5)} | hift_keys.config_from_shapes(hift),  # no shape tells these
    }
    ours = flow_keys.to_ours(flow), hift_keys.to_ours(hift, config["hift"])
    flow_keys.to_official(ours[0])  # both raise for names that do not belong, before anything is written
    hift_keys.to_official(ours[1], config["hift"])
    tensors = {f"{part}.{name}": t for part, group in zip(config, ours, strict=True) for name, t in group.items()}
    wrapped = {"gamut": gamut.__version__, "class": "Token2Wav", "config": config}
    with atomic_dir(dst) as part:
        for name, folder in INSIDE.items():
            if name in there:
                convert_onnx(src / name, part / folder)
        codec = save_folder(part / "codec", tensors, wrapped, card=_card(src, there))
        for file in codec.iterdir():
            file.rename(part / file.name)
        codec.rmdir()
        check_loads(part, src, "codec")
    return dst


def _card(src: Path, there: list[str]) -> str:
    missing = [f"`{name}`" for name in INSIDE if name not in there]
    lack = f"\n\nNot there, and needed to make new voices: {', '.join(missing)}." if missing else ""
    return (
        f"# {src.resolve().name}, converted\n\nStep-Audio 2's flow and vocoder in gamut's layout: "
        f"`Token2Wav.from_pretrained(folder)` loads them. Weights, licence and training are those of the "
        f"original.{lack}\n"
    )


def flow_arguments(file: Path) -> dict[str, Any]:
    """Constructor arguments of the flow in a flow.yaml, in the form of ``keys/flow.py``: top, encoder, estimator.

    Raises:
        ValueError: not YAML, or no flow in it.
    """
    content = read_yaml(file)
    found = _within(content)
    if found is None:
        raise ValueError(f"'{file}' describes no flow: looked for an entry with an encoder and a decoder with an "
                         f"estimator, got {_names(content)}")  # fmt: skip
    decoder = found["decoder"]
    top = {name: value for name, value in found.items() if not isinstance(value, Mapping)}
    guidance = {"inference_cfg_rate": decoder["inference_cfg_rate"]} if "inference_cfg_rate" in decoder else {}
    return top | guidance | {"encoder": found["encoder"], "estimator": decoder["estimator"]}


def _within(content: Any) -> dict[str, Any] | None:
    if not isinstance(content, dict):
        return None
    decoder = content.get("decoder")
    if isinstance(content.get("encoder"), dict) and _estimates(decoder):
        return content
    return next((found for value in content.values() if (found := _within(value))), None)


def _estimates(decoder: Any) -> bool:
    return isinstance(decoder, dict) and isinstance(decoder.get("estimator"), dict)


def read_yaml(file: Path) -> Any:
    """A HyperPyYAML file as plain values.

    Raises:
        ValueError: not YAML, or PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise ValueError(f"reading '{file}' needs PyYAML: pip install gamut[convert]") from error

    class Untagged(yaml.SafeLoader):
        """Values as they are written, whatever the tag before them says."""

    def plain(loader: Any, suffix: str, node: Any) -> Any:
        if isinstance(node, yaml.MappingNode):
            return loader.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return loader.construct_sequence(node, deep=True)
        tag = loader.resolve(yaml.ScalarNode, node.value, (True, False))
        return loader.construct_object(yaml.ScalarNode(tag, node.value))

    Untagged.add_multi_constructor("!", plain)
    try:
        content = yaml.load(file.read_text(), Untagged)  # a SafeLoader: it builds nothing but plain values
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error).replace("\n", " ")[:200]
        raise ValueError(f"'{file}' is not YAML ({reason}); download it again") from error
    return _followed(content, content)


def _followed(value: Any, top: Any) -> Any:
    """References like ``<rate>`` replaced by the plain value of that name at the top of the file."""
    if isinstance(value, dict):
        return {key: _followed(inner, top) for key, inner in value.items()}
    if isinstance(value, list):
        return [_followed(inner, top) for inner in value]
    match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    found = top.get(match[1]) if match and isinstance(top, dict) else None
    return value if found is None or isinstance(found, dict | list) else found


def _names(content: Any) -> str:
    return ", ".join(map(str, content))[:100] if isinstance(content, dict) else type(content).__name__
