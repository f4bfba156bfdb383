"""What the smaller commands do, apart from parsing and printing."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from export.artifact import FORMATS, check_target, float32_copy, keras_runner
from export.verify import Report
from export.verify import verify as compare
from keras_vae import data, pictures
from keras_vae.errors import InputError
from keras_vae.evaluation.bounds import importance_weighted_bound
from keras_vae.evaluation.fidelity import psnr, sharpness_ratio
from keras_vae.files import check_output_file
from keras_vae.models import BATCH, Model, open_model

if TYPE_CHECKING:
    from keras_vae.vae import VAE

# Where `export` puts each format below its folder: TF Serving looks for folders named by version.
PLACES = {"tf_saved_model": "1", "onnx": "decoder.onnx"}
EXPORT_FOLDER = "export"


def sample(path: Path, out: Path, count: int, seed: int) -> None:
    """Writes a grid of decoded draws from the prior.

    Raises:
        InputError: no model, or a picture that cannot be written.
    """
    check_output_file(out, pictures.ENDINGS)
    pictures.save(pictures.grid(open_model(path).sample(count, seed)), out)


def reconstruct(path: Path, source: str | None, out: Path, count: int) -> dict[str, Any]:
    """Writes held-out images above their reconstructions.

    Returns:
        `picture`, `images`, and over these images `psnr` (dB) and `sharpness` (1 is the originals').

    Raises:
        InputError: no model, a decoder alone, unusable data, or a picture that cannot be written.
    """
    check_output_file(out, pictures.ENDINGS)
    model = open_model(path)
    vae = model.whole("reconstructing")
    images = _held_out(model, vae, source, batch_size=1)
    originals = np.concatenate(list(images.test.take(count).as_numpy_iterator()))
    reconstructions = vae.predict(originals, batch_size=BATCH, verbose=0)
    pictures.save(pictures.side_by_side(originals, reconstructions), out)
    return {
        "picture": str(out),
        "images": len(originals),
        "psnr": psnr(originals, reconstructions),
        "sharpness": sharpness_ratio(originals, reconstructions),
    }


def evaluate(
    path: Path, source: str | None, importance_samples: int | None, limit: int | None, batch_size: int | None, seed: int
) -> dict[str, Any]:
    """Measures a model on held-out images.

    Returns:
        `images`, the model's metrics as `VAE.evaluate` finds them, and with importance samples K
        `importance_weighted_bound` (nats per image), its `standard_error` and `sampling_error`, as in
        `keras_vae.evaluation.bounds.Bound`.

    Raises:
        InputError: no model, a decoder alone, unusable data, or numbers below 1.
    """
    for name, value in (("importance-samples", importance_samples), ("limit", limit), ("batch-size", batch_size)):
        if value is not None and value < 1:
            raise InputError(f"--{name} {value}: give a whole number from 1 on")
    model = open_model(path)
    vae = model.whole("evaluating")
    if not vae.compiled:
        vae.compile()
    batch_size = batch_size or model.config.get("batch_size", BATCH)
    images = _held_out(model, vae, source, batch_size=1)
    count = min(images.test_size, limit or images.test_size)
    test = images.test.unbatch().take(count).batch(batch_size)
    # Keras warns of data that ends where it was not told.
    test = test.apply(tf.data.experimental.assert_cardinality(math.ceil(count / batch_size)))
    figures: dict[str, Any] = {"images": count}
    has_features = vae.perceptual is not None
    if has_features:
        try:
            vae.load_perceptual()
        except InputError as error:  # the rest needs no feature network
            print(f"without the perceptual term and the loss: {error}", file=sys.stderr)
            vae.perceptual = None
            del vae.trackers["perceptual"]
    figures |= vae.evaluate(test, verbose=0, return_dict=True)
    if vae.perceptual is None and has_features:
        del figures["loss"]
    if importance_samples is not None:
        bound = importance_weighted_bound(vae, test, importance_samples, seed, total=count)
        figures |= {
            "importance_samples": importance_samples,
            "importance_weighted_bound": bound.mean,
            "standard_error": bound.standard_error,
            "sampling_error": bound.sampling_error,
        }
    return figures


def _held_out(model: Model, vae: VAE, source: str | None, batch_size: int) -> data.ImageData:
    """The data that a model is to be measured on, in its size and crop."""
    source = source or model.config.get("data")
    if source is None:
        raise InputError(f"{model.path} does not say what it was trained on: give --data")
    height, width, _ = vae.image_shape
    size = height if height == width else None  # images that are not square come in their own size
    images = data.load(source, size, batch_size, crop=model.config.get("crop"))
    if images.image_shape != vae.image_shape:
        found, wanted = ("x".join(map(str, shape)) for shape in (images.image_shape, vae.image_shape))
        raise InputError(f"the images of {source} are {found}: {model.path} takes {wanted}")
    return images


def export(path: Path, out: Path | None, format: str) -> dict[str, Any]:
    """Exports the decoder of a run or .keras file, in one format or all.

    Returns:
        `artifacts`: for each its `format`, `path`, and the `max_difference` from the Keras decoder.

    Raises:
        InputError, ExportError, VerificationError: as `VAE.export`.
    """
    model = open_model(path)
    if model.vae is None:
        raise InputError(f"{path} is exported already: copy it, or give a run or .keras file")
    vae = model.vae
    folder = out or _export_folder(model)
    if folder is None:
        raise InputError(f"{path} is no run with a place of its own for exports: give --out")
    formats = FORMATS if format == "all" else (format,)
    for name in formats:
        check_target(folder / PLACES[name], name)
    artifacts = []
    for name in formats:
        target = folder / PLACES[name]
        report = vae.export(target, format=name, run_id=model.config.get("run_id", ""))
        difference = max(pair.max_difference for pair in report.pairs)
        artifacts.append({"format": name, "path": str(target), "max_difference": difference})
    return {"artifacts": artifacts}


def verify(path: Path, artifacts: list[Path]) -> Report:
    """Compares a model with exported decoders, every two of them.

    Args:
        path: any MODEL.
        artifacts: further MODELs; by default those that `export` wrote into the run.

    Raises:
        InputError: no model, nothing to compare it with, or decoders of different latent sizes.
    """
    model = open_model(path)
    folder = _export_folder(model)
    if not artifacts and folder is not None:
        artifacts = [folder / place for place in PLACES.values() if (folder / place).exists()]
    if not artifacts:
        raise InputError(f"nothing to compare {path} with: name exported decoders, or export it first")
    models = _labelled([model, *map(open_model, artifacts)])
    for other in models.values():
        if other.latent_dim != model.latent_dim:
            raise InputError(
                f"{other.path} decodes {other.latent_dim} latents and {path} {model.latent_dim}: "
                "give decoders of the same model"
            )
    z = np.zeros((1, model.latent_dim), np.float32)
    sizes = {name: "x".join(map(str, other.decode(z).shape[1:])) for name, other in models.items()}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InputError(f"the images differ in size ({shown}): give decoders of the same model")
    return compare({name: _float32_runner(other) for name, other in models.items()}, model.latent_dim)


def _labelled(models: list[Model]) -> dict[str, Model]:
    """Models by what to call them: their kind, with the path where one kind comes more than once."""
    kinds = ["keras" if model.vae is not None else model.kind for model in models]
    labels = [
        kind if kinds.count(kind) == 1 else f"{kind} {model.path}" for kind, model in zip(kinds, models, strict=True)
    ]
    labelled = dict(zip(labels, models, strict=True))
    if len(labelled) < len(models):
        raise InputError("the same model was given twice: name another to compare it with")
    return labelled


def _export_folder(model: Model) -> Path | None:
    return model.path / EXPORT_FOLDER if model.kind == "run" else None


def _float32_runner(model: Model) -> Any:
    """What exported decoders must equal: the Keras decoder in float32, whatever precision it trains in."""
    return model.decode if model.vae is None else keras_runner(float32_copy(model.vae.decoder))
