"""Runs exported ONNX decoders and generators with numpy and onnxruntime alone: no TensorFlow, no Keras."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np

from keras_vae.export import latents, seal
from keras_vae.export.conditional import beside, condition_of
from keras_vae.export.errors import ExportError
from keras_vae.export.formats import CONDITION, LATENTS, NOISE, Opened
from keras_vae.export.png import to_png
from keras_vae.export.scored import Scored, checked, rows
from keras_vae.support.quiet import quiet_stderr

with quiet_stderr():
    import onnxruntime

__all__ = ["Decoder", "Encoder", "Generator", "Scored", "Scorer", "open_decoder", "to_png"]

CPU = "CPUExecutionProvider"
Providers: TypeAlias = Sequence[str | tuple[str, dict[str, str]]]  # by name, or with options


class Kind(NamedTuple):
    """What a file of ours takes and returns; where it may be conditional, perhaps `condition` too."""

    name: str
    inputs: list[str]
    outputs: list[str]
    may_be_conditional: bool = False

    def fits(self, inputs: list[str], outputs: list[str]) -> bool:
        """Whether a file with these is of this kind."""
        takes = inputs[:-1] if self.may_be_conditional and inputs[-1:] == [CONDITION] else inputs
        return (takes, sorted(outputs)) == (self.inputs, sorted(self.outputs))


DECODER = Kind("decoder", [LATENTS], ["image"], may_be_conditional=True)
GENERATOR = Kind("generator", [NOISE], ["image"], may_be_conditional=True)
ENCODER = Kind("encoder", ["image"], ["mean", "log_var"])
SCORER = Kind("scorer", ["image"], list(Scored._fields))
OUTPUT_TYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}


class _Images:
    """A decoder or a generator; arguments, attributes and errors are `Decoder`'s."""

    _kinds: ClassVar[tuple[Kind, ...]] = (DECODER, GENERATOR)

    def __init__(self, path: str | os.PathLike[str], providers: Providers | None = None) -> None:
        self._session, self.metadata, self.kind = open_session(Path(path), providers, *self._kinds)
        given, *others = self._session.get_inputs()
        shapes = [value.shape[1:] for value in (given, *self._session.get_outputs())]
        known = all(isinstance(side, int) for shape in shapes for side in shape)
        if not known or [len(shape) for shape in shapes] != [1, 3]:
            wrong = f"{self.kind.inputs[0]} is [batch, {shapes[0]}], image [batch, {shapes[1]}]"
            raise ExportError(f"{path} is not a {self.kind.name}: {wrong}")
        self.precision = self.metadata.get("precision", "float32")
        self.output = OUTPUT_TYPES.get(self._session.get_outputs()[0].type, "")
        if not self.output:
            raise ExportError(f"{path} is not a {self.kind.name}: its image is {self._session.get_outputs()[0].type}")
        self.condition = condition_of(self.metadata, others[0].shape[1:] if others else (), Path(path))
        self.latent_dim: int = shapes[0][0]
        self.image_shape: tuple[int, int, int] = tuple(shapes[1])
        self.provider: str = self._session.get_providers()[0]

    def _run(self, rows: Any, condition: Any = None) -> np.ndarray:
        words = "latents" if self.kind == DECODER else "noise values"
        rows = latents.check_batch(rows, (self.latent_dim,), words, self.kind.name)
        given = (rows, *beside(self.condition, condition, len(rows)))
        return self._session.run(["image"], dict(zip((*self.kind.inputs, CONDITION), given, strict=False)))[0]


class Decoder(_Images):
    """An ONNX decoder: latents to images.

    Args:
        path: the .onnx file.
        providers: onnxruntime execution providers, each by its name or with its options, such as
            ("CUDAExecutionProvider", {"prefer_nhwc": "1"}); by default CUDA where it loads, else the CPU.

    Attributes:
        latent_dim: number of latents.
        image_shape: (height, width, channels).
        metadata: what the exporter wrote into the file.
        precision: what the file computes in: "float32", "float16" or "int8".
        output: what images are: "float32", values in [0, 1], or "uint8", levels 0..255.
        provider: the execution provider in use.
        condition: what images can be asked for by, a `keras_vae.Condition`; None of a model without conditions.

    Raises:
        ExportError: the file is missing, damaged, changed since it was exported, or no decoder.
    """

    _kinds = (DECODER,)

    def decode(self, z: Any, condition: Any = None) -> np.ndarray:
        """Images of latents, (batch, height, width, channels): float32 in [0, 1], or uint8, as `output` says.

        Args:
            z: numbers, (batch, latent_dim).
            condition: what the images are to be of, as `keras_vae.Condition.rows` takes it, such as a class's name, or
                {"glasses": True}; None for images of any kind.

        Any number of threads may call it at once.

        Raises:
            ExportError: (a ValueError) latents of another size, that are not numbers, or not finite, or a condition
                that the model does not know.
        """
        return self._run(z, condition)


class Generator(_Images):
    """An ONNX generator, prior and decoder in one: standard normal noise to images.

    Args:
        path: the .onnx file.
        providers: as `Decoder`.

    Attributes:
        latent_dim, image_shape, metadata, precision, output, provider, condition: as `Decoder`.

    Raises:
        ExportError: the file is missing, damaged, changed since it was exported, or no generator.

    Example:
        >>> images = Generator("generator.onnx").sample(64, seed=0)
    """

    _kinds = (GENERATOR,)

    def generate(self, noise: Any, condition: Any = None) -> np.ndarray:
        """Images of noise, (batch, height, width, channels): float32 in [0, 1], or uint8, as `output` says.

        Args:
            noise: numbers, (batch, latent_dim), drawn from the standard normal.
            condition: as `Decoder.decode`.

        Any number of threads may call it at once.

        Raises:
            ExportError: (a ValueError) noise of another size, that is not numeric, or not finite, or a condition that
                the model does not know.
        """
        return self._run(noise, condition)

    def sample(
        self, count: int, seed: int | None = None, temperature: float = 1.0, condition: Any = None
    ) -> np.ndarray:
        """Images of `count` draws from the prior; the same seed gives the same images.

        Args:
            count: how many.
            seed: of the draw.
            temperature: the noise's standard deviation; below 1 images are more alike, and more like the mean.
            condition: as `Decoder.decode`.

        Raises:
            ExportError: a count below 1, a seed below 0, or a condition that the model does not know.
        """
        return self.generate(temperature * latents.draw(count, self.latent_dim, seed), condition)


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

    def __init__(self, path: str | os.PathLike[str], providers: Providers | None = None) -> None:
        self._session, self.metadata, _ = open_session(Path(path), providers, ENCODER)
        image, mean = self._session.get_inputs()[0].shape[1:], self._session.get_outputs()[0].shape[1:]
        if not all(isinstance(side, int) for side in (*image, *mean)) or (len(image), len(mean)) != (3, 1):
            raise ExportError(f"{path} is not an encoder: image is [batch, {image}], mean [batch, {mean}]")
        self.latent_dim: int = mean[0]
        self.image_shape: tuple[int, int, int] = tuple(image)
        self.provider: str = self._session.get_providers()[0]

    def encode(self, images: Any) -> tuple[np.ndarray, np.ndarray]:
        """Mean and log-variance of images' latents, float32 (batch, latent_dim) each.

        Args:
            images: numbers in [0, 1], (batch, height, width, channels).

        Raises:
            ExportError: (a ValueError) images of another size, that are not numbers, or not finite.
        """
        found = self._session.run(
            ["mean", "log_var"], {"image": latents.check_batch(images, self.image_shape, "images", "encoder")}
        )
        return found[0], found[1]


class Scorer:
    """An ONNX scorer: images to how unusual they are.

    Args:
        path: the .onnx file.
        providers: as `Decoder`.

    Attributes:
        image_shape, metadata, provider: as `Decoder`.

    Raises:
        ExportError: the file is missing, damaged, changed since it was exported, or no scorer.

    Example:
        >>> flagged = images[Scorer("scorer.onnx").score(images).rank >= 0.99]
    """

    def __init__(self, path: str | os.PathLike[str], providers: Providers | None = None) -> None:
        self._session, self.metadata, _ = open_session(Path(path), providers, SCORER)
        shape = self._session.get_inputs()[0].shape[1:]
        if len(shape) != 3 or not all(isinstance(side, int) for side in shape):
            raise ExportError(f"{path} is not a scorer: image is [batch, {shape}]")
        self.image_shape: tuple[int, int, int] = tuple(shape)
        self.provider: str = self._session.get_providers()[0]

    def score(self, images: Any) -> Scored:
        """Scores, ranks, error maps and reconstructions of images.

        Args:
            images: (batch, height, width, channels), floats in [0, 1] or uint8.

        Raises:
            ExportError: (a ValueError) images of another size, that are not numbers, or outside of [0, 1].
        """
        given = checked(images, self.image_shape)
        if not len(given):  # onnxruntime 1.31 adds a bias to nothing by the wrong axis
            return Scored(**{name: np.zeros((0, *row), np.float32) for name, row in rows(self.image_shape).items()})
        return Scored(*self._session.run(SCORER.outputs, {"image": given}))


def open_session(path: Path, providers: Providers | None, *kinds: Kind) -> tuple[Any, dict[str, str], Kind]:
    """An ONNX file of ours, opened, its metadata, and which of the kinds it is.

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
        raise ExportError(f"{path} is not an ONNX model that onnxruntime can read: export it again") from error
    found = [value.name for value in session.get_inputs()], [value.name for value in session.get_outputs()]
    kind = next((each for each in kinds if each.fits(*found)), None)
    if kind is None:
        wanted, names = kinds[0], ", ".join((*found[0], *found[1]))
        article = "an" if wanted == ENCODER else "a"
        needed = " and ".join((*wanted.inputs, *wanted.outputs))
        raise ExportError(
            f"{path} is not {article} {wanted.name}: it has {names} where {article} {wanted.name} has {needed}"
        )
    metadata = dict(session.get_modelmeta().custom_metadata_map)
    seal.check_onnx(content, metadata, path)
    seal.check_version(metadata, path)
    return session, metadata, kind


def open_decoder(path: Path) -> Opened:
    """Opens an ONNX decoder or generator to run on the CPU, the one every machine has.

    Raises:
        ExportError: as `Decoder`.
    """
    found = _Images(path, providers=[CPU])
    about = (found.latent_dim, found.image_shape, found.metadata, found.condition)
    return Opened.of("onnx", found.kind.inputs[0], found._run, *about)


def _providers() -> list[str]:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return [CPU]
    try:  # the GPU package is there on machines without a GPU too: the driver tells
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return [CPU]
    with contextlib.redirect_stdout(None), quiet_stderr():  # it tells what it did not find
        onnxruntime.preload_dlls()  # CUDA's libraries, where pip installed them
    return ["CUDAExecutionProvider", CPU]  # should they not load, onnxruntime continues with the second
