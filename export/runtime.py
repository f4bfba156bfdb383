"""Runs an exported ONNX decoder with numpy and onnxruntime alone: no TensorFlow, no Keras."""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import ExportError
from export.quiet import quiet_stderr

with quiet_stderr():
    import onnxruntime


class Decoder:
    """An ONNX decoder: latents to images.

    Args:
        path: the .onnx file.
        providers: onnxruntime execution providers; by default CUDA where it loads, else the CPU.

    Attributes:
        latent_dim: number of latents.
        image_shape: (height, width, channels).
        metadata: what the exporter wrote into the file.
        provider: the execution provider in use.

    Raises:
        ExportError: the file is missing, damaged, or no decoder.
    """

    def __init__(self, path: str | os.PathLike[str], providers: Sequence[str] | None = None) -> None:
        path = Path(path)
        if not path.is_file():
            raise ExportError(f"no ONNX file at {path}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            with quiet_stderr():
                self._session = onnxruntime.InferenceSession(path, options, providers=providers or _providers())
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ExportError(f"{path} is no ONNX model that onnxruntime can read: export it again") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if [value.name for value in inputs] != ["z"] or [value.name for value in outputs] != ["image"]:
            names = ", ".join(value.name for value in (*inputs, *outputs))
            raise ExportError(f"{path} is no decoder: it has {names} where a decoder has z and image")
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self.latent_dim: int = inputs[0].shape[1]
        shape = json.loads(self.metadata.get("image_shape", "null")) or outputs[0].shape[1:]
        self.image_shape: tuple[int, int, int] = tuple(shape)
        self.provider: str = self._session.get_providers()[0]

    def decode(self, z: Any) -> np.ndarray:
        """Images of latents: float32 (batch, height, width, channels) in [0, 1].

        Args:
            z: numbers, (batch, latent_dim).

        Any number of threads may call it at once.

        Raises:
            ExportError: (a ValueError) latents of another size, that are no numbers, or not finite.
        """
        try:
            array = np.asarray(z)
        except ValueError as error:  # rows of different lengths
            raise ExportError(f"latents are no array: give numbers, (batch, {self.latent_dim})") from error
        if array.dtype.kind not in "fiu":
            raise ExportError(f"latents are of type {array.dtype}: give real numbers, (batch, {self.latent_dim})")
        if array.ndim != 2 or array.shape[1] != self.latent_dim:
            raise ExportError(f"latents have shape {array.shape}: this decoder takes (batch, {self.latent_dim})")
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise ExportError("latents hold NaN or infinity, or more than float32 does: give finite numbers")
        return self._session.run(["image"], {"z": array})[0]

    def sample(self, count: int, seed: int | None = None) -> np.ndarray:
        """Images of `count` draws from the standard normal prior; the same seed gives the same images.

        Raises:
            ExportError: a count below 1.
        """
        if not isinstance(count, int) or count < 1:
            raise ExportError(f"count={count!r}: give a whole number from 1 on")
        return self.decode(np.random.default_rng(seed).standard_normal((count, self.latent_dim), np.float32))


def to_png(image: Any) -> bytes:
    """A PNG file of one image, float (height, width, 1 or 3) in [0, 1]; what is beyond is cut off.

    Raises:
        ExportError: it has another shape.
    """
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size:
        raise ExportError(f"an image of shape {pixels.shape}: give (height, width, 1 or 3 channels)")
    height, width, channels = pixels.shape
    pixels = np.round(255.0 * np.clip(np.nan_to_num(pixels), 0.0, 1.0)).astype(np.uint8)
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each row begins with its filter, none
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">2I5B", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )


def _providers() -> list[str]:
    cpu = "CPUExecutionProvider"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return [cpu]
    try:  # the GPU package is there on machines without a GPU too: the driver tells
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return [cpu]
    return ["CUDAExecutionProvider", cpu]
