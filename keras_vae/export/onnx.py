"""The decoder as an ONNX file, for onnxruntime in any language."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import numpy as np
import onnx
import onnx.compose
import tensorflow as tf
import tf2onnx

from keras_vae.export import graph, quantization, seal
from keras_vae.export.errors import ExportError, VerificationError
from keras_vae.export.files import aside, check_parent
from keras_vae.export.formats import LATENTS, NOISE
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
        prior: Keras layer, for a generator, noise to image. It computes in float32 in any case.
        precision: what the file computes in; its input and output are float32 in any case.
        calibration: latents (count, latent_dim) to find ranges of values with, for int8.
    """
    model = converted(decoder)
    if precision == "float16":
        model = quantization.to_float16(model)
    elif precision == "int8":
        assert calibration is not None
        model = quantization.to_int8(model, calibration)
    graph.tidy(model.graph)  # which puts nodes in order too
    if prior is not None:
        model = with_prior(model, prior)
        graph.tidy(model.graph, "generator")
    shapes = {"latent_dim": str(decoder.input_shape[1]), "image_shape": json.dumps(list(decoder.output_shape[1:]))}
    save(model, path, {**shapes, **metadata})


def save(model: onnx.ModelProto, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes a model with metadata and its checksum in the file."""
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(seal.seal_onnx(model.SerializeToString(deterministic=True)))


def check_file(path: Path) -> None:
    """Refuses, before any work, a path that no ONNX file can be put at.

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
        path: that passed `check_file`.
        name: of the network, in messages.
        write: writes it to a path, with metadata.
        difference: the largest from Keras, of the file at a path, relative to values above 1.
        tolerance: the largest that passes.
        metadata: entries for the file.

    Returns:
        The difference that was found.

    Raises:
        VerificationError: the file differs from Keras by more; what was there stays.
    """
    with aside(path) as new:
        write(new, {"format_version": str(seal.FORMAT_VERSION), **(metadata or {})})
        found = difference(new)
        if not found <= tolerance:
            raise VerificationError(f"{path} was not written: the {name} differs from Keras by {found:.2g}")
        replace(new, path)
    return found


def converted(decoder: keras.Model, pixels_in_blocks: bool = True) -> onnx.ModelProto:
    """A float32 decoder as an ONNX model, z to image, with a free batch.

    Args:
        decoder: Keras model.
        pixels_in_blocks: as `graph.clean`.
    """
    model = converted_layer(decoder, LATENTS, "image", decoder.input_shape[1:], decoder.output_shape[1:])
    graph.clean(model, pixels_in_blocks)
    return model


def with_prior(decoder: onnx.ModelProto, prior: keras.layers.Layer | None) -> onnx.ModelProto:
    """The generator, noise to image: a prior in front of a decoder, of any precision; without one, the decoder."""
    if prior is None:
        return decoder
    (row,) = [tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]) for value in decoder.graph.input]
    first = converted_layer(prior, NOISE, LATENTS, row, row)
    first = onnx.compose.add_prefix(first, "prior_", rename_inputs=False, rename_outputs=False)
    first.ir_version = decoder.ir_version
    return onnx.compose.merge_models(first, decoder, io_map=[(LATENTS, LATENTS)])


def converted_layer(
    layer: keras.layers.Layer, given: str, made: str, given_row: tuple[int, ...], made_row: tuple[int, ...]
) -> onnx.ModelProto:
    """A Keras layer as an ONNX model with a free batch, its input and output named, with the shapes of their rows."""
    spec = tf.TensorSpec((None, *given_row), tf.float32, name=given)
    function = tf.function(lambda x: {made: layer(x, training=False)}, input_signature=[spec], autograph=False)
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    model, _ = tf2onnx.convert.from_function(function, input_signature=[spec], opset=OPSET)
    for value, name, row in ((model.graph.input[0], given, given_row), (model.graph.output[0], made, made_row)):
        if value.name != name:
            raise AssertionError(f"tf2onnx named {value.name!r} what we call {name!r}")
        value.CopyFrom(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [graph.BATCH, *row]))
    return model
