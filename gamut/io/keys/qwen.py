"""Qwen2, Qwen3, Qwen2-MoE and Qwen3-MoE on disk <-> models/lm.py: names of tensors and of config fields, both ways.

`{i}` is a layer, `{e}` an expert (ours stacks experts along a new first axis).
"""

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

FAMILIES = ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe")
NAMES = {
    "model.embed_tokens.weight": "embed.weight",
    "model.layers.{i}.input_layernorm.weight": "blocks.{i}.norm1.weight",
    "model.layers.{i}.self_attn.q_proj.weight": "blocks.{i}.attn.q.weight",
    "model.layers.{i}.self_attn.q_proj.bias": "blocks.{i}.attn.q.bias",
    "model.layers.{i}.self_attn.k_proj.weight": "blocks.{i}.attn.k.weight",
    "model.layers.{i}.self_attn.k_proj.bias": "blocks.{i}.attn.k.bias",
    "model.layers.{i}.self_attn.v_proj.weight": "blocks.{i}.attn.v.weight",
    "model.layers.{i}.self_attn.v_proj.bias": "blocks.{i}.attn.v.bias",
    "model.layers.{i}.self_attn.o_proj.weight": "blocks.{i}.attn.out.weight",
    "model.layers.{i}.self_attn.o_proj.bias": "blocks.{i}.attn.out.bias",
    "model.layers.{i}.self_attn.q_norm.weight": "blocks.{i}.attn.q_norm.weight",
    "model.layers.{i}.self_attn.k_norm.weight": "blocks.{i}.attn.k_norm.weight",
    "model.layers.{i}.post_attention_layernorm.weight": "blocks.{i}.norm2.weight",
    "model.layers.{i}.mlp.gate_proj.weight": "blocks.{i}.mlp.gate.weight",
    "model.layers.{i}.mlp.up_proj.weight": "blocks.{i}.mlp.up.weight",
    "model.layers.{i}.mlp.down_proj.weight": "blocks.{i}.mlp.down.weight",
    "model.layers.{i}.mlp.gate.weight": "blocks.{i}.mlp.router.weight",
    "model.layers.{i}.mlp.experts.{e}.gate_proj.weight": "blocks.{i}.mlp.experts.gate",
    "model.layers.{i}.mlp.experts.{e}.up_proj.weight": "blocks.{i}.mlp.experts.up",
    "model.layers.{i}.mlp.experts.{e}.down_proj.weight": "blocks.{i}.mlp.experts.down",
    "model.layers.{i}.mlp.shared_expert.gate_proj.weight": "blocks.{i}.mlp.shared.gate.weight",
    "model.layers.{i}.mlp.shared_expert.up_proj.weight": "blocks.{i}.mlp.shared.up.weight",
    "model.layers.{i}.mlp.shared_expert.down_proj.weight": "blocks.{i}.mlp.shared.down.weight",
    "model.layers.{i}.mlp.shared_expert_gate.weight": "blocks.{i}.mlp.shared_gate.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "head.weight",
}
BACK = {ours: official for official, ours in NAMES.items()}
_OFFICIAL = re.compile(r"^(model\.layers\.)(\d+)(\..*?)(?:(experts\.)(\d+)(\..*))?$")
_OURS = re.compile(r"^(blocks\.)(\d+)(\..*)$")

# Ours <- official, for the fields that are only renamed.
FIELDS = {
    "vocab": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "ffn": "intermediate_size",
    "max_positions": "max_position_embeddings",
}
MOE_FIELDS = {"experts": "num_experts", "top_k": "num_experts_per_tok", "expert_ffn": "moe_intermediate_size"}
READ = {*FIELDS.values(), *MOE_FIELDS.values()} | {
    "num_local_experts", "head_dim", "rms_norm_eps", "tie_word_embeddings", "rope_theta", "rope_parameters",
    "rope_scaling", "attention_bias", "qkv_bias", "norm_topk_prob",
    "shared_expert_intermediate_size", "mlp_only_layers", "decoder_sparse_step", "model_type",
}  # fmt: skip
ONLY = {  # fields of which one value is built; any other changes the numbers
    "hidden_act": "silu",
    "use_sliding_window": False,
    "attention_dropout": 0.0,
    "quantization_config": None,
    "use_mrope": False,
    "partial_rotary_factor": 1.0,
    "mlp_bias": False,
}
NO_EFFECT = {  # identity, start-up or output options: no influence on the numbers of a forward pass
    "architectures", "_name_or_path", "auto_map", "transformers_version", "torch_dtype", "dtype", "use_cache",
    "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id", "sliding_window", "max_window_layers",
    "layer_types", "output_router_logits", "router_aux_loss_coef", "output_hidden_states", "output_attentions",
    "return_dict", "chunk_size_feed_forward", "is_encoder_decoder", "id2label", "label2id", "problem_type",
    "_attn_implementation", "attn_implementation", "note",
}  # fmt: skip


def to_ours(official: Mapping[str, Tensor], config: Mapping) -> dict[str, Tensor]:
    """Rename, and stack the experts. A name that is not in the table keeps it, so that a strict load reports it.

    Raises:
        ValueError: a layer lacks one of its experts' tensors, or a tied model brings a head that differs.
    """
    ours, stacks = {}, {}
    for name, tensor in official.items():
        layer, expert, pattern = _split(name)
        new = NAMES.get(pattern, "").replace("{i}", layer)
        if new and expert:
            stacks.setdefault(new, {})[int(expert)] = tensor
        else:
            ours[new or name] = tensor
    count = (config.get("moe") or {}).get("experts", 0)
    for name, by_expert in stacks.items():
        if sorted(by_expert) != list(range(count)):
            lost = sorted(set(range(count)) - set(by_expert))
            raise ValueError(
                f"'{name}' needs experts 0 .. {count - 1}, got {len(by_expert)} (missing {lost[:8]}); "
                f"check num_experts in config.json, or download the checkpoint again"
            )
        ours[name] = torch.stack([by_expert[e] for e in range(count)])
    if config.get("tied") and "head.weight" in ours:
        head = ours.pop("head.weight")
        if "embed.weight" in ours and not torch.equal(head, ours["embed.weight"]):
            raise ValueError(
                "config says tie_word_embeddings, but lm_head.weight differs from embed_tokens.weight; "
                "set tie_word_embeddings to false in config.json"
            )
    return ours


def to_official(ours: Mapping[str, Tensor], config: Mapping) -> dict[str, Tensor]:
    """The inverse of `to_ours`. Raises ValueError for a name that is not in the table."""
    official = {}
    for name, tensor in ours.items():
        match = _OURS.match(name)
        pattern = f"{match[1]}{{i}}{match[3]}" if match else name
        if pattern not in BACK:
            raise ValueError(f"'{name}' has no official name; allowed: those of io/keys/qwen.py (merge adapters first)")
        new = BACK[pattern].replace("{i}", match[2] if match else "")
        if "{e}" in new:
            official.update({new.replace("{e}", str(e)): part for e, part in enumerate(tensor)})
        else:
            official[new] = tensor
    return official


def _split(name: str) -> tuple[str, str, str]:
    """Layer, expert and pattern of an official name ("" where it has none)."""
    match = _OFFICIAL.match(name)
    if not match:
        return "", "", name
    head, layer, rest, experts, expert, tail = match.groups()
    pattern = f"{head}{{i}}{rest}" + (f"{experts}{{e}}{tail}" if experts else "")
    return layer, expert or "", pattern


def config_from_official(official: Mapping) -> dict:
    """Fields of LMConfig from the fields of config.json. Missing optional ones take the official defaults.

    Raises:
        ValueError: another model_type, a missing size, or a feature that is not built (sliding window, rope scaling,
            another activation, quantised weights ...), by field and value.
    """
    family = official.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"model_type must be one of {', '.join(FAMILIES)}; got {family!r}")
    sparse = family.endswith("_moe")
    experts = official.get("num_experts", official.get("num_local_experts"))
    official = dict(official) | ({"num_experts": experts} if sparse and experts else {})
    needed = [*FIELDS.values(), *(MOE_FIELDS.values() if sparse else ())]
    if lost := [name for name in needed if official.get(name) is None and name != "num_key_value_heads"]:
        raise ValueError(
            f"config.json of a {family} model lacks {', '.join(lost)}; copy it from the original checkpoint"
        )
    _refuse(official)
    heads = official["num_attention_heads"]
    bias = {"qwen2": True, "qwen2_moe": official.get("qkv_bias", True)}.get(
        family, official.get("attention_bias", False)
    )
    ours: dict[str, Any] = {name: official.get(field) for name, field in FIELDS.items()} | {
        "kv_heads": official.get("num_key_value_heads") or heads,
        "head_dim": official.get("head_dim") or (128 if family == "qwen3" else official["hidden_size"] // heads),
        "norm_eps": official.get("rms_norm_eps", 1e-6),
        "positions": "rope",
        "rope_theta": _theta(official),
        "qkv_bias": bool(bias),
        "out_bias": bool(bias) and family.startswith("qwen3"),
        "qk_norm": family.startswith("qwen3"),
        "tied": bool(official.get("tie_word_embeddings", False)),
        "moe": None,
    }
    if sparse:
        every, dense = official.get("decoder_sparse_step") or 1, official.get("mlp_only_layers") or ()
        ours["moe"] = {name: official[field] for name, field in MOE_FIELDS.items()} | {
            "shared_ffn": official.get("shared_expert_intermediate_size", 5632) if family == "qwen2_moe" else 0,
            "renormalise": bool(official.get("norm_topk_prob", False)),
            "dense_layers": tuple(i for i in range(ours["layers"]) if i in dense or (i + 1) % every),
        }
    return ours


def _theta(official: Mapping) -> float:
    """The rope base, from where either generation of config files keeps it; other rope kinds are refused."""
    rope = dict(official.get("rope_scaling") or {}) | dict(official.get("rope_parameters") or {})
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    theta = rope.pop("rope_theta", official.get("rope_theta") or 1e4)
    rope.pop("type", None)
    if kind != "default" or {
        k: v for k, v in rope.items() if v is not None and (k, v) != ("partial_rotary_factor", 1.0)
    }:
        raise ValueError(
            f"rope scaling is not built: allowed is rope_type 'default' with a rope_theta, got {kind!r} with {rope}; "
            f"remove rope_scaling from config.json to run at the trained length"
        )
    return float(theta)


def _refuse(official: Mapping) -> None:
    for name, allowed in ONLY.items():
        if (official.get(name) or allowed) != allowed:
            raise ValueError(f"{name}={official[name]!r} in config.json is not built; allowed: {allowed!r}")
    kinds = set(official.get("layer_types") or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ValueError(f"layer_types in config.json must all be 'full_attention', got {sorted(kinds)}")
    unknown = [k for k, v in official.items() if v and k not in READ and k not in ONLY and k not in NO_EFFECT]
    if unknown:
        warnings.warn(f"config.json fields without effect here: {', '.join(sorted(unknown))}", stacklevel=3)


def config_to_official(ours: Mapping) -> dict:
    """config.json fields, with the family read off the fields: QK-norm is Qwen3, experts are MoE.

    Raises:
        ValueError: a combination of fields that no released family has.
    """
    moe: dict[str, Any] = ours.get("moe") or {}
    family = ("qwen3" if ours["qk_norm"] else "qwen2") + ("_moe" if moe else "")
    chan = ours["width"] // ours["heads"]
    wrong = {
        "positions must be 'rope'": ours["positions"] != "rope",
        "qwen2 needs qkv_bias": family == "qwen2" and not ours["qkv_bias"],
        "qwen2 has no out_bias": family.startswith("qwen2") and ours["out_bias"],
        "qwen3 has out_bias with qkv_bias, or neither": family.startswith("qwen3")
        and ours["out_bias"] != ours["qkv_bias"],
        "qwen2_moe needs a shared expert": family == "qwen2_moe" and not moe["shared_ffn"],
        "qwen3_moe has no shared expert": family == "qwen3_moe" and bool(moe["shared_ffn"]),
    }
    if broken := [text for text, bad in wrong.items() if bad]:
        raise ValueError(f"no Qwen family holds this config: {'; '.join(broken)}. Save it with save_pretrained instead")
    official = {field: ours[name] for name, field in FIELDS.items()} | {
        "architectures": [
            {"qwen2": "Qwen2", "qwen3": "Qwen3", "qwen2_moe": "Qwen2Moe", "qwen3_moe": "Qwen3Moe"}[family]
            + "ForCausalLM"
        ],
        "model_type": family,
        "hidden_act": "silu",
        "rms_norm_eps": ours["norm_eps"],
        "rope_theta": ours["rope_theta"],
        "tie_word_embeddings": ours["tied"],
        "use_sliding_window": False,
        "attention_dropout": 0.0,
    }
    if family.startswith("qwen3") or ours["head_dim"] != chan:
        official["head_dim"] = ours["head_dim"]
    if family != "qwen2":
        official["qkv_bias" if family == "qwen2_moe" else "attention_bias"] = ours["qkv_bias"]
    if moe:
        official |= {field: moe[name] for name, field in MOE_FIELDS.items()} | {
            "norm_topk_prob": moe["renormalise"],
            "mlp_only_layers": list(moe["dense_layers"]),
            "decoder_sparse_step": 1,
        }
        if moe["shared_ffn"]:
            official["shared_expert_intermediate_size"] = moe["shared_ffn"]
    return official
