"""What is asked of an ONNX graph's nodes, and constants added to it."""

from __future__ import annotations

import collections

import numpy as np
import onnx
from onnx import numpy_helper

ELEMENTWISE = frozenset({"LeakyRelu", "Relu", "Sigmoid", "Tanh", "Elu", "Softplus", "Clip"})
FORTH, BACK = [0, 2, 3, 1], [0, 3, 1, 2]  # channels last, and first again


def constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    return {each.name: numpy_helper.to_array(each) for each in graph.initializer}


def uses(graph: onnx.GraphProto) -> collections.Counter[str]:
    return collections.Counter(name for node in graph.node for name in node.input) + collections.Counter(
        value.name for value in graph.output
    )


def attribute(node: onnx.NodeProto, name: str, default: int = 0) -> int:
    return next((each.i for each in node.attribute if each.name == name), default)


def pads_edges(node: onnx.NodeProto) -> bool:
    return node.op_type == "Pad" and any(each.name == "mode" and each.s == b"edge" for each in node.attribute)


def constant(graph: onnx.GraphProto, name: str, value: np.ndarray) -> str:
    graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def replace_input(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Nodes take an input in the place of another, which is dropped."""
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
    kept = [value for value in graph.input if value.name != old]
    del graph.input[:]
    graph.input.extend(kept)


def permutation(node: onnx.NodeProto) -> list[int]:
    return list(next(each.ints for each in node.attribute if each.name == "perm"))
