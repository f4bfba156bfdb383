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
from keras_vae.export.formats import CONDITION, LATENTS, NOISE
from keras_vae.export.generator import as_inputs, inputs_of
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
    calibration: tuple[np.ndarray, ...] | None = None,
) -> None:
    """Writes a float32 decoder as ONNX, z and conditions to image, with its shapes, `metadata` and checksum in it.

    Args:
        decoder: Keras model.
        path: the .onnx file.
        metadata: further entries.
        prior: Keras layer; with it the file is a generator, noise and conditions to image.
        precision: what the decoder computes in. What is around it always computes in float32: the prior, and the
            rounding to uint8.
        calibration: for int8, latents (count, latent_dim), and conditions (count, names), from which the ranges of
            values are found.
    """
    model = converted(decoder)
    if precision == "float16":
        model = onnx_quantization.to_float16(model)
    elif precision == "int8":
        assert calibration is not None
        model = onnx_quantization.to_int8(model, dict(zip(inputs_of(decoder), calibration, strict=True)))
    onnx_graph.tidy(model.graph)  # also puts nodes in order
    model = completed(model, decoder, prior)
    onnx_graph.tidy(model.graph, "decoder" if prior is None else "generator")
    shapes = {"latent_dim": str(decoder.inputs[0].shape[1]), "image_shape": json.dumps(list(decoder.output_shape[1:]))}
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
    """A float32 decoder as an ONNX model, z and conditions to float32 image, batch free: still to be `completed`.

    Args:
        decoder: Keras model; that it may round its images is left out.
        pixels_in_blocks: as `onnx_graph.clean`.
    """
    floats = before_rounding(decoder)

    def decode(*rows: Any) -> dict[str, Any]:
        return {"image": floats(as_inputs(rows), training=False)}

    model = converted_function(decode, inputs_of(floats), {"image": floats.output_shape[1:]})
    onnx_graph.clean(model, pixels_in_blocks)
    return model


def completed(model: onnx.ModelProto, decoder: keras.Model, prior: keras.layers.Layer | None) -> onnx.ModelProto:
    """A converted decoder of any precision, with what is around it: rounding, if the decoder rounds, and a prior.

    Args:
        model: what `converted` made of the decoder.
        decoder: Keras model.
        prior: Keras layer; with it this is a generator, noise and conditions to image.
    """
    if before_rounding(decoder) is not decoder:
        _round_to_uint8(model.graph)
    if prior is None:
        return model
    apart = f"prior_{CONDITION}"  # until they are one graph, which has no two inputs of one name
    rows = {apart if name == CONDITION else name: row for name, row in inputs_of(decoder, NOISE).items()}
    first = converted_prior(prior, rows)
    first = onnx.compose.add_prefix(first, "prior_", rename_inputs=False, rename_outputs=False)
    first.ir_version = model.ir_version
    merged = onnx.compose.merge_models(first, model, io_map=[(LATENTS, LATENTS)])
    onnx_nodes.replace_input(merged.graph, apart, CONDITION)
    return merged


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


def converted_prior(prior: keras.layers.Layer, given: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """A prior as an ONNX model with a free batch, to z: names and row shapes of what it takes."""
    return converted_function(lambda *rows: {LATENTS: prior(*rows)}, given, {LATENTS: next(iter(given.values()))})


def converted_function(
    function: Callable[..., Mapping[str, Any]],
    given: Mapping[str, tuple[int, ...]],
    made: Mapping[str, tuple[int, ...]],
    operators: Mapping[str, Any] | None = None,
) -> onnx.ModelProto:
    """A function of tensors as an ONNX model with a free batch.

    Args:
        function: from float32 tensors, one after the other, to float32 tensors by name.
        given: names of the inputs, and the shapes of their rows.
        made: names of the outputs, and the shapes of their rows.
        operators: handlers of operators that tf2onnx does not know, as it takes them.
    """
    specs = [tf.TensorSpec((None, *row), tf.float32, name=name) for name, row in given.items()]
    traced = tf.function(function, input_signature=specs, autograph=False)
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    model, _ = tf2onnx.convert.from_function(
        traced, input_signature=specs, opset=OPSET, custom_op_handlers=dict(operators or {})
    )
    graph = model.graph
    inputs, outputs = ([value.name for value in values] for values in (graph.input, graph.output))
    if not set(inputs) <= set(given) or set(outputs) != set(made):
        raise AssertionError(f"tf2onnx names {[*inputs, *outputs]} what we call {[*given, *made]}")
    del graph.input[:], graph.output[:]  # it leaves out inputs that make no difference
    for values, names, rows in ((graph.input, given, given), (graph.output, outputs, made)):
        values.extend(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [onnx_graph.BATCH, *rows[name]])
            for name in names
        )
    return model


def log1p(context: Any, node: Any, name: str, _: Any) -> None:
    """log(1 + x): tf2onnx 1.17 does not know it, and ONNX has no such operator. A handler, as it takes them."""
    one = context.make_const(f"{name}_one", np.array(1.0, np.float32)).output[0]
    added = context.make_node("Add", [node.input[0], one]).output[0]
    context.replace_input(node, node.input[0], added, 0)
    node.type = "Log"
