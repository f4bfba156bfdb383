"""The decoder as a TensorFlow SavedModel, the format of TF Serving."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_vae.export import seal
from keras_vae.export.conditional import condition_of
from keras_vae.export.errors import ExportError
from keras_vae.export.formats import CONDITION, LATENTS, NOISE, TAKEN, Opened, in_order
from keras_vae.export.generator import as_inputs, inputs_of
from keras_vae.export.on_images import mean_and_log_var
from keras_vae.export.output import to_uint8
from keras_vae.export.writers import saved_model_warmup
from keras_vae.export.writers.saved_model_constants import compute_weights_once
from keras_vae.support.true_float32 import CPU, true_float32

SIGNATURE = "serving_default"
GENERATE = "generate"
EXTRA = "assets.extra"  # TF Serving's folder for what is not a part of the graph
MANIFEST = f"{EXTRA}/keras_vae.json"
WARMUP_BATCHES = (1, 8, 64)


def write(
    decoder: keras.Model,
    path: Path,
    metadata: Mapping[str, str],
    prior: keras.layers.Layer | None = None,
    encoder: keras.Model | None = None,
    scorer: Any = None,
) -> None:
    """Writes a float32 decoder as a SavedModel.

    Its signatures, each with a free batch and no state, of a conditional model with a second input, `condition`,
    float32 (batch, names), where they take z or noise:
        serving_default: z float32 (batch, latent_dim) to image (batch, height, width, channels), float32 or uint8.
        png: z to png_bytes, string (batch,): each image as a PNG file; by its name's ending TF Serving knows to send
            it in base64 by REST.
        generate, generate_png: noise, float32 (batch, latent_dim) and standard normal, to what the former two return:
            with a prior.
        sample: count and seed, int64 scalars, and `condition`, one row (names,) for all, to image and its z, of noise
            drawn by the seed and mapped by the prior; as many as count, the first ones alike whatever the count.
        encode: image to mean and log_var, float32 (batch, latent_dim): with an encoder.
        score: image to score, rank, error_map and reconstruction, as `keras_vae.export.scorer` has them: with a scorer.

    In assets.extra are requests that TF Serving warms up with, and the metadata with the sums of all files.
    """

    specs = _specs(decoder, LATENTS)
    run, weights = compute_weights_once(lambda *rows: decoder(as_inputs(rows), training=False), *specs)

    def decode(*rows: tf.Tensor) -> tf.Tensor:
        return _with_empty_batches(run, *rows)

    # Not Keras's ExportArchive, which writes each weight twice (3.15): its variables' two faces count as two.
    module = tf.Module()
    others = [variable.value for model in (prior, encoder) if model is not None for variable in model.variables]
    module.weights = [*weights, *others, *(variable.value for variable in getattr(scorer, "weights", ()))]
    signatures = {
        SIGNATURE: _image_function(decode, specs),
        "sample": _sample_function(decode, prior, specs),
    }
    has_png = decoder.output_shape[-1] in (1, 3)  # PNG files have no other channels
    if has_png:
        signatures["png"] = _png_function(decode, specs)
    if prior is not None:

        def generate(noise: tf.Tensor, *asked: tf.Tensor) -> tf.Tensor:
            return decode(_with_empty_batches(prior, noise, *asked), *asked)

        signatures[GENERATE] = _image_function(generate, _specs(decoder, NOISE))
        if has_png:
            signatures["generate_png"] = _png_function(generate, _specs(decoder, NOISE))
    if encoder is not None:
        encode = functools.partial(mean_and_log_var, encoder)
        signatures["encode"] = _function_of_images(encode, encoder.input_shape[1:])
    if scorer is not None:
        signatures["score"] = _function_of_images(scorer, decoder.output_shape[1:])
    tf.saved_model.save(module, str(path), signatures=signatures)
    saved_model_warmup.write(
        path / EXTRA / saved_model_warmup.FILE, _warmup_requests(decoder, encoder, list(signatures))
    )
    (path / MANIFEST).write_text(seal.manifest(metadata, _sums(path)))


def _specs(decoder: keras.Model, first: str) -> list[tf.TensorSpec]:
    """What a decoder takes, or a generator, as `inputs_of` has it."""
    return [tf.TensorSpec((None, *row), tf.float32, name=name) for name, row in inputs_of(decoder, first).items()]


def _with_empty_batches(run: Any, *rows: tf.Tensor) -> Any:
    """Runs a network on one more row where there are none: oneDNN's convolutions fail on empty batches (2.21)."""
    count = tf.shape(rows[0])[0]
    padded = []
    for x in rows:
        rest = [[0, 0]] * (len(x.shape) - 1)
        padded.append(tf.pad(x, [[0, tf.cast(tf.equal(count, 0), tf.int32)], *rest]))
    return tf.nest.map_structure(lambda output: output[:count], run(*padded))


def _image_function(images: Any, specs: list[tf.TensorSpec]) -> Any:
    return tf.function(lambda *rows: {"image": images(*rows)}, input_signature=specs, autograph=False)


def _png_function(images: Any, specs: list[tf.TensorSpec]) -> Any:
    def png(*rows: tf.Tensor) -> dict[str, tf.Tensor]:
        pixels = to_uint8(images(*rows))
        return {"png_bytes": tf.map_fn(tf.io.encode_png, pixels, fn_output_signature=tf.string)}

    return tf.function(png, input_signature=specs, autograph=False)


def _sample_function(decode: Any, prior: Any, specs: list[tf.TensorSpec]) -> Any:
    first, *others = specs
    latent_dim = first.shape[1]
    scalars = [tf.TensorSpec((), tf.int64, name=name) for name in ("count", "seed")]
    alone = [tf.TensorSpec(each.shape[1:], each.dtype, name=each.name) for each in others]

    def sample(count: tf.Tensor, seed: tf.Tensor, *asked: tf.Tensor) -> dict[str, tf.Tensor]:
        # One seed a row: a generator asked for more numbers at once would give others.
        rows = tf.stack([tf.fill([count], seed), tf.range(count)], axis=1)
        noise = tf.map_fn(
            lambda row: tf.random.stateless_normal((latent_dim,), row, alg="philox"),
            rows,
            fn_output_signature=tf.float32,
        )
        conditions = [tf.repeat(row[tf.newaxis], count, axis=0) for row in asked]
        z = noise if prior is None else _with_empty_batches(prior, noise, *conditions)
        return {"image": decode(z, *conditions), "z": z}

    return tf.function(sample, input_signature=[*scalars, *alone], autograph=False)


def _function_of_images(run: Callable[[tf.Tensor], dict[str, tf.Tensor]], image_shape: tuple[int, ...]) -> Any:
    spec = tf.TensorSpec((None, *image_shape), tf.float32, name="image")
    return tf.function(lambda image: _with_empty_batches(run, image), input_signature=[spec], autograph=False)


def _warmup_requests(
    decoder: keras.Model, encoder: keras.Model | None, signatures: list[str]
) -> list[tuple[str, Mapping[str, tf.Tensor]]]:
    # Not sample: a server that batches refuses its scalars, and a model whose warm-up fails is not served.
    requests: list[tuple[str, Mapping[str, tf.Tensor]]] = [
        (name, {spec.name: tf.zeros((batch, *spec.shape[1:])) for spec in _specs(decoder, given)})
        for name, given in ((SIGNATURE, LATENTS), ("png", LATENTS), (GENERATE, NOISE), ("generate_png", NOISE))
        if name in signatures
        for batch in WARMUP_BATCHES
    ]
    if encoder is not None:
        requests.append(("encode", {"image": tf.zeros((1, *encoder.input_shape[1:]))}))
    if "score" in signatures:
        requests.append(("score", {"image": tf.zeros((1, *decoder.output_shape[1:]))}))
    return requests


def _sums(path: Path) -> dict[str, str]:
    """The sums of a SavedModel's files, by name, without the manifest."""
    return {
        str(file.relative_to(path).as_posix()): seal.digest(file)
        for file in sorted(path.rglob("*"))
        if file.is_file() and file != path / MANIFEST
    }


def open_decoder(path: Path) -> Opened:
    """Loads a SavedModel's decoder, to run on the CPU.

    Raises:
        ExportError: it cannot be read, is not what was exported, or has another signature.
    """
    metadata: dict[str, str] = {}
    if (path / MANIFEST).is_file():
        metadata = seal.check_manifest((path / MANIFEST).read_bytes(), _sums(path), path)
        seal.check_version(metadata, path)
    try:
        with true_float32():  # its variables on the CPU too
            loaded = tf.saved_model.load(str(path))
    except Exception as error:  # a damaged SavedModel raises whatever its damage leads to
        raise ExportError(f"cannot read the SavedModel {path}: {str(error).splitlines()[0]}") from error
    signature = loaded.signatures.get(SIGNATURE)
    arguments = signature.structured_input_signature[1] if signature is not None else {}
    taken = in_order(arguments)
    if taken not in TAKEN or taken[0] != LATENTS or list(signature.structured_outputs) != ["image"]:
        raise ExportError(f"{path} is not a decoder: its signature {SIGNATURE!r} does not take z and return image")
    condition = condition_of(metadata, arguments[CONDITION].shape[1:] if CONDITION in arguments else (), path)
    run = {
        name: _on_cpu(loaded, name) for name in (SIGNATURE, GENERATE, "encode", "score") if name in loaded.signatures
    }

    def decode(*rows: np.ndarray) -> np.ndarray:
        return run[SIGNATURE](*rows)["image"].numpy()

    def generate(*rows: np.ndarray) -> np.ndarray:
        return run[GENERATE](*rows)["image"].numpy()

    def of_images(name: str) -> Any:
        return lambda image: {output: value.numpy() for output, value in run[name](image).items()}

    image_shape = tuple(signature.structured_outputs["image"].shape[1:])
    return Opened(
        "tf_saved_model",
        arguments["z"].shape[1],
        image_shape,
        decode=decode,
        generate=generate if GENERATE in run else None,
        encode=of_images("encode") if "encode" in run else None,
        score=of_images("score") if "score" in run else None,
        metadata=metadata,
        condition=condition,
    )


def _on_cpu(loaded: Any, signature: str) -> Any:
    """A signature as a function of rows, on the CPU: called by itself, it is computed on a card where there is one."""
    specs = loaded.signatures[signature].structured_input_signature[1]
    names = in_order(specs)

    def placed(*rows: tf.Tensor) -> Any:
        with tf.device(CPU):  # holds for the operations of a function that is called within another
            # Through `loaded`, which keeps the variables.
            return loaded.signatures[signature](**dict(zip(names, rows, strict=True)))

    function = tf.function(placed, input_signature=[specs[name] for name in names], autograph=False)

    @true_float32()
    def run(*rows: np.ndarray) -> Any:
        return function(*(tf.constant(each, tf.float32) for each in rows))

    return run
