"""The decoder as an ONNX file, for onnxruntime in any language."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnx.compose
import tensorflow as tf
import tf2onnx

from keras_vae.export import seal
from keras_vae.export.errors import ExportError, VerificationError
from keras_vae.export.files import aside, check_parent
from keras_vae.export.formats import LATENTS, NOISE
from keras_vae.export.output import before_rounding
from keras_vae.export.writers import onnx_graph, onnx_nodes, onnx_quantization
from keras_vae.support.files import replace

OPSET = 18


def write(
    decoder: keras.Model,
    path: Path,
    metadata: Mapping[str, str],
    prior: keras.layers.Layer | None = None,
    precision: str = "float32",
    calibration: np.ndarray | None = None,
) -> None:
    """Writes a float32 decoder as ONNX, z to image, with its shapes, `metadata` and checksum in the file.

    Args:
        decoder: Keras model.
        path: the .onnx file.
        metadata: further entries.
        prior: Keras layer; with it the file is a generator, noise to image.
        precision: what the decoder computes in. What is around it always computes in float32: the prior, and the
            rounding to uint8.
        calibration: for int8, latents (count, latent_dim) from which the ranges of values are found.
    """
    model = converted(decoder)
    if precision == "float16":
        model = onnx_quantization.to_float16(model)
    elif precision == "int8":
        assert calibration is not None
        model = onnx_quantization.to_int8(model, calibration)
    onnx_graph.tidy(model.graph)  # also puts nodes in order
    model = completed(model, decoder, prior)
    onnx_graph.tidy(model.graph, "decoder" if prior is None else "generator")
    shapes = {"latent_dim": str(decoder.input_shape[1]), "image_shape": json.dumps(list(decoder.output_shape[1:]))}
    save(model, path, {**shapes, **metadata})


def save(model: onnx.ModelProto, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes a model with metadata and its checksum in the file."""
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(seal.seal_onnx(model.SerializeToString(deterministic=True)))


def check_file(path: Path) -> None:
    """Refuses, before any work is done, a path at which no ONNX file can be written.

    Raises:
        ExportError: it is refused.
    """
    if path.suffix != ".onnx" or path.is_dir():
        raise ExportError(f"{path}: name a file that ends in .onnx")
    check_parent(path)


def put(
    path: Path,
    name: str,
    write: Callable[[Path, dict[str, str]], None],
    difference: Callable[[Path], float],
    tolerance: float,
    metadata: Mapping[str, str] | None,
) -> float:
    """Writes a network aside, compares it with Keras's, and puts it in place.

    Args:
        path: checked by `check_file`.
        name: of the network, in messages.
        write: writes the network to a path, with metadata.
        difference: finds the `relative_difference` of the file at a path from Keras.
        tolerance: the largest difference allowed.
        metadata: entries for the file.

    Returns:
        The difference that was found.

    Raises:
        VerificationError: the file differs from Keras by more; what was at `path` is still there.
    """
    with aside(path) as new:
        write(new, {"format_version": str(seal.FORMAT_VERSION), **(metadata or {})})
        found = difference(new)
        if not found <= tolerance:
            raise VerificationError(f"{path} was not written: the {name} differs from Keras by {found:.2g}")
        replace(new, path)
    return found


def converted(decoder: keras.Model, pixels_in_blocks: bool = True) -> onnx.ModelProto:
    """A float32 decoder as an ONNX model, z to float32 image, with a free batch: still to be `completed`.

    Args:
        decoder: Keras model; that it may round its images is left out.
        pixels_in_blocks: as `onnx_graph.clean`.
    """
    floats = before_rounding(decoder)
    model = converted_layer(floats, LATENTS, "image", floats.input_shape[1:], floats.output_shape[1:])
    onnx_graph.clean(model, pixels_in_blocks)
    return model


def completed(model: onnx.ModelProto, decoder: keras.Model, prior: keras.layers.Layer | None) -> onnx.ModelProto:
    """A converted decoder of any precision, with what is around it: rounding, if the decoder rounds, and a prior.

    Args:
        model: what `converted` made of the decoder.
        decoder: Keras model.
        prior: Keras layer; with it this is a generator, noise to image.
    """
    if before_rounding(decoder) is not decoder:
        _round_to_uint8(model.graph)
    if prior is None:
        return model
    row = decoder.input_shape[1:]
    first = converted_layer(prior, NOISE, LATENTS, row, row)
    first = onnx.compose.add_prefix(first, "prior_", rename_inputs=False, rename_outputs=False)
    first.ir_version = model.ir_version
    return onnx.compose.merge_models(first, model, io_map=[(LATENTS, LATENTS)])


def _round_to_uint8(graph: onnx.GraphProto) -> None:
    """Adds what `keras_vae.export.output.ToUint8` does; Round takes ties to even, Cast wraps what was not clipped."""
    for node in graph.node:
        node.output[:] = ["values" if name == "image" else name for name in node.output]
    low, high, levels = (
        onnx_nodes.constant(graph, name, np.array(value, np.float32))
        for name, value in (("low", 0.0), ("high", 1.0), ("levels", 255.0))
    )
    make = onnx.helper.make_node
    graph.node.extend(
        [
            make("Clip", ["values", low, high], ["clipped"]),
            make("Mul", ["clipped", levels], ["scaled"]),
            make("Round", ["scaled"], ["rounded"]),
            make("Cast", ["rounded"], ["image"], to=onnx.TensorProto.UINT8),
        ]
    )
    graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8


def converted_layer(
    layer: keras.layers.Layer, given: str, made: str, given_row: tuple[int, ...], made_row: tuple[int, ...]
) -> onnx.ModelProto:
    """A Keras layer as an ONNX model with a free batch: names and row shapes of its input and output."""
    return converted_function(lambda x: {made: layer(x, training=False)}, given, given_row, {made: made_row})


def converted_function(
    function: Callable[[Any], Mapping[str, Any]],
    given: str,
    given_row: tuple[int, ...],
    made: Mapping[str, tuple[int, ...]],
    operators: Mapping[str, Any] | None = None,
) -> onnx.ModelProto:
    """A function of one tensor as an ONNX model with a free batch.

    Args:
        function: from a float32 tensor (batch, *given_row) to float32 tensors by name.
        given: name of the input.
        given_row: shape of one row of it.
        made: names of the outputs, and the shapes of their rows.
        operators: handlers of operators that tf2onnx does not know, as it takes them.
    """
    spec = tf.TensorSpec((None, *given_row), tf.float32, name=given)
    traced = tf.function(function, input_signature=[spec], autograph=False)
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    model, _ = tf2onnx.convert.from_function(
        traced, input_signature=[spec], opset=OPSET, custom_op_handlers=dict(operators or {})
    )
    rows = {given: given_row, **made}
    values = [*model.graph.input, *model.graph.output]
    if {value.name for value in values} != set(rows):
        raise AssertionError(f"tf2onnx names {[value.name for value in values]} what we call {[*rows]}")
    for value in values:
        dims = [onnx_graph.BATCH, *rows[value.name]]
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, dims))
    return model


def relative_difference(found: Any, wanted: Any) -> float:
    """The largest difference of two arrays, relative to wanted values whose magnitude is above 1."""
    wanted = np.asarray(wanted)
    return float((np.abs(np.asarray(found) - wanted) / np.maximum(1.0, np.abs(wanted))).max())


def log1p(context: Any, node: Any, name: str, _: Any) -> None:
    """log(1 + x): tf2onnx 1.17 does not know it, and ONNX has no such operator. A handler, as it takes them."""
    one = context.make_const(f"{name}_one", np.array(1.0, np.float32)).output[0]
    added = context.make_node("Add", [node.input[0], one]).output[0]
    context.replace_input(node, node.input[0], added, 0)
    node.type = "Log"
