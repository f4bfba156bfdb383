"""The decoder as an OpenVINO model, for Intel's chips: an .xml file and the .bin file of its weights beside it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vae.export import seal
from keras_vae.export.conditional import condition_of
from keras_vae.export.errors import ExportError, MissingRuntimeError
from keras_vae.export.formats import CONDITION, TAKEN, Opened, in_order
from keras_vae.support.quiet import quiet_stderr

if TYPE_CHECKING:
    import keras

_COMMENT = re.compile(rb"\n<!-- keras-vae (.*) -->\n$", re.DOTALL)


def write(
    decoder: keras.Model, path: Path, metadata: Mapping[str, str], prior: keras.layers.Layer | None = None
) -> None:
    """Writes a float32 decoder, or a generator, by way of ONNX, metadata and checksums in a comment at the .xml's end.

    Keras's own export takes OpenVINO's reader of TensorFlow graphs, which fails on Python 3.13 (OpenVINO 2026.4).

    Raises:
        ExportError: OpenVINO is not installed.
    """
    openvino = library()
    import onnx

    from keras_vae.export.writers.onnx import completed, converted  # what opens an artifact takes no TensorFlow

    with tempfile.TemporaryDirectory() as folder, quiet_stderr():
        source = Path(folder) / "decoder.onnx"
        onnx.save(completed(converted(decoder, pixels_in_blocks=False), decoder, prior), source)
        openvino.save_model(openvino.convert_model(source), path, compress_to_fp16=False)
    found = {".xml": seal.digest(path), ".bin": seal.digest(path.with_suffix(".bin"))}
    text = seal.manifest(metadata, found).replace("--", "-\\u002d")  # no comment may hold two dashes; JSON need not
    with path.open("ab") as file:
        file.write(f"\n<!-- keras-vae {text} -->\n".encode())


def open_decoder(path: Path, precision: str = "f32") -> Opened:
    """Loads an OpenVINO decoder, on the CPU.

    Args:
        path: the .xml file.
        precision: what it computes in: "f32", or "bf16" (OpenVINO's own choice where the chip has AMX).

    Raises:
        ExportError: OpenVINO is not installed, or a file is missing, damaged, or no decoder.
    """
    openvino = library()
    metadata = _metadata(path)
    try:
        with quiet_stderr():
            core = openvino.Core()
            model = core.read_model(path)
            compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    except RuntimeError as error:
        raise ExportError(
            f"{path} and its .bin are not a model that OpenVINO can read: copy both or export again"
        ) from error
    values = (*compiled.inputs, *compiled.outputs)
    given = in_order(name for each in compiled.inputs for name in each.names)
    if given not in TAKEN or [each.names for each in compiled.outputs] != [{"image"}]:
        raise ExportError(f"{path} is not a decoder: it does not take z, or noise, and return image")
    row_of = {each.any_name: tuple(side.get_length() for side in list(each.partial_shape)[1:]) for each in values}
    condition = condition_of(metadata, row_of.get(CONDITION, ()), path)

    def decode(*rows: np.ndarray) -> np.ndarray:
        return compiled(dict(zip(given, rows, strict=True)))["image"].copy()

    return Opened.of("openvino", given[0], decode, row_of[given[0]][0], row_of["image"], metadata, condition)


def _metadata(path: Path) -> dict[str, str]:
    content, weights = path.read_bytes(), path.with_suffix(".bin")
    comment = _COMMENT.search(content)
    if comment is None:
        return {}  # not by us
    found = {
        ".xml": seal.digest(content[: comment.start()]),
        ".bin": seal.digest(weights) if weights.is_file() else None,
    }
    metadata = seal.check_manifest(comment.group(1), found, path)
    seal.check_version(metadata, path)
    return metadata


def library() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise MissingRuntimeError(
            "OpenVINO models need the package openvino: pip install 'keras-vae[openvino]'"
        ) from error
    return openvino
