"""HiFT vocoders on disk (hift.pt, names with or without `generator.` in front) <-> codecs/hift.py.

A normed weight is two tensors, length and direction; PyTorch wrote them under two pairs of names. Where the norm was
removed for inference it is one.
Source: fact sheets step_audio §4.3 and step_audio_2 §6.4; fixtures hift_24k, hift_24k_stream, hift_22k.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

PREFIX = "generator."
NORMED = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
PAIRS = (tuple(NORMED), tuple(NORMED.values()))  # Step-Audio's, Step-Audio 2's
FOLDED = re.compile(r"((conv_(pre|post)|ups\.\d+|.*\.convs[12]\.\d+|f0_predictor\.condnet\.\d+)\.)weight")

FIELDS = {  # ours <- constructor argument of HiFTGenerator, and its default there
    "rate": ("sampling_rate", 22050), "mels": ("in_channels", 80), "width": ("base_channels", 512),
    "upsample": ("upsample_rates", (8, 8)), "kernels": ("upsample_kernel_sizes", (16, 16)),
    "block_kernels": ("resblock_kernel_sizes", (3, 7, 11)),
    "source_kernels": ("source_resblock_kernel_sizes", (7, 11)),
    "pitch_width": ("f0_cond_channels", 512), "harmonics": ("nb_harmonics", 8), "amplitude": ("nsf_alpha", 0.1),
    "breath": ("nsf_sigma", 0.003), "voiced": ("nsf_voiced_threshold", 10.0), "slope": ("lrelu_slope", 0.1),
    "limit": ("audio_limit", 0.99),
}  # fmt: skip
PARTS = ("conv_pre", "conv_post", "ups.0", "resblocks.0.convs1.0", "source_resblocks.0.convs1.0",
         "f0_predictor.condnet.0")  # of every HiFT
DILATIONS = ("resblock_dilation_sizes", "source_resblock_dilation_sizes")
SMOOTH_ABOVE = 22050  # the released code takes another source at this rate than at any other


def config_from_official(official: Mapping[str, Any]) -> dict:
    """Fields of HiFTConfig from the constructor arguments of the released class; what is absent has its default there.

    Raises:
        ValueError: dilations that differ between blocks, or a ``hop`` that the other numbers do not give.
    """
    ours = {name: _plain(official.get(key, default)) for name, (key, default) in FIELDS.items()}
    kinds = {tuple(row) for name in DILATIONS for row in official.get(name, ((1, 3, 5),))}
    if len(kinds) > 1:
        raise ValueError(f"all blocks of a HiFT must have the same dilations here, got {sorted(kinds)}")
    fft = official.get("istft_params", {"n_fft": 16, "hop_len": 4})
    hop = math.prod(ours["upsample"]) * fft["hop_len"]
    if official.get("hop", hop) != hop:
        raise ValueError(f"hop must be {hop} (upsample_rates {ours['upsample']} times {fft['hop_len']}), "
                         f"got {official['hop']}")
    return ours | {"dilations": kinds.pop(), "n_fft": fft["n_fft"], "fft_hop": fft["hop_len"],
                   "smooth": ours["rate"] != SMOOTH_ABOVE}


def config_to_official(ours: Mapping[str, Any]) -> dict:
    """The inverse of ``config_from_official``."""
    official = {key: list(ours[name]) if isinstance(ours[name], tuple) else ours[name]
                for name, (key, _) in FIELDS.items()}
    counts = len(ours["block_kernels"]), len(ours["source_kernels"])
    rows = {name: [list(ours["dilations"])] * count for name, count in zip(DILATIONS, counts, strict=True)}
    return official | rows | {"istft_params": {"n_fft": ours["n_fft"], "hop_len": ours["fft_hop"]}}


def config_from_shapes(official: Mapping[str, Tensor]) -> dict:
    """Fields of HiFTConfig from the weights alone, for hift.pt comes without a config: widths, kernels and counts are
    their shapes', an upsampling rate is half its kernel, and the rate is 24 kHz for three upsamplings, 22.05 for two,
    as in both releases.

    Raises:
        ValueError: no HiFT among the tensors.
    """
    shapes = {name: tuple(t.shape) for name, t in _spelled(official).items()}
    direction = NORMED["weight_v"]
    ups = _found(shapes, "ups.{}." + direction)
    needed = [*(f"{name}.{direction}" for name in PARTS), "m_source.l_linear.weight"]
    if missing := [name for name in needed if name not in shapes]:
        raise ValueError(f"no HiFT vocoder among {len(official)} tensors ({', '.join(list(official)[:4])} …): without "
                         f"{', '.join(missing)}; download hift.pt again")
    blocks = _found(shapes, "resblocks.{}.convs1.0." + direction)
    mels, width = shapes[f"conv_pre.{direction}"][1], shapes[f"conv_pre.{direction}"][0]
    layers = _found(shapes, "f0_predictor.condnet.{}." + direction, step=2)
    return {
        "rate": 24000 if len(ups) > 2 else 22050, "mels": mels, "width": width, "smooth": len(ups) > 2,
        "upsample": tuple(s[2] // 2 for s in ups), "kernels": tuple(s[2] for s in ups),
        "block_kernels": tuple(s[2] for s in blocks[: len(blocks) // len(ups)]),
        "source_kernels": tuple(s[2] for s in _found(shapes, "source_resblocks.{}.convs1.0." + direction)),
        "n_fft": shapes[f"conv_post.{direction}"][0] - 2, "pitch_width": layers[0][0], "pitch_layers": len(layers),
        "harmonics": shapes["m_source.l_linear.weight"][1] - 1,
    }  # fmt: skip


def to_ours(official: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Every name of a HiFT checkpoint, any spelling. One that does not belong keeps its name: a strict load
    reports it.

    Args:
        config: fields of HiFTConfig.
    """
    names = _names(config)
    return {names.get(name, name): tensor for name, tensor in _spelled(official).items()}


def to_official(ours: Mapping[str, Tensor], config: Mapping[str, Any], pair: tuple = ()) -> dict[str, Tensor]:
    """The inverse of ``to_ours``; plain weights of a folded vocoder become length and direction again.

    Args:
        pair: the names of the two, one of PAIRS; if not given, those of the release with such a source.
    Raises:
        ValueError: a name that does not belong.
    """
    names = {mine: theirs for theirs, mine in _names(config).items()}
    pair = pair or PAIRS[bool(config["smooth"])]
    official = {}
    for name, tensor in ours.items():
        stem, _, leaf = name.rpartition(".")
        if leaf == "weight" and f"{stem}.{NORMED['weight_g']}" in names:
            split = _parted(f"{stem}.", tensor)
        else:
            split = {name: tensor}
        if strange := [part for part in split if part not in names]:
            raise ValueError(f"{strange} have no official name; allowed: those of a HiFT of this config")
        official |= {names[part]: tensor for part, tensor in split.items()}
    spelling = dict(zip(NORMED.values(), pair, strict=True))
    return {_leaf(name, spelling): tensor for name, tensor in official.items()}


def _names(config: Mapping[str, Any]) -> dict[str, str]:
    """Official -> ours, of every tensor of a normed vocoder."""
    stages, blocks, units = (range(len(config[name])) for name in ("upsample", "block_kernels", "dilations"))
    inside = {f"{old}{n}.{k}": f"{k}.{new}{n}" for old, new in (("convs", "conv"), ("activations", "snake"))
              for n in (1, 2) for k in units}  # fmt: skip
    stems = {"conv_pre": "pre", "conv_post": "post"} | {f"ups.{i}": f"ups.{i}" for i in stages}
    stems |= {f"f0_predictor.condnet.{2 * i}": f"pitch.convs.{i}" for i in range(config.get("pitch_layers", 5))}
    snakes = {}
    places = {f"source_resblocks.{i}": f"source_blocks.{i}" for i in stages}
    places |= {f"resblocks.{i * len(blocks) + j}": f"blocks.{i}.{j}" for i in stages for j in blocks}
    for place, mine in places.items():
        for old, new in inside.items():
            (snakes if "snake" in new else stems)[f"{place}.{old}"] = f"{mine}.{new}"
    plain = {"m_source.l_linear": "source.mix", "f0_predictor.classifier": "pitch.head"}
    plain |= {f"source_downs.{i}": f"downs.{i}" for i in stages}
    names = {f"{a}.{leaf}": f"{b}.{leaf}" for a, b in stems.items() for leaf in ("bias", *NORMED.values())}
    names |= {f"{a}.{leaf}": f"{b}.{leaf}" for a, b in plain.items() for leaf in ("weight", "bias")}
    return names | {f"{a}.alpha": f"{b}.alpha" for a, b in snakes.items()}


def _spelled(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix, normed weights under the newer names, plain ones as length and direction."""
    found = {}
    for name, tensor in official.items():
        name = _leaf(name.removeprefix(PREFIX), NORMED)
        folded = FOLDED.fullmatch(name) if tensor.ndim > 1 else None
        found |= _parted(folded[1], tensor) if folded else {name: tensor}
    return found


def _parted(stem: str, weight: Tensor) -> dict[str, Tensor]:
    length = weight.flatten(1).norm(dim=1).view(-1, *[1] * (weight.ndim - 1))
    weight = weight.where(length > 0, 1)  # a channel of zeros has no direction: any will do
    return {stem + new: tensor for new, tensor in zip(NORMED.values(), (length, weight), strict=True)}


def _leaf(name: str, spelling: Mapping[str, str]) -> str:
    for old, new in spelling.items():
        if name.endswith(f".{old}"):
            return name.removesuffix(old) + new
    return name


def _found(shapes: Mapping[str, tuple], pattern: str, step: int = 1) -> list[tuple]:
    found: list[tuple] = []
    while (name := pattern.format(step * len(found))) in shapes:
        found.append(shapes[name])
    return found


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
