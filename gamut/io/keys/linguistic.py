"""The encoder of FunASR's streaming Paraformer, with centroids beside it <-> codecs/linguistic.py.

Source: Step-Audio fact sheet §2.2, §8; fixture sanm_linguistic_tokenizer. Its file holds the encoder's names alone;
a whole recogniser's have ``encoder.`` in front. ``cmvn`` (2, I: shift row, scale row) and ``centroids`` lie in files of
their own (am.mvn, linguistic_tokenizer.npy) and are given here under those names.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from gamut.io.keys.names import Names

_BLOCK = {
    "norm1": "norm1",
    "self_attn.linear_q_k_v": "attn.qkv",
    "self_attn.linear_out": "attn.out",
    "self_attn.fsmn_block": "attn.memory",
    "norm2": "norm2",
    "feed_forward.w_1": "up",
    "feed_forward.w_2": "down",
}
NAMES = Names(
    {f"encoders0.0.{theirs}": f"first.{ours}" for theirs, ours in _BLOCK.items()}
    | {f"encoders.{{}}.{theirs}": f"blocks.{{}}.{ours}" for theirs, ours in _BLOCK.items()}
    | {"after_norm": "norm", "centroids": "centroids"}
)


def to_ours(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of the encoder, ``cmvn`` and ``centroids``; a name that is unknown stays as it is."""
    ours = NAMES.to_ours({name.removeprefix("encoder."): tensor for name, tensor in official.items()})
    if "cmvn" in ours:
        ours["shift"], ours["scale"] = ours.pop("cmvn").float().unbind()
    return ours


def to_official(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``to_ours``. Raises ValueError for a name that is not in the table."""
    rest = {name: tensor for name, tensor in ours.items() if name not in ("shift", "scale")}
    official = NAMES.to_official(rest, "io/keys/linguistic.py")
    if "shift" in ours:
        official["cmvn"] = torch.stack([ours["shift"], ours["scale"]])
    return official


def config_from_official(official: Mapping, tensors: Mapping[str, Tensor]) -> dict:
    """Fields of LinguisticConfig from FunASR's config (``encoder``/``encoder_conf``, ``frontend``/``frontend_conf``,
    chunk_size, encoder_chunk_look_back).

    Raises:
        ValueError: a part missing, or a front-end that is not built (another rate, frame, window, or dither).
    """
    encoder = official.get("encoder_conf", official.get("encoder"))
    front = official.get("frontend_conf", official.get("frontend"))
    if not isinstance(encoder, Mapping) or not isinstance(front, Mapping):
        raise ValueError(f"the config of a linguistic tokenizer has the parts encoder (or encoder_conf) and frontend "
                         f"(or frontend_conf), got {sorted(official)}")
    built = {"fs": 16000, "window": "hamming", "frame_length": 25, "frame_shift": 10, "dither": 0.0}
    for name, value in built.items():
        if front.get(name, value) != value:
            raise ValueError(f"frontend {name}={front[name]!r} is not built; allowed: {value!r}")
    fields = {
        "mels": front.get("n_mels", 80), "side": front.get("lfr_m", 7), "skip": front.get("lfr_n", 6),
        "width": encoder["output_size"], "heads": encoder["attention_heads"], "ffn": encoder["linear_units"],
        "layers": encoder["num_blocks"], "taps": encoder.get("kernel_size", 11), "shift": encoder.get("sanm_shfit", 0),
        "chunk": tuple(official.get("chunk_size", (0, 4, 5))), "look_back": official.get("encoder_chunk_look_back", 4),
    }  # fmt: skip
    return fields | ({"centroids": len(tensors["centroids"])} if "centroids" in tensors else {})
