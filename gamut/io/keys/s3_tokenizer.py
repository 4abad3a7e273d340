"""S3 tokenizers of the public PyTorch package <-> codecs/s3_tokenizer.py.

Source: Step-Audio 2 fact sheet §5, Step-Audio fact sheet §2.3; fixtures s3_tokenizer_v2, _v1.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from gamut.io.keys.names import Names

NAMES = Names({  # official -> ours
    "encoder.conv1": "conv1",
    "encoder.conv2": "conv2",
    "encoder.positional_embedding": "positions",
    "encoder.blocks.{}.attn_ln": "blocks.{}.norm1",
    "encoder.blocks.{}.attn.query": "blocks.{}.attn.q",
    "encoder.blocks.{}.attn.key": "blocks.{}.attn.k",
    "encoder.blocks.{}.attn.value": "blocks.{}.attn.v",
    "encoder.blocks.{}.attn.out": "blocks.{}.attn.out",
    "encoder.blocks.{}.attn.fsmn_block": "blocks.{}.attn.memory",
    "encoder.blocks.{}.mlp_ln": "blocks.{}.norm2",
    "encoder.blocks.{}.mlp.0": "blocks.{}.mlp.up",
    "encoder.blocks.{}.mlp.2": "blocks.{}.mlp.down",
    "quantizer._codebook.project_down": "project",
    "quantizer._codebook.embed": "codes.words",
})
_LAYER = re.compile(r"(?<=blocks\.)\d+(?=\.)")
HEAD = 64  # channels of a head in every release
FIELDS = {  # ours <- config of the public package
    "mels": "n_mels", "width": "n_audio_state", "layers": "n_audio_layer", "heads": "n_audio_head",
    "positions": "n_audio_ctx",
}  # fmt: skip


def config_from_official(official: Mapping, tensors: Mapping[str, Tensor]) -> dict:
    """Fields of S3Config. What the public package's config leaves out is read off the shapes.

    Args:
        official: n_mels, n_audio_state … as far as they are known; ``name`` tells 50 Hz from 25 Hz.
        tensors: under their official names.
    Raises:
        ValueError: tensors that are no S3 tokenizer's.
    """
    first, down = tensors.get("encoder.conv1.weight"), tensors.get("quantizer._codebook.project_down.weight")
    words, up = tensors.get("quantizer._codebook.embed"), tensors.get("encoder.blocks.0.mlp.0.weight")
    if first is None or up is None or (down is None) == (words is None):
        raise ValueError(f"no S3 tokenizer among {len(tensors)} tensors ({', '.join(list(tensors)[:4])} …): it has "
                         f"encoder.conv1, encoder.blocks.0 and one of quantizer._codebook.project_down and .embed")
    width = len(first)
    fields = {
        "version": 1 if down is None else 2,
        "mels": first.shape[1],
        "width": width,
        "layers": 1 + max(int(found[0]) for name in tensors if (found := _LAYER.search(name))),
        "heads": max(1, width // HEAD),
        "ffn": len(up),
        "stride": 2 if official.get("name") == "speech_tokenizer_v1" else 4,
        "norm_eps": (1e-5 if down is None else 1e-6, 1e-5),
    }
    fields |= {ours: official[name] for ours, name in FIELDS.items() if name in official}
    if words is not None:
        return fields | {"codebook": len(words), "positions": len(tensors["encoder.positional_embedding"])}
    memory = tensors.get("encoder.blocks.0.attn.fsmn_block.weight")
    return fields | {"levels": (3,) * len(down), "memory": 31 if memory is None else memory.shape[-1]}
