"""Exact clean-up of the decoder's ONNX graph, and names that are the same each time."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from keras_vae.export.writers import onnx_edges, onnx_nodes

BATCH = "batch"
LAYOUT = frozenset({"DepthToSpace", "Slice", "Transpose"})


def clean(model: onnx.ModelProto, pixels_in_blocks: bool = True) -> None:
    """Rewrites a graph as tf2onnx makes them into the same function of fewer and cheaper operations.

    Args:
        model: to change.
        pixels_in_blocks: whether DepthToSpace becomes transposes; onnxruntime is faster with them, OpenVINO slower.
    """
    graph = model.graph
    _narrow_slices(graph)
    onnx_edges.concats_to_pads(graph)
    _drop_unused(graph)
    _activations_first(graph)
    onnx_edges.drop_repeated_edges(model)
    _drop_unused(graph)
    _pads_past_transposes(graph)
    _drop_unused(graph)
    _dense_in_layout(graph)
    _drop_unused(graph)
    if pixels_in_blocks:
        _pixels_in_blocks(model)
    _drop_unused(graph)
    _constant_shapes(model)
    _take_empty_batches(graph)
    tidy(graph)


def tidy(graph: onnx.GraphProto, name: str = "decoder") -> None:
    """Drops what is not used, orders nodes so that each comes after those it takes from, and names all by place.

    Args:
        graph: to change; its inputs and outputs keep their names.
        name: of the graph.
    """
    _drop_unused(graph)
    _rename(graph, tuple(value.name for value in (*graph.input, *graph.output)))
    graph.name = name


def _narrow_slices(graph: onnx.GraphProto) -> None:
    """Slices name the axes that they cut, and no others: shape inference loses the batch otherwise."""
    constants = onnx_nodes.constants(graph)
    for node in graph.node:
        if node.op_type != "Slice" or len(node.input) > 4 or any(name not in constants for name in node.input[1:]):
            continue
        if len(node.input) == 3:
            ranks = np.arange(len(constants[node.input[1]]))
            node.input.append(onnx_nodes.constant(graph, f"{node.output[0]}_axes", ranks))
            constants[node.input[3]] = ranks
        starts, ends, axes = (constants[name] for name in node.input[1:])
        cuts = (starts != 0) | (ends < np.iinfo(np.int32).max)
        if not cuts.all() and cuts.any():
            for place, values in enumerate((starts, ends, axes), start=1):
                node.input[place] = onnx_nodes.constant(
                    graph, f"{node.output[0]}_{place}", values[cuts].astype(np.int64)
                )


def _pads_past_transposes(graph: onnx.GraphProto) -> None:
    """Transpose, Pad, and the Transpose back become one Pad of the other layout."""
    constants, uses = onnx_nodes.constants(graph), onnx_nodes.uses(graph)
    makers = {node.output[0]: node for node in graph.node}
    for last in list(graph.node):
        pad = makers.get(last.input[0]) if last.op_type == "Transpose" else None
        if pad is None or not onnx_nodes.pads_edges(pad) or uses[pad.output[0]] != 1:
            continue
        first = makers.get(pad.input[0])
        forth = onnx_nodes.permutation(last)
        source = pad.input[0]
        before = constants[pad.input[1]].reshape(2, -1)
        pads = onnx_nodes.constant(graph, f"{last.output[0]}_pads", before[:, forth].reshape(-1))
        if first is not None and first.op_type == "Transpose" and uses[source] == 1:
            if [onnx_nodes.permutation(first)[axis] for axis in forth] != list(range(len(forth))):
                continue
            last.CopyFrom(helper.make_node("Pad", [first.input[0], pads], [last.output[0]], mode="edge"))
        else:
            # Turned before it is padded: the smaller image.
            turned = f"{last.output[0]}_turned"
            output = last.output[0]
            pad.CopyFrom(helper.make_node("Transpose", [source], [turned], perm=forth))
            last.CopyFrom(helper.make_node("Pad", [turned, pads], [output], mode="edge"))


def _dense_in_layout(graph: onnx.GraphProto) -> None:
    """The columns of the dense layer at the start come in the order of the layout that is wanted: no transpose."""
    constants, uses = onnx_nodes.constants(graph), onnx_nodes.uses(graph)
    makers = {node.output[0]: node for node in graph.node}
    for transpose in list(graph.node):
        reshape = makers.get(transpose.input[0]) if transpose.op_type == "Transpose" else None
        if reshape is None or reshape.op_type != "Reshape" or onnx_nodes.permutation(transpose)[0] != 0:
            continue
        shape = constants.get(reshape.input[1])
        if shape is None or len(shape) < 2 or (shape[1:] < 1).any():
            continue
        weights: list[tuple[onnx.NodeProto, int]] = []
        node, is_dense = makers.get(reshape.input[0]), False
        uses_once = uses[reshape.output[0]] == 1
        while node is not None and uses[node.output[0]] == 1:
            if node.op_type in ("Add", "MatMul"):
                weights.append((node, 1))
                is_dense = node.op_type == "MatMul"
            elif node.op_type not in onnx_nodes.ELEMENTWISE:
                break
            if is_dense:
                break
            node = makers.get(node.input[0])
        found = [constants.get(each.input[place]) for each, place in weights]
        columns = int(np.prod(shape[1:]))
        if not (is_dense and uses_once) or any(each is None or each.shape[-1:] != (columns,) for each in found):
            continue
        forth = [axis - 1 for axis in onnx_nodes.permutation(transpose)[1:]]
        order = np.arange(columns).reshape(shape[1:]).transpose(forth).reshape(-1)
        for (each, place), weight in zip(weights, found, strict=True):
            assert weight is not None
            each.input[place] = onnx_nodes.constant(graph, f"{each.output[0]}_in_layout", weight[..., order])
        turned = np.array([shape[0], *shape[1:][forth]], np.int64)
        reshaped = [reshape.input[0], onnx_nodes.constant(graph, f"{reshape.output[0]}_in_layout", turned)]
        transpose.CopyFrom(helper.make_node("Reshape", reshaped, [transpose.output[0]]))


def _activations_first(graph: onnx.GraphProto) -> None:
    """Puts a convolution's activation right after it, before its results are laid out as pixels: the two run as one."""
    uses = onnx_nodes.uses(graph)
    makers = {node.output[0]: node for node in graph.node}
    for activation in list(graph.node):
        if activation.op_type not in onnx_nodes.ELEMENTWISE:
            continue
        layout: list[onnx.NodeProto] = []
        before = makers.get(activation.input[0])
        while before is not None and before.op_type in LAYOUT and uses[before.output[0]] == 1:
            layout.insert(0, before)
            before = makers.get(before.input[0])
        if not layout or before is None or before.op_type != "Conv" or uses[before.output[0]] != 1:
            continue
        # The same nodes in another order; the last keeps the name of what comes out.
        moved = [_copied(node) for node in (activation, *layout)]
        given, result = before.output[0], activation.output[0]
        for number, (place, node) in enumerate(zip((*layout, activation), moved, strict=True)):
            node.input[0] = given
            node.output[0] = given = result if number == len(layout) else f"{before.output[0]}_{number}"
            place.CopyFrom(node)


def _constant_shapes(model: onnx.ModelProto) -> None:
    """Shapes to reshape to as constants: the batch as it comes, which may be empty (-1 may not), and numbers.

    tf2onnx computes them from the shapes of others, operation by operation, where a network asked for its input's.
    """
    graph = model.graph
    changed = True
    while changed:  # a constant shape lets those of later values be inferred
        changed = False
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        dims = {
            value.name: list(value.type.tensor_type.shape.dim)
            for value in (*inferred.input, *inferred.value_info, *inferred.output)
            if value.type.tensor_type.HasField("shape")
        }
        constants = onnx_nodes.constants(graph)
        for node in graph.node:
            if node.op_type != "Reshape" or any(each not in dims for each in (node.input[0], node.output[0])):
                continue
            (given_batch, *given), (_, *wanted) = (
                [dim.dim_value or dim.dim_param for dim in dims[each]] for each in (node.input[0], node.output[0])
            )
            if given_batch != BATCH or any(not isinstance(each, int) for each in (*given, *wanted)):
                continue
            if np.prod(given) != np.prod(wanted):
                continue  # the batch does not stay what it is
            shape = [0, *wanted]
            if not np.array_equal(constants.get(node.input[1], []), shape):
                node.input[1] = onnx_nodes.constant(graph, f"{node.output[0]}_shape", np.array(shape, np.int64))
                changed = True


def _take_empty_batches(graph: onnx.GraphProto) -> None:
    """Where reshaping fails on an empty batch, such as einsum's of attention, runs on one row instead and drops it."""
    constants = onnx_nodes.constants(graph)
    shapes = [constants.get(node.input[1]) for node in graph.node if node.op_type == "Reshape"]
    if all(shape is not None and shape[0] == 0 for shape in shapes):
        return
    given = [value.name for value in graph.input]
    names = {name: f"{name}_rows" for name in (*given, "image")}
    for node in graph.node:
        for field in (node.input, node.output):
            renamed = [names.get(name, name) for name in field]
            del field[:]
            field.extend(renamed)
    zero = onnx_nodes.constant(graph, "zero", np.array([0], np.int64))
    make = helper.make_node
    graph.node.extend(
        [
            make("Shape", ["z"], ["z_count"], start=0, end=1),
            make("Equal", ["z_count", zero], ["is_empty"]),
            make("Cast", ["is_empty"], ["added"], to=onnx.TensorProto.INT64),
            make("Concat", [zero, zero, "added", zero], ["z_pads"], axis=0),
            *(make("Pad", [name, "z_pads"], [names[name]]) for name in given),
            make("Slice", ["image_rows", zero, "z_count", zero], ["image"]),
        ]
    )


def _pixels_in_blocks(model: onnx.ModelProto) -> None:
    """DepthToSpace as a transpose of whole rows of channels: runtimes move values of their own one by one.

    A convolution's 4C results a place are 2 rows of 2 pixels of C channels. With channels last, the 2 pixels of a row
    lie side by side already, and only rows change places.
    """
    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in inferred.value_info}
    constants, uses = onnx_nodes.constants(graph), onnx_nodes.uses(graph)
    takers = {name: node for node in graph.node for name in node.input}
    for layout in list(graph.node):
        if layout.op_type != "DepthToSpace" or onnx_nodes.attribute(layout, "blocksize") != 2:
            continue
        if any(each.name == "mode" and each.s != b"DCR" for each in layout.attribute):
            continue
        dims = shapes.get(layout.input[0], [])
        if len(dims) != 4 or not all(dims[1:]):
            continue  # of a size that only a run tells
        _, channels, height, width = dims
        crops: list[onnx.NodeProto] = []
        last = layout
        while uses[last.output[0]] == 1 and (taker := takers.get(last.output[0])) is not None:
            if taker.op_type != "Slice" or len(taker.input) < 4 or taker.input[3] not in constants:
                break
            crops.append(taker)
            last = taker
        back = takers.get(last.output[0]) if uses[last.output[0]] == 1 else None
        ends_channels_last = (
            back is not None and back.op_type == "Transpose" and onnx_nodes.permutation(back) == onnx_nodes.FORTH
        )
        name, result = layout.output[0], back.output[0] if back is not None and ends_channels_last else last.output[0]
        nodes: list[onnx.NodeProto] = []

        def add(kind: str, *inputs: str, nodes: list[onnx.NodeProto] = nodes, name: str = name, **settings: Any) -> str:
            output = f"{name}_{kind}_{len(nodes)}"
            nodes.append(helper.make_node(kind, list(inputs), [output], **settings))
            return output

        rows = onnx_nodes.constant(graph, f"{name}_rows", np.array([0, height, width, 2, channels // 2], np.int64))
        pixels = onnx_nodes.constant(
            graph, f"{name}_pixels", np.array([0, 2 * height, 2 * width, channels // 4], np.int64)
        )
        x = add("Reshape", add("Transpose", layout.input[0], perm=onnx_nodes.FORTH), rows)
        x = add("Reshape", add("Transpose", x, perm=[0, 1, 3, 2, 4]), pixels)
        for crop in crops:
            axes = np.array([onnx_nodes.FORTH.index(axis % 4) for axis in constants[crop.input[3]]], np.int64)
            x = add(
                "Slice",
                x,
                *crop.input[1:3],
                onnx_nodes.constant(graph, f"{crop.output[0]}_axes", axes),
                *crop.input[4:],
            )
        if not ends_channels_last:
            add("Transpose", x, perm=onnx_nodes.BACK)
        nodes[-1].output[0] = result
        for node in (layout, *crops, *([back] if back is not None and ends_channels_last else [])):
            graph.node.remove(node)
        graph.node.extend(nodes)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Keeps what the outputs need, in an order set by the graph alone: tf2onnx's order varies from run to run."""
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


def _rename(graph: onnx.GraphProto, kept: tuple[str, ...]) -> None:
    """Names by place: tf2onnx and Keras count up those of a whole process."""
    names: dict[str, str] = {name: name for name in kept}
    constants = {each.name for each in graph.initializer}
    for node in graph.node:
        for name in node.input:
            if name in constants and name not in names:
                names[name] = f"weight_{len(names) - len(kept)}"
        for name in node.output:
            names.setdefault(name, f"value_{len(names) - len(kept)}")
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
    graph.doc_string = ""
