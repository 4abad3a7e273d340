"""Flows of Step-Audio 2 and Step-Audio on disk (flow.pt) <-> codecs/flow.py and codecs/flow_v1.py.

Source: fact sheets step_audio_2 §6.2 and step_audio §4.1; fixtures step_audio_2_flow and step_audio_flow.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gamut.io.keys.names import Names

WHERE = "io/keys/flow.py"


def _block(theirs: str, ours: str) -> dict[str, str]:
    attn = {"linear_q": "q", "linear_k": "k", "linear_v": "v", "linear_out": "out", "linear_pos": "position",
            "pos_bias_u": "content_bias", "pos_bias_v": "position_bias"}  # fmt: skip
    rest = {"feed_forward.w_1": "up", "feed_forward.w_2": "down", "norm_mha": "norm1", "norm_ff": "norm2"}
    names = {f"self_attn.{old}": f"attn.{new}" for old, new in attn.items()} | rest
    return {f"{theirs}.{{}}.{old}": f"{ours}.{{}}.{new}" for old, new in names.items()}


COMMON = {
    "input_embedding": "embed", "spk_embed_affine_layer": "speaker", "encoder_proj": "project",
    "encoder.embed.out.0": "encoder.entrance.linear", "encoder.embed.out.1": "encoder.entrance.norm",
    "encoder.after_norm": "encoder.norm", **_block("encoder.encoders", "encoder.blocks"),
}  # fmt: skip
V2 = COMMON | _block("encoder.up_encoders", "encoder.up_blocks") | {
    "encoder.pre_lookahead_layer.conv1": "encoder.look1", "encoder.pre_lookahead_layer.conv2": "encoder.look2",
    "encoder.up_layer.conv": "encoder.up", "encoder.up_embed.out.0": "encoder.up_entrance.linear",
    "encoder.up_embed.out.1": "encoder.up_entrance.norm",
} | {
    f"decoder.estimator.{old}": f"estimator.{new}"
    for old, new in {
        "t_embedder.mlp.0": "time1", "t_embedder.mlp.2": "time2", "in_proj": "inputs",
        "final_layer.adaLN_modulation.1": "modulation", "final_layer.linear": "outputs",
        "blocks.{}.attn.to_q": "blocks.{}.attn.q", "blocks.{}.attn.to_k": "blocks.{}.attn.k",
        "blocks.{}.attn.to_v": "blocks.{}.attn.v", "blocks.{}.attn.proj": "blocks.{}.attn.out",
        "blocks.{}.attn.q_norm": "blocks.{}.attn.q_norm", "blocks.{}.attn.k_norm": "blocks.{}.attn.k_norm",
        "blocks.{}.conv.block.1": "blocks.{}.conv.conv1", "blocks.{}.conv.block.3": "blocks.{}.conv.norm",
        "blocks.{}.conv.block.6": "blocks.{}.conv.conv2", "blocks.{}.mlp.fc1": "blocks.{}.up",
        "blocks.{}.mlp.fc2": "blocks.{}.down", "blocks.{}.adaLN_modulation.1": "blocks.{}.modulation",
    }.items()
}  # fmt: skip
_INSIDE = {
    "0.mlp.1": "residual.time", "0.block1.block.0": "residual.conv1.conv", "0.block1.block.1": "residual.conv1.norm",
    "0.block2.block.0": "residual.conv2.conv", "0.block2.block.1": "residual.conv2.norm", "0.res_conv": "residual.skip",
    "1.{}.norm1": "blocks.{}.norm1", "1.{}.norm3": "blocks.{}.norm2", "1.{}.attn1.to_q": "blocks.{}.q",
    "1.{}.attn1.to_k": "blocks.{}.k", "1.{}.attn1.to_v": "blocks.{}.v", "1.{}.attn1.to_out.0": "blocks.{}.out",
    "1.{}.ff.net.0.proj": "blocks.{}.up", "1.{}.ff.net.2": "blocks.{}.down",
}  # fmt: skip
V1 = COMMON | {
    f"decoder.estimator.{theirs}.{{}}.{old}": f"estimator.{ours}.{{}}.{new}"
    for theirs, ours in {"down_blocks": "downs", "mid_blocks": "middle", "up_blocks": "ups"}.items()
    for old, new in _INSIDE.items()
} | {
    f"decoder.estimator.{old}": f"estimator.{new}"
    for old, new in {
        "time_mlp.linear_1": "time1", "time_mlp.linear_2": "time2", "final_block.block.0": "final.conv",
        "final_block.block.1": "final.norm", "final_proj": "outputs", "down_blocks.{}.2.conv": "downs.{}.resample",
        "down_blocks.{}.2": "downs.{}.resample", "up_blocks.{}.2.conv": "ups.{}.resample",
        "up_blocks.{}.2": "ups.{}.resample",
    }.items()
} | {"length_regulator.model.12": "regulator.out"} | {
    f"length_regulator.model.{3 * i + j}": f"regulator.{part}.{i}"
    for i in range(4) for j, part in enumerate(("convs", "norms"))
}  # fmt: skip
NAMES = {"Flow": Names(V2), "FlowV1": Names(V1)}

# Ours <- constructor argument of the released class, and its default there; None: only the weights say it.
ENCODER = {"layers": ("num_blocks", 6), "up_layers": ("num_up_blocks", 4), "heads": ("attention_heads", 8),
           "ffn": ("linear_units", 2048), "width": ("output_size", 512), "inputs": ("input_size", 512),
           "ahead": ("pre_lookahead_len", 3), "factor": ("up_scale_factor", 2)}  # fmt: skip
ESTIMATOR = {"mels": ("out_channels", 80), "dit_width": ("hidden_size", 512), "dit_layers": ("depth", 16),
             "dit_heads": ("num_heads", 8), "dit_head_dim": ("head_dim", 64), "dit_mlp": ("mlp_ratio", 4.0)}
BUILT = {"input_layer": "linear", "pos_enc_layer_type": "rel_pos_espnet", "selfattention_layer_type": "rel_selfattn",
         "key_bias": True, "normalize_before": True, "macaron_style": False, "use_cnn_module": False}  # of the encoder
ENCODER_V1 = {name: ENCODER[name] for name in ("layers", "heads", "ffn", "width", "inputs")}
UNET = {"mels": ("out_channels", 80), "unet_channels": ("channels", (256, 256)), "unet_blocks": ("n_blocks", 4),
        "unet_middle": ("num_mid_blocks", 12), "unet_heads": ("num_heads", 8),
        "unet_head_dim": ("attention_head_dim", 64)}  # fmt: skip
TOP_V1 = {"vocab": ("vocab_size", 4096), "token_rate": ("input_frame_rate", 50), "speaker": ("spk_embed_dim", 192),
          "guidance": ("inference_cfg_rate", 0.7), "steps": ("n_timesteps", 10)}
TOP = {"vocab": ("vocab_size", 6561), "speaker": ("spk_embed_dim", 192), "guidance": ("inference_cfg_rate", 0.7),
       "steps": ("n_timesteps", 10), "chunk": ("chunk_tokens", 25), "keep": ("keep_frames", 100)}


def config_from_official(official: Mapping[str, Any], weights: Mapping[str, Tensor] = {}) -> dict:
    """Fields of FlowConfig from the constructor arguments of the released class, of its ``encoder`` and ``estimator``.

    Args:
        weights: by their official names: what they say of the sizes of tables goes before the arguments.
    Raises:
        ValueError: an estimator whose inputs are not four mels wide, or an encoder that is not built.
    """
    for name, value in BUILT.items():
        if (got := official.get("encoder", {}).get(name, value)) != value:
            raise ValueError(f"encoder {name}={got!r} is not built; allowed: {value!r}")
    groups = ((TOP, official), (ENCODER, official.get("encoder", {})), (ESTIMATOR, official.get("estimator", {})))
    ours = {name: given.get(key, default) for table, given in groups for name, (key, default) in table.items()}
    ours |= _sizes(weights)
    inputs = official.get("estimator", {}).get("in_channels", 4 * ours["mels"])
    if inputs != 4 * ours["mels"]:
        raise ValueError(f"the estimator must take 4 x {ours['mels']} channels (noisy mel, encoder, speaker, prompt), "
                         f"got in_channels={inputs}")
    return ours


def _sizes(weights: Mapping[str, Tensor]) -> dict:
    embedding, speaker = weights.get("input_embedding.weight"), weights.get("spk_embed_affine_layer.weight")
    sizes = {} if embedding is None else dict(zip(("vocab", "inputs"), embedding.shape, strict=True))
    return sizes | ({} if speaker is None else {"speaker": speaker.shape[1]})


def config_to_official(ours: Mapping[str, Any]) -> dict:
    """The inverse of ``config_from_official``."""
    top, encoder, estimator = ({key: ours[name] for name, (key, _) in table.items()} for table in
                               (TOP, ENCODER, ESTIMATOR))
    return top | {"encoder": encoder, "estimator": estimator | {"in_channels": 4 * ours["mels"]}}


def v1_config_from_official(official: Mapping[str, Any], weights: Mapping[str, Tensor] = {}) -> dict:
    """The same for FlowV1Config."""
    groups = ((TOP_V1, official), (ENCODER_V1, official.get("encoder", {})), (UNET, official.get("estimator", {})))
    ours = {name: given.get(key, default) for table, given in groups for name, (key, default) in table.items()}
    return ours | {"unet_channels": tuple(ours["unet_channels"])} | _sizes(weights)


def to_ours(official: Mapping[str, Tensor], kind: str = "Flow") -> dict[str, Tensor]:
    """Every name of a flow of our class ``kind``; one that does not belong keeps its name: a strict load reports it."""
    return NAMES[kind].to_ours(official)


def to_official(ours: Mapping[str, Tensor], kind: str = "Flow") -> dict[str, Tensor]:
    """The inverse of ``to_ours``. Raises ValueError for a name that does not belong.

    A U-Net's last level down or up has another name for its convolution than those that change the rate.
    """
    official = NAMES[kind].to_official(ours, WHERE)
    if kind == "FlowV1":
        for part in ("down_blocks", "up_blocks"):
            pattern = re.compile(rf"decoder\.estimator\.{part}\.(\d+)\.2\.conv\.bias")
            last = max(int(match[1]) for name in official if (match := pattern.fullmatch(name)))
            for leaf in ("weight", "bias"):
                stem = f"decoder.estimator.{part}.{last}.2"
                official[f"{stem}.{leaf}"] = official.pop(f"{stem}.conv.{leaf}")
    return official
