"""Step-1 (the language model of Step-Audio) on disk <-> models/lm.py. Tensor names are those of Qwen2 without biases.

Field names as in StepFun's Step1Config; the sizes of the released 130B and 3B models are read from their config.json.
"""

from collections.abc import Mapping

from gamut.io.keys.qwen import to_official, to_ours

__all__ = ["FAMILIES", "config_from_official", "config_to_official", "to_official", "to_ours"]

FAMILIES = ("step1",)
FIELDS = {
    "vocab": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_attention_groups",
    "ffn": "intermediate_size",
    "max_positions": "max_seq_len",
}


def config_from_official(official: Mapping) -> dict:
    """Fields of LMConfig from Step1Config's.

    Raises:
        ValueError: a size is missing, or weights are tied or quantised.
    """
    if lost := [field for field in FIELDS.values() if official.get(field) is None]:
        raise ValueError(f"config.json of a step1 model lacks {', '.join(lost)}; copy it from the original checkpoint")
    for name in ("tie_word_embeddings", "quantization_config"):
        if official.get(name):
            raise ValueError(f"{name}={official[name]!r} in config.json is not built for step1; remove it")
    return {name: official[field] for name, field in FIELDS.items()} | {
        "head_dim": official["hidden_size"] // official["num_attention_heads"],
        "norm_eps": official.get("rms_norm_eps", 1e-5),
        "positions": "sqrt_alibi",
        "interp_ratio": float(official.get("max_pos_interp_ratio") or 1.0),
        "slopes": tuple(official.get("alibi_slopes") or ()),
    }


def config_to_official(ours: Mapping) -> dict:
    """The inverse of `config_from_official`. Raises ValueError for fields that Step-1 does not have."""
    wrong = {
        "positions must be 'sqrt_alibi'": ours["positions"] != "sqrt_alibi",
        "head_dim must be width / heads": ours["head_dim"] * ours["heads"] != ours["width"],
        "no biases, QK-norm, tied weights or experts": any(
            ours.get(name) for name in ("qkv_bias", "out_bias", "qk_norm", "tied", "moe")
        ),
    }
    if broken := [text for text, bad in wrong.items() if bad]:
        raise ValueError(f"Step-1 does not hold this config: {'; '.join(broken)}. Save it with save_pretrained instead")
    official = {field: ours[name] for name, field in FIELDS.items()} | {
        "architectures": ["Step1ForCausalLM"],
        "model_type": "step1",
        "rms_norm_eps": ours["norm_eps"],
        "max_pos_interp_ratio": ours["interp_ratio"],
    }
    return official | ({"alibi_slopes": list(ours["slopes"])} if ours["slopes"] else {})
