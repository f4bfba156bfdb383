"""Repeated edges in a decoder's ONNX graph: as one operation, and no more often than needed."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from keras_vae.export.writers import onnx_nodes

ALL_ROUND = [0, 1, 1, 0, 0, 1, 1, 0]  # pads of one pixel, channels last


def concats_to_pads(graph: onnx.GraphProto) -> None:
    """The first and last row in front of an image and behind it, then the columns, become a Pad of mode edge."""
    constants, uses = onnx_nodes.constants(graph), onnx_nodes.uses(graph)
    makers = {node.output[0]: node for node in graph.node}

    def is_end(name: str, source: str, axis: int, place: int) -> bool:
        node = makers.get(name)
        if node is None or node.op_type != "Slice" or node.input[0] != source or len(node.input) != 4:
            return False
        start, end, cut = (constants[each].tolist() if each in constants else [] for each in node.input[1:])
        return cut == [axis] and start == [place] and (end == [1] if place == 0 else end[0] >= np.iinfo(np.int32).max)

    def source_of(node: onnx.NodeProto | None, axis: int) -> str:
        """What the node repeats the ends of; empty if it does not."""
        if node is None or (node.op_type, len(node.input)) != ("Concat", 3):
            return ""
        if onnx_nodes.attribute(node, "axis") != axis:
            return ""
        first, source, last = node.input
        return source if is_end(first, source, axis, 0) and is_end(last, source, axis, -1) else ""

    for columns in list(graph.node):
        rows = source_of(columns, 2)
        source = source_of(makers.get(rows), 1)
        if source and uses[rows] == 3:
            pads = onnx_nodes.constant(graph, f"{columns.output[0]}_pads", np.array(ALL_ROUND, np.int64))
            columns.CopyFrom(helper.make_node("Pad", [source, pads], [columns.output[0]], mode="edge"))


def drop_repeated_edges(model: onnx.ModelProto) -> None:
    """Drops a crop of one pixel all round and the Pad of mode edge behind it, where the image repeats its edges anyway.

    So does the result of an upsampling and convolution that are one 2x2 convolution of an image with repeated edges: at
    the edge it sees the same row twice, and the weights of the two, added up, are alike for the two rows of pixels that
    it makes there.
    """
    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in inferred.value_info}
    constants = onnx_nodes.constants(graph)
    makers = {node.output[0]: node for node in graph.node}
    pads = [
        node
        for node in graph.node
        if onnx_nodes.pads_edges(node) and np.array_equal(constants.get(node.input[1], []), ALL_ROUND)
    ]
    repeating = {pad.output[0] for pad in pads}

    def crops_one(node: onnx.NodeProto | None) -> bool:
        if node is None or node.op_type != "Slice" or any(each not in constants for each in node.input[1:]):
            return False
        starts, ends, axes = (constants[each].tolist() for each in node.input[1:4])
        sides = shapes.get(node.input[0], [])
        return len(sides) == 4 and (starts, axes) == ([1, 1], [1, 2]) and ends == [side - 1 for side in sides[1:3]]

    def behind(name: str, kind: str) -> str:
        """The value before the nodes of this kind."""
        while name in makers and makers[name].op_type in (kind, *onnx_nodes.ELEMENTWISE):
            name = makers[name].input[0]
        return name

    def repeats(name: str) -> bool:
        return name in repeating or (
            name in makers and makers[name].op_type == "Transpose" and makers[name].input[0] in repeating
        )

    for pad in pads:
        crop = makers.get(pad.input[0])
        if crop is None or not crops_one(crop):
            continue
        turn = makers.get(crop.input[0])
        if turn is None or turn.op_type != "Transpose" or onnx_nodes.permutation(turn) != onnx_nodes.FORTH:
            continue
        conv = makers.get(behind(turn.input[0], "DepthToSpace"))
        if conv is not None and conv.op_type == "Conv" and repeats(conv.input[0]) and _repeats_edges(conv, constants):
            pixels = crop.input[0]
            repeating.add(pixels)
            for node in graph.node:
                node.input[:] = [pixels if each == pad.output[0] else each for each in node.input]


def _repeats_edges(conv: onnx.NodeProto, constants: dict[str, np.ndarray]) -> bool:
    """Whether a convolution makes 2x2 pixels a place, of which the outer ones are equal where it sees equal ones."""
    weights = constants.get(conv.input[1], np.zeros(0))
    biases = constants.get(conv.input[2]) if len(conv.input) > 2 else np.zeros(len(weights))
    moves = {each.name: {*each.ints, each.i} for each in conv.attribute if each.name != "kernel_shape"}
    is_plain = all(moves.get(name, {1}) <= {0, 1} for name in ("strides", "dilations", "group"))
    if (
        weights.shape[2:] != (2, 2)
        or len(weights) % 4
        or biases is None
        or not is_plain
        or moves.get("pads", {0}) != {0}
    ):
        return False
    # The pixel's row and column, filter, channel, and which of the two rows and columns that are seen.
    pixels = weights.reshape(2, 2, len(weights) // 4, -1, 2, 2)
    rows, columns, bias = pixels.sum(4), pixels.sum(5), biases.reshape(4, -1)
    pairs = ((rows[0], rows[1]), (columns[:, 0], columns[:, 1]), (bias[:1], bias))
    return all(np.allclose(one, other, rtol=0, atol=4e-6 * np.abs(one).max(initial=0)) for one, other in pairs)
