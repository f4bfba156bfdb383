"""The decoder as a LiteRT file, for phones and small devices."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_vae.export import seal
from keras_vae.export.conditional import condition_of
from keras_vae.export.errors import ExportError, MissingRuntimeError
from keras_vae.export.formats import CONDITION, TAKEN, Opened, in_order
from keras_vae.export.generator import compose
from keras_vae.support.quiet import quiet_stderr

# As TensorFlow Lite's metadata does it: further files lie in a ZIP archive behind the model, which readers of either
# one do not mind.
MANIFEST = "keras_vae.json"
MODEL = "model"


def write(
    decoder: keras.Model, path: Path, metadata: Mapping[str, str], prior: keras.layers.Layer | None = None
) -> None:
    """Writes a float32 decoder, or a generator, by Keras's own export, its metadata and checksum behind it."""
    model = compose(decoder, prior)
    given = {each.name: each for each in model.inputs}
    with quiet_stderr():  # dicts are how Keras's exporters take names
        keras.Model(given, {"image": model.outputs[0]}).export(path, format="litert", verbose=False)
    found = {MODEL: seal.digest(path)}
    with zipfile.ZipFile(path, "a") as archive:
        # Without the time of writing: the same weights give the same bytes.
        archive.writestr(zipfile.ZipInfo(MANIFEST), seal.manifest(metadata, found))


def open_decoder(path: Path) -> Opened:
    """Loads a LiteRT decoder.

    Raises:
        ExportError: LiteRT is not installed, or the file is missing, damaged, or no decoder.
    """
    interpreter_class = library()
    content = path.read_bytes()
    metadata = _metadata(content, path)
    try:
        with quiet_stderr():
            interpreter = interpreter_class(model_content=content)
            signatures = interpreter.get_signature_list()
            run = interpreter.get_signature_runner() if len(signatures) == 1 else None
            details = (run.get_input_details(), run.get_output_details()) if run is not None else ({}, {})
    except (ValueError, RuntimeError) as error:
        raise ExportError(f"{path} is not a model that LiteRT can read: copy it or export it again") from error
    given = in_order(details[0])
    if run is None or given not in TAKEN or [*details[1]] != ["image"]:
        raise ExportError(f"{path} is not a decoder: it does not take z, or noise, and return image")
    about = {**details[0], **details[1]}
    row_of = {name: tuple(int(side) for side in each["shape_signature"][1:]) for name, each in about.items()}
    condition = condition_of(metadata, row_of.get(CONDITION, ()), path)

    def decode(*rows: np.ndarray) -> np.ndarray:
        if not len(rows[0]):  # LiteRT cannot take an empty batch
            return np.zeros((0, *row_of["image"]), details[1]["image"]["dtype"])
        with quiet_stderr():  # it announces its delegate
            return run(**dict(zip(given, rows, strict=True)))["image"]

    return Opened.of("litert", given[0], decode, row_of[given[0]][0], row_of["image"], metadata, condition)


def _metadata(content: bytes, path: Path) -> dict[str, str]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entry = archive.getinfo(MANIFEST)
            text = archive.read(entry)
    except (zipfile.BadZipFile, KeyError):
        return {}  # not by us
    metadata = seal.check_manifest(text, {MODEL: seal.digest(content[: entry.header_offset])}, path)
    seal.check_version(metadata, path)
    return metadata


def library() -> Any:
    try:
        with quiet_stderr():
            from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise MissingRuntimeError(
            "LiteRT files need the package ai-edge-litert: pip install 'keras-vae[litert]'"
        ) from error
    return Interpreter
