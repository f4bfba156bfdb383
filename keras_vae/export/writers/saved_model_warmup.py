"""Requests that TF Serving runs when it loads a model, so that the first user's is not the slow one.

A file of PredictionLog records, as tensorflow/serving's saved_model_warmup documents it. They are encoded here, field
by field, because their Python classes (tensorflow-serving-api) bring gRPC along.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf

FILE = "tf_serving_warmup_requests"  # in assets.extra


def write(path: Path, requests: list[tuple[str, Mapping[str, tf.Tensor]]]) -> None:
    """Writes requests, each of a signature's name and its inputs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests:
            writer.write(prediction_log(signature, inputs))


def prediction_log(signature: str, inputs: Mapping[str, tf.Tensor]) -> bytes:
    """A serialized PredictionLog of one PredictRequest."""
    model_spec = _field(3, signature.encode())  # ModelSpec.signature_name; the server knows which model it loads
    request = _field(1, model_spec)
    for name, value in inputs.items():
        entry = _field(1, name.encode()) + _field(2, tf.make_tensor_proto(value).SerializeToString(deterministic=True))
        request += _field(2, entry)  # PredictRequest.inputs, a map
    return _field(6, _field(1, request))  # PredictionLog.predict_log, PredictLog.request


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
