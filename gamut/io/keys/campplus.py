"""CAM++ of the public code, and of the released campplus.onnx <-> models/speaker.py.

Source: repo 3D-Speaker, speakerlab/models/campplus. In the ONNX file a convolution and the batch norm behind it are one
convolution with a bias; such a bias comes back as a batch norm that adds it and does nothing else.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from gamut.io.graphs import Graph
from gamut.io.keys.names import Names

EPS = 1e-5  # of every batch norm
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_DENSE = "xvector.block{}.tdnnd{}", "blocks.{}.{}"
CONVOLUTIONS = {  # official -> ours
    "head.conv1": "head.first.conv",
    "head.layer{}.{}.conv1": "head.stages.{}.{}.a.conv",
    "head.layer{}.{}.conv2": "head.stages.{}.{}.b.conv",
    "head.layer{}.{}.shortcut.0": "head.stages.{}.{}.skip.conv",
    "head.conv2": "head.last.conv",
    "xvector.tdnn.linear": "enter",
    f"{_DENSE[0]}.linear1": f"{_DENSE[1]}.squeeze",
    f"{_DENSE[0]}.cam_layer.linear_local": f"{_DENSE[1]}.local",
    f"{_DENSE[0]}.cam_layer.linear1": f"{_DENSE[1]}.down",
    f"{_DENSE[0]}.cam_layer.linear2": f"{_DENSE[1]}.up",
    "xvector.transit{}.linear": "narrow.{}.conv",
    "xvector.dense.linear": "out",
}
NORMS = {
    "head.bn1": "head.first.norm",
    "head.layer{}.{}.bn1": "head.stages.{}.{}.a.norm",
    "head.layer{}.{}.bn2": "head.stages.{}.{}.b.norm",
    "head.layer{}.{}.shortcut.1": "head.stages.{}.{}.skip.norm",
    "head.bn2": "head.last.norm",
    "xvector.tdnn.nonlinear.batchnorm": "enter_norm",
    f"{_DENSE[0]}.nonlinear1.batchnorm": f"{_DENSE[1]}.before",
    f"{_DENSE[0]}.nonlinear2.batchnorm": f"{_DENSE[1]}.between",
    "xvector.transit{}.nonlinear.batchnorm": "narrow.{}.norm",
    "xvector.out_nonlinear.batchnorm": "norm",
    "xvector.dense.nonlinear.batchnorm": "out_norm",
}
NAMES = Names(CONVOLUTIONS | {f"{a}.{leaf}": f"{b}.{leaf}" for a, b in NORMS.items() for leaf in _NORM})
BEHIND = (  # which batch norm stands right behind which convolution, where an exporter folds the two
    (r"(head|head\.layer\d+\.\d+)\.conv(\d)", r"\1.bn\2"),
    (r"(.+)\.shortcut\.0", r"\1.shortcut.1"),
    (r"xvector\.(tdnn|dense)\.linear", r"xvector.\1.nonlinear.batchnorm"),
    (r"(.+)\.linear1", r"\1.nonlinear2.batchnorm"),
    (r"xvector\.transit\d+\.linear", "xvector.out_nonlinear.batchnorm"),
)
BIASED = r".+\.cam_layer\.linear[12]"


def config_from_official(official: Mapping, tensors: Mapping[str, Tensor]) -> dict:
    """Fields of SpeakerNetConfig, read off the shapes. Raises ValueError for tensors that are not CAM++'s."""
    enter, out = tensors.get("xvector.tdnn.linear.weight"), tensors.get("xvector.dense.linear.weight")
    first = tensors.get("head.conv1.weight")
    local = tensors.get("xvector.block1.tdnnd1.cam_layer.linear_local.weight")
    if enter is None or out is None or first is None or local is None:
        raise ValueError(f"no CAM++ among {len(tensors)} tensors ({', '.join(list(tensors)[:4])} …): it has "
                         f"head.conv1, xvector.tdnn.linear, xvector.block1 and xvector.dense.linear")
    dense = [re.match(r"xvector\.block(\d+)\.tdnnd(\d+)\.cam_layer\.linear_local\.", name) for name in tensors]
    found = [(int(m[1]), int(m[2])) for m in dense if m]
    layers = tuple(max(layer for block, layer in found if block == number) for number in sorted(dict(found)))
    return {
        "mels": enter.shape[1] * 8 // len(first), "embedding": len(out), "head": len(first), "width": len(enter),
        "growth": len(local), "squeeze": local.shape[1] // len(local), "layers": layers,
        "dilations": tuple(official.get("dilations", (1,) + (2,) * (len(layers) - 1))),
    }  # fmt: skip


def looks(graph: Graph) -> bool:
    """Whether an ONNX graph is CAM++'s."""
    return any(node.path.endswith("xvector.tdnn.linear") for node in graph.nodes)


def from_graph(graph: Graph) -> tuple[dict[str, Tensor], dict]:
    """(tensors under their official names, what else the graph tells of the config)."""
    official: dict[str, Tensor] = {}
    for node, given in graph.uses():
        tensors = [tensor for _, tensor in given]
        if node.op == "BatchNormalization":
            four = [graph.tensors[name] for name in node.inputs[1:5]]
            official |= {f"{node.path}.{leaf}": tensor for leaf, tensor in zip(_NORM, four, strict=False)}
            official[f"{node.path}.num_batches_tracked"] = torch.tensor(0)
        elif node.op == "Conv":
            official[f"{node.path}.weight"] = tensors[0]
            if len(tensors) > 1 and not (norm := _behind(node.path)):
                official[f"{node.path}.bias"] = tensors[1]
            elif len(tensors) > 1:
                official |= {f"{norm}.{leaf}": tensor for leaf, tensor in _adding(tensors[1]).items()}
    official.pop("xvector.dense.nonlinear.batchnorm.weight", None)  # constants of a norm without weights
    official.pop("xvector.dense.nonlinear.batchnorm.bias", None)
    dilations = [next((node.attributes.get("dilations", [1])[0] for node in graph.nodes
                       if node.path == f"xvector.block{block}.tdnnd1.cam_layer.linear_local"), None)
                 for block in range(1, 10)]  # fmt: skip
    return official, {"dilations": [dilation for dilation in dilations if dilation is not None]}


def _behind(path: str) -> str | None:
    if re.fullmatch(BIASED, path):
        return None
    return next((re.sub(pattern, norm, path) for pattern, norm in BEHIND if re.fullmatch(pattern, path)), None)


def _adding(bias: Tensor) -> dict[str, Tensor]:
    """A batch norm that adds: variance 1 with eps, mean -bias."""
    one = torch.ones_like(bias)
    return {"weight": one, "bias": torch.zeros_like(bias), "running_mean": -bias, "running_var": one - EPS,
            "num_batches_tracked": torch.tensor(0)}  # fmt: skip


def missing(official: Mapping[str, Tensor]) -> list[str]:
    """Names that a whole network of this depth has and these tensors lack."""
    dense = sorted({m[0] for name in official if (m := re.match(r"xvector\.block\d+\.tdnnd\d+", name))})
    transits = sorted({m[1] for name in dense if (m := re.match(r"xvector\.block(\d+)", name))})
    stages = [f"head.layer{stage}.{place}" for stage in (1, 2) for place in (0, 1)]
    narrow = [f"xvector.transit{number}" for number in transits]
    rooms = {"head.layer{}.{}": stages, _DENSE[0]: dense, "xvector.transit{}": narrow}
    wanted = []
    for table, leaves in ((CONVOLUTIONS, ("weight",)), (NORMS, ("running_mean", "running_var"))):
        for name in table:
            room = next((start for start in rooms if name.startswith(start)), None)
            whole = [name] if room is None else [name.replace(room, place) for place in rooms[room]]
            if "shortcut" in name:
                whole = [one for one in whole if ".0.shortcut" in one]
            wanted += [f"{one}.{leaf}" for one in whole for leaf in leaves]
    return [name for name in wanted if name not in official]
