"""Exact clean-up of the decoder's ONNX graph, and names that are the same each time."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

KEPT = ("z", "image")
ELEMENTWISE = frozenset({"LeakyRelu", "Relu", "Sigmoid", "Tanh", "Elu", "Softplus", "Clip"})


def clean(model: onnx.ModelProto) -> None:
    """Makes replication padding one operation, in the layout of the convolution after it; drops what is not used."""
    graph = model.graph
    _gathers_to_pads(graph)
    _drop_unused(graph)
    _pads_past_transposes(graph)
    _activations_first(graph)
    _drop_unused(graph)
    _rename(graph)


def _constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    return {each.name: numpy_helper.to_array(each) for each in graph.initializer}


def _uses(graph: onnx.GraphProto) -> collections.Counter[str]:
    return collections.Counter(name for node in graph.node for name in node.input) + collections.Counter(
        value.name for value in graph.output
    )


def _attribute(node: onnx.NodeProto, name: str, default: int = 0) -> int:
    return next((each.i for each in node.attribute if each.name == name), default)


def _pads_edges(node: onnx.NodeProto) -> bool:
    return node.op_type == "Pad" and any(each.name == "mode" and each.s == b"edge" for each in node.attribute)


def _permutation(node: onnx.NodeProto) -> list[int]:
    return list(next(each.ints for each in node.attribute if each.name == "perm"))


def _gathers_to_pads(graph: onnx.GraphProto) -> None:
    """Two gathers that repeat the first and the last row, then column, become a Pad of mode edge."""
    constants, uses = _constants(graph), _uses(graph)
    makers = {node.output[0]: node for node in graph.node}

    def repeats_ends(node: onnx.NodeProto | None, axis: int) -> bool:
        if node is None or node.op_type != "Gather" or _attribute(node, "axis") != axis:
            return False
        indices = constants.get(node.input[1])
        if indices is None or indices.ndim != 1 or len(indices) < 3:
            return False
        return np.array_equal(indices, np.clip(np.arange(-1, len(indices) - 1), 0, len(indices) - 3))

    for columns in list(graph.node):
        rows = makers.get(columns.input[0]) if columns.op_type == "Gather" else None
        if repeats_ends(columns, 2) and repeats_ends(rows, 1) and rows is not None and uses[rows.output[0]] == 1:
            pads = _constant(graph, f"{columns.output[0]}_pads", np.array([0, 1, 1, 0, 0, 1, 1, 0], np.int64))
            pad = helper.make_node("Pad", [rows.input[0], pads], [columns.output[0]], mode="edge")
            columns.CopyFrom(pad)


def _pads_past_transposes(graph: onnx.GraphProto) -> None:
    """Transpose, Pad, and the Transpose back become one Pad of the other layout."""
    constants, uses = _constants(graph), _uses(graph)
    makers = {node.output[0]: node for node in graph.node}
    for last in list(graph.node):
        pad = makers.get(last.input[0]) if last.op_type == "Transpose" else None
        if pad is None or not _pads_edges(pad) or uses[pad.output[0]] != 1:
            continue
        first = makers.get(pad.input[0])
        forth = _permutation(last)
        source = pad.input[0]
        before = constants[pad.input[1]].reshape(2, -1)
        pads = _constant(graph, f"{last.output[0]}_pads", before[:, forth].reshape(-1))
        if first is not None and first.op_type == "Transpose" and uses[source] == 1:
            if [_permutation(first)[axis] for axis in forth] != list(range(len(forth))):
                continue
            last.CopyFrom(helper.make_node("Pad", [first.input[0], pads], [last.output[0]], mode="edge"))
        else:
            # Turned before it is padded: the smaller image.
            turned = f"{last.output[0]}_turned"
            output = last.output[0]
            pad.CopyFrom(helper.make_node("Transpose", [source], [turned], perm=forth))
            last.CopyFrom(helper.make_node("Pad", [turned, pads], [output], mode="edge"))


def _activations_first(graph: onnx.GraphProto) -> None:
    """Puts a convolution's activation right after it, before its results are laid out as pixels: the two run as one."""
    uses = _uses(graph)
    makers = {node.output[0]: node for node in graph.node}
    for activation in list(graph.node):
        if activation.op_type not in ELEMENTWISE:
            continue
        crop = makers.get(activation.input[0])
        layout = makers.get(crop.input[0]) if crop is not None and crop.op_type == "Slice" else None
        conv = makers.get(layout.input[0]) if layout is not None and layout.op_type == "DepthToSpace" else None
        if crop is None or layout is None or conv is None or conv.op_type != "Conv":
            continue
        if any(uses[node.output[0]] != 1 for node in (crop, layout, conv)):
            continue
        # The three in the order activation, layout, crop; the last keeps the name of what comes out.
        inner, middle = f"{conv.output[0]}_active", f"{conv.output[0]}_pixels"
        moved, laid, cut = (_copied(node) for node in (activation, layout, crop))
        moved.input[0], moved.output[0] = conv.output[0], inner
        laid.input[0], laid.output[0] = inner, middle
        cut.input[0], cut.output[0] = middle, activation.output[0]
        layout.CopyFrom(moved)
        crop.CopyFrom(laid)
        activation.CopyFrom(cut)


def _constant(graph: onnx.GraphProto, name: str, value: np.ndarray) -> str:
    graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Keeps what the outputs need, in an order that follows from the graph alone: tf2onnx's is another each time."""
    makers = {name: node for node in graph.node for name in node.output}
    ordered: list[onnx.NodeProto] = []
    placed: set[int] = set()
    wanted = [(value.name, False) for value in reversed(graph.output)]
    while wanted:
        name, inputs_placed = wanted.pop()
        node = makers.get(name)
        if node is None or id(node) in placed:
            continue
        if inputs_placed:
            placed.add(id(node))
            ordered.append(node)
        else:
            wanted.append((name, True))
            wanted.extend((each, False) for each in reversed(node.input))
    used = {name for node in ordered for name in node.input} | {value.name for value in graph.output}
    kept = [_copied(each) for each in graph.initializer if each.name in used]
    nodes = [_copied(node) for node in ordered]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


def _copied(message: Any) -> Any:
    """A copy that outlives the list it is in."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _rename(graph: onnx.GraphProto) -> None:
    """Names by place: tf2onnx and Keras count up those of a whole process."""
    names: dict[str, str] = {name: name for name in KEPT}
    constants = {each.name for each in graph.initializer}
    for node in graph.node:
        for name in node.input:
            if name in constants and name not in names:
                names[name] = f"weight_{len(names) - len(KEPT)}"
        for name in node.output:
            names.setdefault(name, f"value_{len(names) - len(KEPT)}")
    for number, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{number}"
        for field in (node.input, node.output):
            renamed = [names.get(name, name) for name in field]
            del field[:]
            field.extend(renamed)
    by_name = {names[each.name]: each for each in graph.initializer}
    ordered = []
    for name in sorted(by_name, key=lambda name: int(name.rpartition("_")[2])):
        tensor = _copied(by_name[name])
        tensor.name = name
        ordered.append(tensor)
    del graph.initializer[:]
    graph.initializer.extend(ordered)
    graph.name = "decoder"
    graph.doc_string = ""
