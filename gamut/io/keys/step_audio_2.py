"""Step-Audio 2 on disk <-> models/omni.py, and its audio encoder under the names of Whisper and Qwen2-Audio.

`{i}` is a layer. The language model inside has the names of ``qwen.py``. Source: fact sheet §3-4; fixtures
step_audio_2_lm, whisper_encoder, qwen2_audio_encoder.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from gamut.io.folders import load_config
from gamut.io.keys import qwen

FAMILIES = ("step_audio_2",)
ARCHITECTURE = "StepAudio2ForCausalLM"

ENCODER = {  # official -> ours
    "conv1": "conv1",
    "conv2": "conv2",
    "positional_embedding.weight": "positions",
    "blocks.{i}.attn_ln": "blocks.{i}.norm1",
    "blocks.{i}.attn.query": "blocks.{i}.attn.q",
    "blocks.{i}.attn.key": "blocks.{i}.attn.k",
    "blocks.{i}.attn.value": "blocks.{i}.attn.v",
    "blocks.{i}.attn.out": "blocks.{i}.attn.out",
    "blocks.{i}.mlp_ln": "blocks.{i}.norm2",
    "blocks.{i}.mlp.0": "blocks.{i}.mlp.up",
    "blocks.{i}.mlp.2": "blocks.{i}.mlp.down",
    "after_norm": "norm",
}
ADAPTOR = {"conv": "conv", "linear1": "up", "linear2": "down"}
HUGGING_FACE = {  # WhisperEncoder and Qwen2AudioEncoder of transformers -> ours
    "conv1": "conv1",
    "conv2": "conv2",
    "embed_positions.weight": "positions",
    "layers.{i}.self_attn_layer_norm": "blocks.{i}.norm1",
    "layers.{i}.self_attn.q_proj": "blocks.{i}.attn.q",
    "layers.{i}.self_attn.k_proj": "blocks.{i}.attn.k",
    "layers.{i}.self_attn.v_proj": "blocks.{i}.attn.v",
    "layers.{i}.self_attn.out_proj": "blocks.{i}.attn.out",
    "layers.{i}.final_layer_norm": "blocks.{i}.norm2",
    "layers.{i}.fc1": "blocks.{i}.mlp.up",
    "layers.{i}.fc2": "blocks.{i}.mlp.down",
    "layer_norm": "norm",
}
PREFIXES = ("model.encoder.", "audio_tower.", "encoder.", "")  # of whole Whisper and Qwen2-Audio models, of the encoder
_LAYER = re.compile(r"^(blocks|layers)\.(\d+)\.")

# Ours <- official, of the audio encoder in a Step-Audio 2 config.json; the defaults are the released class's.
AUDIO_FIELDS = {
    "mels": ("n_mels", 128),
    "positions": ("n_audio_ctx", 1500),
    "width": ("n_audio_state", 512),
    "heads": ("n_audio_head", 8),
    "layers": ("n_audio_layer", 6),
}
HF_FIELDS = {
    "mels": "num_mel_bins",
    "positions": "max_source_positions",
    "width": "d_model",
    "heads": "encoder_attention_heads",
    "layers": "encoder_layers",
    "ffn": "encoder_ffn_dim",
}
IDS = {"audio_start_id": 151688, "audio_end_id": 151689, "audio_patch_id": 151690}  # written into the released code


def to_ours(official: Mapping[str, Tensor], config: Mapping) -> dict[str, Tensor]:
    """Every name of a Step-Audio 2 checkpoint. One that is not in the tables keeps its name: a strict load reports it.

    Args:
        config: fields of OmniConfig; ``config["lm"]`` those of the language model.
    """
    ours = {f"encoder.{new}": t for new, t in _renamed(_part(official, "encoder."), ENCODER).items()}
    ours |= {f"adapter.{new}": t for new, t in _renamed(_part(official, "adapter."), ADAPTOR).items()}
    rest = {name: t for name, t in official.items() if not name.startswith(("encoder.", "adapter."))}
    return ours | {f"lm.{new}": t for new, t in qwen.to_ours(rest, config["lm"]).items()}


def to_official(ours: Mapping[str, Tensor], config: Mapping) -> dict[str, Tensor]:
    """The inverse of ``to_ours``. Raises ValueError for a name that is not in the tables."""
    official = {f"encoder.{name}": t for name, t in _back(_part(ours, "encoder."), ENCODER).items()}
    official |= {f"adapter.{name}": t for name, t in _back(_part(ours, "adapter."), ADAPTOR).items()}
    known = ("encoder.", "adapter.", "lm.")
    if strange := [name for name in ours if not name.startswith(known)]:
        raise ValueError(f"{strange[:8]} have no official name; allowed: names that begin with {', '.join(known)}")
    return official | qwen.to_official(_part(ours, "lm."), config["lm"])


def encoder_to_ours(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The audio encoder out of a Whisper or Qwen2-Audio checkpoint (whole, or the encoder alone): other parts are
    left out. Raises ValueError if there is no encoder in it."""
    for prefix in PREFIXES:
        part = _part(official, prefix)
        if "conv1.weight" in part:
            return _renamed(part, HUGGING_FACE)
    raise ValueError(f"no audio encoder among {len(official)} tensors ({', '.join(list(official)[:4])} …); looked for "
                     f"conv1.weight behind {', '.join(repr(p) for p in PREFIXES)}")


def encoder_to_official(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``encoder_to_ours``, names of the encoder alone."""
    return _back(ours, HUGGING_FACE)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _rename(name: str, table: Mapping[str, str]) -> str | None:
    match = _LAYER.match(name)
    pattern = f"{match[1]}.{{i}}.{name[match.end():]}" if match else name
    layer = match[2] if match else ""
    if pattern in table:  # a bare parameter
        return table[pattern].replace("{i}", layer)
    stem, _, leaf = pattern.rpartition(".")
    if leaf in ("weight", "bias") and stem in table:
        return f"{table[stem].replace('{i}', layer)}.{leaf}"
    return None


def _renamed(tensors: Mapping[str, Tensor], table: Mapping[str, str]) -> dict[str, Tensor]:
    return {_rename(name, table) or name: tensor for name, tensor in tensors.items()}


def _back(tensors: Mapping[str, Tensor], table: Mapping[str, str]) -> dict[str, Tensor]:
    reverse = {ours: official for official, ours in table.items()}
    official = {_rename(name, reverse) or name: tensor for name, tensor in tensors.items()}
    if strange := [name for name in tensors if _rename(name, reverse) is None]:
        raise ValueError(f"{strange[:8]} have no official name; allowed: those of io/keys/step_audio_2.py")
    return official


def described(folder: str | Path) -> Mapping:
    """Fields of ``OmniConfig`` as config.json of a folder has them, ours or released.

    Raises:
        ValueError: as `load_config`; or it is another model's.
    """
    stored = load_config(folder)
    kind = stored.get("class", stored.get("model_type"))
    if kind not in ("Omni", *FAMILIES):
        raise ValueError(f"'{folder}' holds a {kind}; give a folder of Step-Audio 2, ours or as it was released")
    return stored["config"] if "gamut" in stored else config_from_official(stored)


def config_from_official(official: Mapping) -> dict:
    """Fields of OmniConfig from a Step-Audio 2 config.json.

    Raises:
        ValueError: another model_type, a part missing, sizes of the parts that contradict each other.
    """
    text, audio = official.get("text_config"), official.get("audio_encoder_config")
    if official.get("model_type", "step_audio_2") not in FAMILIES or not text or not audio:
        raise ValueError(f"config.json must have model_type 'step_audio_2', text_config and audio_encoder_config; "
                         f"got model_type {official.get('model_type')!r} and fields {sorted(official)}")
    text = {"model_type": "qwen2", "rope_theta": 1e6} | dict(text)
    groups = text.pop("num_attention_groups", None)
    if groups is not None and text.setdefault("num_key_value_heads", groups) != groups:
        raise ValueError(f"num_attention_groups {groups} must equal num_key_value_heads {text['num_key_value_heads']}; "
                         f"correct text_config in config.json")
    lm = qwen.config_from_official(text | {"model_type": "qwen2"})
    if audio.get("llm_dim", lm["width"]) != lm["width"]:
        raise ValueError(f"llm_dim {audio['llm_dim']} must equal the language model's hidden_size {lm['width']}; "
                         f"correct config.json")
    sizes = {ours: audio.get(name, default) for ours, (name, default) in AUDIO_FIELDS.items()}
    return {
        "lm": lm,
        "audio": sizes | {"ffn": 4 * sizes["width"], "pool": 2, "edge": "parity"},
        "adaptor_hidden": audio.get("adapter_state", 2048),
        "adaptor_kernel": audio.get("kernel_size", 3),
        "adaptor_stride": audio.get("adapter_stride", 2),
    } | {name: official.get(name, default) for name, default in IDS.items()}


def config_to_official(ours: Mapping) -> dict:
    """config.json of a Step-Audio 2 checkpoint. Raises ValueError for sizes that the released code cannot build."""
    lm, audio = qwen.config_to_official(ours["lm"]), ours["audio"]
    if audio["ffn"] != 4 * audio["width"] or audio["pool"] != 2:
        raise ValueError(f"the released encoder has ffn = 4 x width and pool 2; got ffn {audio['ffn']}, "
                         f"width {audio['width']}, pool {audio['pool']}; save it with save_pretrained(path) instead")
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "step_audio_2",
        "text_config": lm | {"num_attention_groups": lm["num_key_value_heads"]},
        "audio_encoder_config": {name: audio[field] for field, (name, _) in AUDIO_FIELDS.items()} | {
            "llm_dim": lm["hidden_size"],
            "kernel_size": ours["adaptor_kernel"],
            "adapter_stride": ours["adaptor_stride"],
            "adapter_state": ours["adaptor_hidden"],
        },
    } | {name: ours[name] for name in IDS}


def encoder_config_from_official(official: Mapping) -> dict:
    """Fields of AudioEncoderConfig from the config of a Whisper or Qwen2-Audio model, or of its encoder alone.

    Raises:
        ValueError: another model_type, another activation, or embeddings that are scaled.
    """
    family = official.get("model_type")
    if family == "qwen2_audio":
        official, family = official["audio_config"], "qwen2_audio_encoder"
    if family not in ("whisper", "qwen2_audio_encoder"):
        raise ValueError(f"model_type must be 'whisper', 'qwen2_audio' or 'qwen2_audio_encoder', got {family!r}")
    for name, allowed in (("activation_function", "gelu"), ("scale_embedding", False)):
        if official.get(name, allowed) != allowed:
            raise ValueError(f"{name}={official[name]!r} in config.json is not built; allowed: {allowed!r}")
    sizes = {ours: official[name] for ours, name in HF_FIELDS.items()}
    return sizes | {"pool": 1 if family == "whisper" else 2, "edge": "open"}


def encoder_config_to_official(ours: Mapping) -> dict:
    """The config of a Whisper (pool 1) or Qwen2-Audio (pool 2) encoder."""
    family = {1: "whisper", 2: "qwen2_audio_encoder"}.get(ours["pool"])
    if family is None or ours["edge"] != "open":
        raise ValueError(f"Whisper has pool 1 and Qwen2-Audio pool 2, both with edge 'open'; got pool {ours['pool']} "
                         f"and edge {ours['edge']!r}; save it with save_pretrained instead")
    sizes = {name: ours[field] for field, name in HF_FIELDS.items()}
    return sizes | {"model_type": family, "activation_function": "gelu", "scale_embedding": False}
