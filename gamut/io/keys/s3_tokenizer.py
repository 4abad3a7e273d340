"""S3 tokenizers of the public PyTorch package, and of the released ONNX files <-> codecs/s3_tokenizer.py.

Source: Step-Audio 2 fact sheet §5, Step-Audio fact sheet §2.3; fixtures s3_tokenizer_v2, _v1. The ONNX files were not
at hand: which node holds what is what the public package's own converter reads from them (repo: S3Tokenizer, utils.py).
"""

import re
from collections.abc import Mapping

from torch import Tensor

from gamut.io.graphs import Graph, Node
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
        "norm_eps": tuple(official.get("norm_eps", (1e-5 if down is None else 1e-6, 1e-5))),
    }
    fields |= {ours: official[name] for ours, name in FIELDS.items() if name in official}
    if words is not None:
        return fields | {"codebook": len(words), "positions": len(tensors["encoder.positional_embedding"])}
    memory = tensors.get("encoder.blocks.0.attn.fsmn_block.weight")
    levels = (3,) * (0 if down is None else len(down))
    return fields | {"levels": levels, "memory": 31 if memory is None else memory.shape[-1]}


PARTS = {  # of a block; with a bias, or without
    "attn_ln": True, "attn.query": True, "attn.key": False, "attn.value": True, "attn.out": True,
    "attn.fsmn_block": False, "mlp_ln": True, "mlp.0": True, "mlp.2": True,
}  # fmt: skip


def looks(graph: Graph) -> bool:
    """Whether an ONNX graph is an S3 tokenizer's."""
    return any(node.path.endswith("blocks.0.attn.query") for node in graph.nodes)


def from_graph(graph: Graph) -> tuple[dict[str, Tensor], dict]:
    """(tensors under their official names, what else the graph tells of the config).

    In a block the node's module says whose weight it is: a MatMul's (turned), a Conv's, a Mul's or LayerNormalization's
    first; an Add's is a bias. Outside, the convolutions follow each other, the positions keep their name, and the
    quantiser is a linear layer (version 2) or the square of its codewords (version 1).
    """
    official: dict[str, Tensor] = {}
    eps = [1e-5, 1e-5]
    convolutions, width = 0, 0
    for node, given in graph.uses():
        inside = re.search(r"blocks\.(\d+)\.(.+)", node.path)
        if inside and inside[2] in PARTS:
            name = f"encoder.blocks.{inside[1]}.{inside[2]}"
            official |= {f"{name}.{leaf}": tensor for leaf, tensor in _leaves(node, given)}
            if node.op == "LayerNormalization":
                eps[inside[2] == "mlp_ln"] = round(node.attributes.get("epsilon", 1e-5), 12)
        elif node.op == "Conv" and not inside:
            convolutions, width = convolutions + 1, len(given[0][1])
            official |= {f"encoder.conv{convolutions}.{leaf}": tensor for leaf, tensor in _leaves(node, given)}
        elif table := [tensor for name, tensor in given if "positional_embedding" in name]:
            official["encoder.positional_embedding"] = table[0].reshape(table[0].shape[-2:])
        elif not inside:
            official |= _quantiser(node, given, width)
    return official, {"norm_eps": eps}


def _leaves(node: Node, given: list[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    tensors = [tensor for _, tensor in given]
    if node.op in ("Conv", "LayerNormalization"):
        return list(zip(("weight", "bias"), tensors, strict=False))
    if node.op == "Gemm":
        weight = tensors[0] if node.attributes.get("transB") else tensors[0].T.contiguous()
        return list(zip(("weight", "bias"), [weight, *tensors[1:]], strict=False))
    if node.op == "MatMul":
        return [("weight", tensors[0].T.contiguous())]
    leaf = {"Add": "bias", "Mul": "weight"}.get(node.op)
    return [(leaf, tensors[0])] if leaf and tensors[0].ndim == 1 else []


def _quantiser(node: Node, given: list[tuple[str, Tensor]], width: int) -> dict[str, Tensor]:
    (name, tensor), quantiser = given[0], "quantizer._codebook"
    if "quantizer" in node.path and "_codebook" in node.path and tensor.ndim == 2 and node.op in ("Pow", "MatMul"):
        return {f"{quantiser}.embed": (tensor.T if len(tensor) == width else tensor).contiguous()}
    if node.op == "MatMul" and tensor.ndim == 2 and len(tensor) == width:
        return {f"{quantiser}.project_down.weight": tensor.T.contiguous()}
    if node.op == "Add" and tensor.ndim == 1 and ("project_in" in name or "project_down" in name):
        return {f"{quantiser}.project_down.bias": tensor}
    return {}


def missing(official: Mapping[str, Tensor]) -> list[str]:
    """Names that a whole tokenizer has and these tensors lack."""
    layers = {int(found[0]) for name in official if (found := _LAYER.search(name))}
    first = "quantizer._codebook.embed" in official
    wanted = [f"encoder.conv{i}.{leaf}" for i in (1, 2) for leaf in ("weight", "bias")]
    wanted += ["encoder.positional_embedding"] if first else []
    wanted += [] if first else [f"quantizer._codebook.project_down.{leaf}" for leaf in ("weight", "bias")]
    for i in range(max(layers, default=0) + 1):
        for part, bias in PARTS.items():
            if not (first and part == "attn.fsmn_block"):
                leaves = ("weight", "bias") if bias else ("weight",)
                wanted += [f"encoder.blocks.{i}.{part}.{leaf}" for leaf in leaves]
    return [name for name in wanted if name not in official]
