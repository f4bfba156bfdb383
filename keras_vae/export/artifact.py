"""Exports a Keras decoder: writes the artifact aside, compares it with Keras, and only then puts it in place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_vae.export import seal
from keras_vae.export.conditional import beside, condition_of
from keras_vae.export.errors import ExportError, VerificationError
from keras_vae.export.files import aside, check_parent
from keras_vae.export.formats import CONDITION, FORMATS, PRECISIONS, Runner, check_output, format_of, open_artifact
from keras_vae.export.generator import as_inputs, compose, inputs_of
from keras_vae.export.on_images import TOLERANCE, difference, of_encoder, of_scorer
from keras_vae.export.output import with_output
from keras_vae.export.verify import Report, Rows, joined, verify
from keras_vae.support import keras_internals
from keras_vae.support.files import replace
from keras_vae.support.keras_defaults import keras_defaults
from keras_vae.support.true_float32 import true_float32


@keras_defaults()
def export_decoder(
    decoder: keras.Model,
    path: str | os.PathLike[str],
    format: str,
    metadata: Mapping[str, str] | None = None,
    *,
    precision: str = "float32",
    output: str = "float32",
    calibration: Rows | np.ndarray | None = None,
    prior: keras.layers.Layer | None = None,
    encoder: keras.Model | None = None,
    scorer: Any = None,
) -> Report:
    """Writes a decoder that runs without this project.

    The artifact takes `z`, float32 (batch, latent_dim), and returns `image` (batch, height, width, channels). Its batch
    size is free, and it computes in float32, whatever the dtype policy of the decoder. With a prior it is a generator:
    it takes `noise`, standard normal, instead of `z`. A SavedModel is then both. Of a conditional decoder it also takes
    `condition`, float32 (batch, names), zeros for what is not known.

    Args:
        decoder: Keras model, functional or sequential, with one output and one input, or two: latents and conditions.
            It is not changed.
        path: a folder for "tf_saved_model", or a file ending in .onnx, .tflite ("litert") or .xml ("openvino", which
            writes its weights to a .bin file beside it). An artifact of the same kind that is there already is replaced
            once the new one was found equal to the decoder.
        format: a key of `keras_vae.export.formats.FORMATS`.
        metadata: further entries for the artifact's metadata; of a conditional decoder `Condition.metadata()` too.
        precision: for "onnx" also "float16" or "int8": smaller files, whose images differ as `Pair.psnr` tells.
        output: what the images are: "float32", as the decoder makes them, or "uint8", its values in [0, 1] rounded to
            0..255 as in our PNG files.
        calibration: for int8, a few hundred latents of real images, (count, latent_dim); for a conditional decoder a
            pair of these and conditions, (count, names).
        prior: Keras layer from noise, and conditions, to latents, float32 (batch, latent_dim) both.
        encoder: for "tf_saved_model", a Keras model from images to mean and log-variance, for a signature `encode`.
        scorer: for "tf_saved_model", a function as `keras_vae.export.scorer` takes it, with its variables as `weights`,
            for a signature `score`.

    Returns:
        The differences that were measured.

    Raises:
        ExportError: unknown format, a decoder that cannot be exported or whose conditions the metadata do not name, or
            a path that cannot be written or holds something else.
        VerificationError: the artifact does not equal the decoder; what was at `path` is still there.
    """
    path = Path(path)
    check_target(path, format, precision, output)
    reference = float32_copy(decoder)
    options = _options(format, precision, calibration, len(reference.inputs), encoder, scorer)
    latent_dim, image_shape = reference.inputs[0].shape[1], reference.output_shape[1:]
    condition = condition_of(metadata or {}, inputs_of(reference).get(CONDITION, ()), path)
    none = (np.zeros((0, latent_dim), np.float32), *beside(condition, None, 0))
    entries = {"format_version": str(seal.FORMAT_VERSION), "precision": precision, "output": output, **(metadata or {})}
    with aside(path) as new:
        FORMATS[format].write(with_output(reference, output), new, entries, prior=prior, **options)
        opened = open_artifact(new)
        name = " ".join((format, *(each for each in (precision, output) if each != "float32")))
        models = [(reference, opened.decode)] if prior is None or FORMATS[format].holds_all else []
        models += [] if prior is None else [(compose(reference, prior), opened.generate)]
        report = joined(
            verify(
                {"keras": keras_runner(model), name: run}, latent_dim, precisions={name: precision}, condition=condition
            )
            for model, run in models
            if run is not None
        )
        if (
            len(report.pairs) < len(models)
            or not report.passed
            or opened.latent_dim != latent_dim
            or opened.image_shape != image_shape
            or opened.condition != condition
            or any(run(*none).dtype != output for _, run in models if run is not None)
        ):
            raise VerificationError(f"{path} was not written: the new artifact differs from Keras: {report.summary()}")
        for part, run, reference in (("encoder", opened.encode, of_encoder), ("scorer", opened.score, of_scorer)):
            if part in options:
                assert run is not None
                if not (found := difference(run, reference(options[part]), image_shape)) <= TOLERANCE:
                    raise VerificationError(f"{path} was not written: its {part} differs from Keras by {found:.2g}")
        del opened, models  # some systems cannot rename open files
        replace(new, path)
    return report


_A = {"encoder": "an encoder", "scorer": "a scorer"}


def _options(
    format: str,
    precision: str,
    calibration: Rows | np.ndarray | None,
    inputs: int,
    encoder: keras.Model | None,
    scorer: Any,
) -> dict[str, Any]:
    """What the writer of a format takes besides decoder, path and metadata.

    Raises:
        ExportError: an option that the format does not have, or calibration that is missing or unusable.
    """
    others = {"encoder": encoder, "scorer": scorer}
    for name, given in others.items():
        if given is not None and not FORMATS[format].holds_all:
            raise ExportError(f"only a SavedModel holds {_A[name]}, and the format is {format}: leave the {name} out")
    if encoder is not None:
        others["encoder"] = float32_copy(encoder)
    if any(given is not None for given in others.values()):
        return {name: given for name, given in others.items() if given is not None}
    if precision == "float32":
        return {}
    if precision == "int8":
        found = tuple(map(np.asarray, calibration if isinstance(calibration, tuple) else (calibration,)))
        counts = {len(rows) if rows.ndim == 2 and rows.dtype.kind == "f" else 0 for rows in found}
        if (
            len(found) != inputs
            or len(counts) != 1
            or 0 in counts
            or not all(np.isfinite(rows).all() for rows in found)
        ):
            raise ExportError(
                "int8 is calibrated on latents of real images, and conditions if the decoder takes them: give finite "
                "numbers, (count, latent_dim)"
            )
        return {"precision": precision, "calibration": found}
    return {"precision": precision}


def check_target(path: Path, format: str, precision: str = "float32", output: str = "float32") -> None:
    """Refuses, before any work is done, what no format writes, or a path that holds something else.

    Raises:
        ExportError: it is refused.
    """
    if format not in FORMATS:
        raise ExportError(f"unknown export format {format!r}: choose one of {', '.join(FORMATS)}")
    if precision not in PRECISIONS:
        raise ExportError(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    check_output(output)
    if precision not in FORMATS[format].precisions:
        others = " or ".join(repr(each.name) for each in FORMATS.values() if precision in each.precisions)
        raise ExportError(f"{precision} is for format {others}, and the format is {format}: export this one in float32")
    FORMATS[format].check_library()
    ending, companion = FORMATS[format].ending, FORMATS[format].companion
    second = path.with_suffix(companion)
    if companion and second.exists() and not path.exists():
        raise ExportError(
            f"{second} is there without {path.name}, whose {companion} would take its place: move it away"
        )
    if ending:
        if path.suffix != ending:
            raise ExportError(f"{path}: name the file for {format} with the ending {ending}")
        if path.is_dir():
            raise ExportError(f"{path} is a folder: name a file for {format}")
    elif (named := format_of(path)) is not None:
        if named != format:
            raise ExportError(f"{path} names a file, and the format is {format}, a folder: give format={named!r}")
    elif path.exists() and (path.is_file() or any(path.iterdir())):
        raise ExportError(f"{path} exists and is not a SavedModel: name a new folder, or remove it first")
    check_parent(path)


@keras_defaults()
def float32_copy(decoder: keras.Model, always: bool = False) -> keras.Model:
    """The same model with the same weights and all layers computing in float32; the model itself if they do already.

    Args:
        decoder: any functional or sequential model.
        always: whether to copy it even then: the copy keeps its weights when the model is trained further.

    Raises:
        ExportError: a model of mixed precision that Keras cannot rebuild: a subclassed one, or one with functions that
            are not registered.
    """
    if not always and all(layer.compute_dtype == "float32" for layer in keras_internals.all_layers(decoder)):
        return decoder

    def in_float32(layer: keras.layers.Layer) -> keras.layers.Layer:
        return type(layer).from_config({**layer.get_config(), "dtype": "float32"})

    try:
        copy = keras.models.clone_model(decoder, clone_function=in_float32, recursive=True)
    except (ValueError, TypeError) as error:
        raise ExportError(
            f"{decoder.name!r} cannot be made again by Keras in float32: export a "
            "functional model of registered layers and functions, or build it in float32"
        ) from error
    copy.set_weights(decoder.get_weights())
    return copy


def keras_runner(decoder: keras.Model) -> Runner:
    """Runs a Keras decoder on arrays in true float32, even on empty ones, which Keras's convolutions do not take."""

    @true_float32()
    def run(*rows: np.ndarray) -> np.ndarray:
        if not len(rows[0]):
            return np.zeros((0, *decoder.output_shape[1:]), np.float32)
        return np.asarray(keras.ops.convert_to_numpy(decoder(as_inputs(rows), training=False)))

    return run
