"""Runs an exported ONNX decoder with numpy and onnxruntime alone: no TensorFlow, no Keras."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_vae.export import latents, seal
from keras_vae.export.errors import ExportError
from keras_vae.export.formats import Opened
from keras_vae.export.png import to_png
from keras_vae.export.quiet import quiet_stderr
from keras_vae.export.samplers import Prior, Sampler

with quiet_stderr():
    import onnxruntime

__all__ = ["Decoder", "Encoder", "open_decoder", "to_png"]


class Decoder:
    """An ONNX decoder: latents to images.

    Args:
        path: the .onnx file.
        providers: onnxruntime execution providers; by default CUDA where it loads, else the CPU.

    Attributes:
        latent_dim: number of latents.
        image_shape: (height, width, channels).
        metadata: what the exporter wrote into the file.
        precision: what the file computes in: "float32", "float16" or "int8".
        provider: the execution provider in use.

    Raises:
        ExportError: the file is missing, damaged, changed since it was exported, or no decoder.
    """

    def __init__(self, path: str | os.PathLike[str], providers: Sequence[str] | None = None) -> None:
        self._session, self.metadata = _session(Path(path), providers, "decoder", ["z"], ["image"])
        shapes = [value.shape[1:] for value in (*self._session.get_inputs(), *self._session.get_outputs())]
        known = all(isinstance(side, int) for shape in shapes for side in shape)
        if not known or [len(shape) for shape in shapes] != [1, 3]:
            raise ExportError(f"{path} is no decoder: z is [batch, {shapes[0]}], image [batch, {shapes[1]}]")
        self.precision = self.metadata.get("precision", "float32")
        self.latent_dim: int = shapes[0][0]
        self.image_shape: tuple[int, int, int] = tuple(shapes[1])
        self.provider: str = self._session.get_providers()[0]

    def decode(self, z: Any) -> np.ndarray:
        """Images of latents: float32 (batch, height, width, channels) in [0, 1].

        Args:
            z: numbers, (batch, latent_dim).

        Any number of threads may call it at once.

        Raises:
            ExportError: (a ValueError) latents of another size, that are no numbers, or not finite.
        """
        return self._session.run(["image"], {"z": latents.check(z, self.latent_dim)})[0]

    def sample(self, count: int, seed: int | None = None, sampler: Sampler | None = None) -> np.ndarray:
        """Images of `count` draws, by default from the standard normal prior; the same seed gives the same images.

        Args:
            count: how many.
            seed: of the draw.
            sampler: what else to draw from, as `keras_vae.export.samplers.load("gmm.npz")` gives.

        Raises:
            ExportError: a count below 1, a seed below 0, or a sampler of other latents.
        """
        return self.decode((sampler or Prior(self.latent_dim)).draw(count, seed))


class Encoder:
    """An ONNX encoder: images to the mean and log-variance of their latents.

    Args:
        path: the .onnx file.
        providers: as `Decoder`.

    Attributes:
        latent_dim, image_shape, metadata, provider: as `Decoder`.

    Raises:
        ExportError: the file is missing, damaged, changed since it was exported, or no encoder.
    """

    def __init__(self, path: str | os.PathLike[str], providers: Sequence[str] | None = None) -> None:
        self._session, self.metadata = _session(Path(path), providers, "encoder", ["image"], ["mean", "log_var"])
        image, mean = self._session.get_inputs()[0].shape[1:], self._session.get_outputs()[0].shape[1:]
        if not all(isinstance(side, int) for side in (*image, *mean)) or (len(image), len(mean)) != (3, 1):
            raise ExportError(f"{path} is no encoder: image is [batch, {image}], mean [batch, {mean}]")
        self.latent_dim: int = mean[0]
        self.image_shape: tuple[int, int, int] = tuple(image)
        self.provider: str = self._session.get_providers()[0]

    def encode(self, images: Any) -> tuple[np.ndarray, np.ndarray]:
        """Mean and log-variance of images' latents, float32 (batch, latent_dim) each.

        Args:
            images: numbers in [0, 1], (batch, height, width, channels).

        Raises:
            ExportError: (a ValueError) images of another size, that are no numbers, or not finite.
        """
        found = self._session.run(
            ["mean", "log_var"], {"image": latents.check_batch(images, self.image_shape, "images", "encoder")}
        )
        return found[0], found[1]


def _session(
    path: Path, providers: Sequence[str] | None, kind: str, inputs: list[str], outputs: list[str]
) -> tuple[Any, dict[str, str]]:
    """An ONNX file of ours, opened, and its metadata.

    Raises:
        ExportError: it is missing, damaged, changed since it was exported, or something else.
    """
    if not path.is_file():
        raise ExportError(f"no ONNX file at {path}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error.strerror}") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        with quiet_stderr():
            session = onnxruntime.InferenceSession(content, options, providers=providers or _providers())
    except Exception as error:  # onnxruntime's exceptions share no base class
        if "Unsupported model IR version" in str(error) or "only *guarantees* support" in str(error):
            raise ExportError(
                f"{path} is of a later version of ONNX than onnxruntime {onnxruntime.__version__} reads: update "
                "onnxruntime"
            ) from error
        raise ExportError(f"{path} is no ONNX model that onnxruntime can read: export it again") from error
    found = [value.name for value in session.get_inputs()], [value.name for value in session.get_outputs()]
    if (found[0], sorted(found[1])) != (inputs, sorted(outputs)):
        names = ", ".join((*found[0], *found[1]))
        article = "an" if kind == "encoder" else "a"
        raise ExportError(
            f"{path} is no {kind}: it has {names} where {article} {kind} has {' and '.join((*inputs, *outputs))}"
        )
    metadata = dict(session.get_modelmeta().custom_metadata_map)
    seal.check_onnx(content, metadata, path)
    seal.check_version(metadata, path)
    return session, metadata


def open_decoder(path: Path) -> Opened:
    """Opens an ONNX decoder to run on the CPU, the one every machine has.

    Raises:
        ExportError: as `Decoder`.
    """
    decoder = Decoder(path, providers=["CPUExecutionProvider"])
    return Opened("onnx", decoder.decode, decoder.latent_dim, decoder.image_shape, decoder.metadata)


def _providers() -> list[str]:
    cpu = "CPUExecutionProvider"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return [cpu]
    try:  # the GPU package is there on machines without a GPU too: the driver tells
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return [cpu]
    with contextlib.redirect_stdout(None), quiet_stderr():  # it tells what it did not find
        onnxruntime.preload_dlls()  # CUDA's libraries, where pip installed them
    return ["CUDAExecutionProvider", cpu]  # should they not load, onnxruntime goes on with the second
