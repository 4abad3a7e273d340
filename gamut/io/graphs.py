"""ONNX files as the weights in them: which tensor belongs to which module is told by the nodes that use it.

Exporters keep a module's path in the names of its nodes (`/blocks.0/attn/query/MatMul`), while the tensors themselves
are often anonymous (`onnx::MatMul_123`), turned (a linear layer's), or folded together (a convolution and the batch
norm behind it).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Node(NamedTuple):
    """One operation: the module it stands in (`blocks.0.attn.query`), its own name there (`MatMul`, `Add_1`), its kind,
    the names of its inputs, and its attributes."""

    path: str
    name: str
    op: str
    inputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Graph:
    """Nodes in order, and tensors by name: those stored, constants, and what is a stored one turned or renamed."""

    nodes: tuple[Node, ...]
    tensors: dict[str, Tensor]

    def uses(self) -> Iterator[tuple[Node, list[tuple[str, Tensor]]]]:
        """Every node that has stored numbers among its inputs, with those: (name, tensor), single numbers left out."""
        for node in self.nodes:
            given = [(name, self.tensors[name]) for name in node.inputs if name in self.tensors]
            if given := [(name, t) for name, t in given if t.is_floating_point() and t.numel() > 1]:
                yield node, given


def read_graph(file: str | Path) -> Graph:
    """An ONNX file.

    Raises:
        ValueError: no such file, not ONNX, or the `onnx` package is not installed.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise ValueError(f"reading '{file}' needs the onnx package: pip install gamut[convert]") from error
    if not Path(file).is_file():
        raise ValueError(f"'{file}' not found; give the path of an .onnx file")
    try:
        graph = onnx.load(str(file)).graph
    except Exception as error:  # protobuf's own errors, and those of tensors kept in a file beside it
        raise ValueError(f"'{file}' is truncated or no ONNX file ({str(error)[:200]}); download it again") from error
    if not graph.node:
        raise ValueError(f"'{file}' holds no graph: got {Path(file).stat().st_size:,} bytes; download it again")

    def tensor(stored: Any) -> Tensor:
        return torch.from_numpy(numpy_helper.to_array(stored).copy())

    tensors = {stored.name: tensor(stored) for stored in graph.initializer}
    nodes = []
    for raw in graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in raw.attribute}
        if raw.op_type == "Constant" and "value" in attributes:
            tensors[raw.output[0]] = tensor(attributes["value"])
        elif raw.op_type in ("Identity", "Transpose") and raw.input[0] in tensors:
            whole = tensors[raw.input[0]]
            order = attributes.get("perm", range(whole.ndim)[::-1])
            tensors[raw.output[0]] = whole if raw.op_type == "Identity" else whole.permute(*order)
        else:
            path, name = place(raw.name or raw.output[0].removesuffix("_output_0"))
            nodes.append(Node(path, name, raw.op_type, tuple(raw.input), attributes))
    return Graph(tuple(nodes), tensors)


def place(name: str) -> tuple[str, str]:
    """A node's module and its name there; what stands in a list is named after the list, which is then left out.

    >>> place("/blocks.0/mlp/mlp.0/MatMul"), place("/conv1/Conv"), place("Add_3")
    (('blocks.0.mlp.0', 'MatMul'), ('conv1', 'Conv'), ('', 'Add_3'))
    """
    *parts, last = name.strip("/").split("/")
    kept = [part for part, after in pairwise([*parts, ""]) if not after.startswith(f"{part}.")]
    return ".".join(kept), last
