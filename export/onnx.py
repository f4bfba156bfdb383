"""The decoder as an ONNX file, for onnxruntime in any language."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import keras
import onnx
import tf2onnx

from export import graph
from export.rewrite import rewrite
from export.runtime import Decoder
from export.saved_model import serving_function
from export.verify import Runner

OPSET = 18
BATCH = "batch"


def write(decoder: keras.Model, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes a float32 decoder as ONNX, z to image, with its shapes and `metadata` in the file."""
    function = serving_function(rewrite(decoder))
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    model, _ = tf2onnx.convert.from_function(function, input_signature=function.input_signature, opset=OPSET)
    latent_dim, image_shape = decoder.input_shape[1], list(decoder.output_shape[1:])
    for value, name, shape in (
        (model.graph.input[0], "z", [latent_dim]),
        (model.graph.output[0], "image", image_shape),
    ):
        if value.name != name:
            raise AssertionError(f"tf2onnx named {value.name!r} what we call {name!r}")
        dims = [BATCH, *shape]
        value.CopyFrom(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims))
    graph.clean(model)
    onnx.helper.set_model_props(
        model, {"latent_dim": str(latent_dim), "image_shape": json.dumps(image_shape), **metadata}
    )
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def runner(path: Path) -> Runner:
    """Runs an ONNX decoder with onnxruntime, on the CPU: the one every machine has."""
    return Decoder(path, providers=["CPUExecutionProvider"]).decode
