"""The decoder as an ONNX file, for onnxruntime in any language."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
import onnx
import tf2onnx

from keras_vae.export import graph, quantization, seal
from keras_vae.export.saved_model import serving_function

OPSET = 18


def write(
    decoder: keras.Model,
    path: Path,
    metadata: Mapping[str, str],
    precision: str = "float32",
    calibration: np.ndarray | None = None,
) -> None:
    """Writes a float32 decoder as ONNX, z to image, with its shapes, `metadata` and checksum in the file.

    Args:
        decoder: Keras model.
        path: the .onnx file.
        metadata: further entries.
        precision: what the file computes in; its input and output are float32 in any case.
        calibration: latents (count, latent_dim) to find ranges of values with, for int8.
    """
    model = converted(decoder)
    if precision == "float16":
        model = quantization.to_float16(model)
    elif precision == "int8":
        assert calibration is not None
        model = quantization.to_int8(model, calibration)
    graph.tidy(model.graph)
    onnx.helper.set_model_props(
        model,
        {
            "latent_dim": str(decoder.input_shape[1]),
            "image_shape": json.dumps(list(decoder.output_shape[1:])),
            **metadata,
        },
    )
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(seal.seal_onnx(model.SerializeToString(deterministic=True)))


def converted(decoder: keras.Model, pixels_in_blocks: bool = True) -> onnx.ModelProto:
    """A float32 decoder as an ONNX model, z to image, with a free batch.

    Args:
        decoder: Keras model.
        pixels_in_blocks: as `graph.clean`.
    """
    function = serving_function(decoder)
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    model, _ = tf2onnx.convert.from_function(function, input_signature=function.input_signature, opset=OPSET)
    for value, name, shape in (
        (model.graph.input[0], "z", decoder.input_shape[1:]),
        (model.graph.output[0], "image", decoder.output_shape[1:]),
    ):
        if value.name != name:
            raise AssertionError(f"tf2onnx named {value.name!r} what we call {name!r}")
        dims = [graph.BATCH, *shape]
        value.CopyFrom(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims))
    graph.clean(model, pixels_in_blocks)
    return model
