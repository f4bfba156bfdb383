"""Exports a Keras decoder: writes the artifact aside, compares it with Keras, and only then puts it in place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np

from export import onnx, saved_model
from export.errors import ExportError, VerificationError
from export.verify import Report, Runner, verify

Writer = Callable[[keras.Model, Path, Mapping[str, str]], None]
WRITERS: dict[str, Writer] = {"tf_saved_model": saved_model.write, "onnx": onnx.write}
RUNNERS: dict[str, Callable[[Path], Runner]] = {"tf_saved_model": saved_model.runner, "onnx": onnx.runner}
FORMATS = tuple(WRITERS)


def export_decoder(
    decoder: keras.Model, path: str | os.PathLike[str], format: str, metadata: Mapping[str, str] | None = None
) -> Report:
    """Writes a decoder so that it can run without this project.

    The artifact takes `z`, float32 (batch, latent_dim), and returns `image`, float32 (batch, height, width,
    channels). Its batch is free and it computes in float32, whatever the dtype policy of the decoder.

    Args:
        decoder: Keras model, functional or sequential, of one input and one output. Left as it is.
        path: a folder for "tf_saved_model", a file ending in .onnx for "onnx". What is there already is replaced, if it
            is an artifact of the same kind, once the new one has proven equal to the decoder.
        format: one of `FORMATS`.
        metadata: further entries for the ONNX file's metadata.

    Returns:
        The differences that were measured.

    Raises:
        ExportError: unknown format, a decoder that cannot be exported, or a path that cannot be written or holds
            something else.
        VerificationError: the artifact is not equal to the decoder; what was at `path` is still there.
    """
    path = Path(path)
    check_target(path, format)
    reference = float32_copy(decoder)
    with _aside(path) as new:
        WRITERS[format](reference, new, metadata or {})
        report = verify({"keras": keras_runner(reference), format: RUNNERS[format](new)}, reference.input_shape[1])
        if not report.passed:
            raise VerificationError(f"{path} was not written: the new artifact differs from Keras: {report.summary()}")
        _replace(new, path)
    return report


def check_target(path: Path, format: str) -> None:
    """Refuses, before any work, an unknown format or a path that holds something other than such an artifact.

    Raises:
        ExportError: it is refused.
    """
    if format not in WRITERS:
        raise ExportError(f"unknown export format {format!r}: choose one of {', '.join(FORMATS)}")
    if format == "onnx":
        if path.suffix != ".onnx":
            raise ExportError(f"{path}: name the ONNX file with the ending .onnx")
        if path.is_dir():
            raise ExportError(f"{path} is a folder: name a file for the ONNX decoder")
    elif path.suffix == ".onnx":
        raise ExportError(f"{path} names an ONNX file, and the format is {format}, a folder: give format='onnx'")
    elif path.exists() and not saved_model.is_saved_model(path) and (path.is_file() or any(path.iterdir())):
        raise ExportError(f"{path} exists and is no SavedModel: name a new folder, or remove it first")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ExportError(f"cannot write {path}: {parent} is not a folder that can be written to")


def float32_copy(decoder: keras.Model) -> keras.Model:
    """The same model with the same weights, every layer computing in float32: itself where all do.

    Raises:
        ExportError: a model of mixed precision whose layers Keras cannot make again: a subclassed one, or one with
            functions that are not registered.
    """
    if all(layer.compute_dtype == "float32" for layer in decoder._flatten_layers()):
        return decoder

    def in_float32(layer: keras.layers.Layer) -> keras.layers.Layer:
        return type(layer).from_config({**layer.get_config(), "dtype": "float32"})

    try:
        copy = keras.models.clone_model(decoder, clone_function=in_float32, recursive=True)
    except (ValueError, TypeError) as error:
        raise ExportError(
            f"{decoder.name!r} computes in mixed precision, and Keras cannot make it again in float32: export a "
            "functional model of registered layers and functions, or build it in float32"
        ) from error
    copy.set_weights(decoder.get_weights())
    return copy


def keras_runner(decoder: keras.Model) -> Runner:
    """Runs a Keras decoder on arrays."""
    return lambda z: np.asarray(keras.ops.convert_to_numpy(decoder(z, training=False)))


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A place for the new artifact beside its target, on the same disk, gone afterwards if it was not moved."""
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.absolute().parent))
    try:
        yield folder / path.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replace(new: Path, path: Path) -> None:
    if path.is_dir():  # a folder cannot be renamed over another: the old one steps aside first
        old = new.with_name("old")
        path.rename(old)
        try:
            new.rename(path)
        except OSError:
            old.rename(path)
            raise
    else:
        new.replace(path)
