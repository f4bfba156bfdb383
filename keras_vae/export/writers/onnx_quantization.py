"""ONNX decoders of lower precision: half the size in float16, a quarter in int8."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16

BATCH = 32


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in float16, its input and output in float32 as before."""
    return convert_float_to_float16(model, keep_io_types=True)


def to_int8(model: onnx.ModelProto, rows: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The model with int8 weights, by channel, and uint8 values, whose ranges are those that rows of inputs lead to."""
    with tempfile.TemporaryDirectory() as folder, _without_advice():
        source, target = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        quantize_static(
            source,
            target,
            _Batches({name: values.astype(np.float32) for name, values in rows.items()}),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(target)


class _Batches(CalibrationDataReader):
    def __init__(self, rows: Mapping[str, np.ndarray]) -> None:
        starts = range(0, len(next(iter(rows.values()))), BATCH)
        self._batches = iter([{name: each[start : start + BATCH] for name, each in rows.items()} for start in starts])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._batches, None)


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Keeps its advice to clean the graph first, which has been done, out of the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
