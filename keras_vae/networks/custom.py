"""Networks of the user's own."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from keras_vae.networks.parts import ImageShape, SafeLogVariance, condition_input, inputs
from keras_vae.support.errors import InputError
from keras_vae.support.keras_defaults import keras_defaults


@keras_defaults()
def adopt(
    encoder: keras.Model, decoder: keras.Model, image_shape: ImageShape, latent_dim: int, condition_dim: int = 0
) -> tuple[keras.Model, keras.Model, ImageShape, int]:
    """Makes any Keras encoder and decoder fit: named float32 outputs, a log-variance in a safe range.

    Args:
        encoder: from images to {"mean", "log_var"}, to the two in that order, or to one output
            (batch, 2 * latent_dim), the means first.
        decoder: from latents to images in [0, 1].
        image_shape, latent_dim: used if the models do not declare them.
        condition_dim: numbers in a condition, which both take as a second input; 0 for none.

    Returns:
        encoder, decoder, image_shape, latent_dim. What fits already is returned as it is.

    Raises:
        InputError: outputs of another form, models that do not fit each other, or images outside [0, 1].
    """
    for role, model in (("encoder", encoder), ("decoder", decoder)):
        if not isinstance(model, keras.Model):
            raise InputError(f"{role}={model!r}: give a Keras model")
    image = keras.Input(_declared(encoder, "encoder", image_shape, condition_dim), name="image")
    z = keras.Input(_declared(decoder, "decoder", (latent_dim,), condition_dim), name="z")
    condition = condition_input(condition_dim)
    outputs, decoded = encoder(inputs(image, condition)), decoder(inputs(z, condition))
    posterior = _named_posterior(outputs)
    if not keras.utils.is_keras_tensor(decoded) or tuple(decoded.shape[1:]) != tuple(image.shape[1:]):
        raise InputError(
            f"the decoder makes {_shape(decoded)} of latents, the encoder takes images {tuple(image.shape)}: "
            "give a pair that fits"
        )
    if posterior["mean"].shape[1] != z.shape[1]:
        raise InputError(
            f"the encoder makes {posterior['mean'].shape[1]} latents, the decoder takes {z.shape[1]}: give a pair that "
            "fits (one output of the encoder is read as means and log-variances side by side)"
        )
    if not (isinstance(outputs, dict) and any(isinstance(layer, SafeLogVariance) for layer in encoder.layers)):
        mean = layers.Activation("linear", dtype="float32", name="mean")(posterior["mean"])
        log_var = SafeLogVariance(dtype="float32", name="log_var")(posterior["log_var"])
        encoder = keras.Model(inputs(image, condition), {"mean": mean, "log_var": log_var}, name="encoder")
    if keras.backend.standardize_dtype(decoded.dtype) != "float32":
        decoded = layers.Activation("linear", dtype="float32", name="image")(decoded)
        decoder = keras.Model(inputs(z, condition), decoded, name="decoder")
    # A linear end is 0 for latents of zeros; it fits a Gaussian likelihood, but the results are not valid images.
    far_out = 100.0 * np.random.default_rng(0).standard_normal((16, z.shape[1])).astype(np.float32)
    for latents, severe in ((np.zeros_like(far_out), True), (far_out, False)):
        unknown = np.zeros((len(latents), condition_dim), np.float32) if condition_dim else None
        made = ops.convert_to_numpy(decoder(inputs(latents, unknown)))
        if not (made.min() >= 0.0 and made.max() <= 1.0):
            message = f"the decoder makes values from {made.min():g} to {made.max():g}: end it with a sigmoid, for "
            if severe:
                raise InputError(f"{message}images in [0, 1]")
            warnings.warn(f"{message}images in [0, 1] whatever the latents", stacklevel=3)
            break
    return encoder, decoder, tuple(image.shape[1:]), int(z.shape[1])


def _declared(model: keras.Model, role: str, otherwise: tuple[int, ...], condition_dim: int) -> tuple[int, ...]:
    """The shape of the first input of a model, less the batch; the condition is the second."""
    shape = getattr(model, "input_shape", None) if model.built else None
    if shape is None:
        return otherwise
    given = shape if isinstance(shape, list) else [shape]
    first = given[0] if not isinstance(shape, dict) else ()
    others = [tuple(each[1:]) for each in given[1:]]
    if others != [(condition_dim,)][: bool(condition_dim)] or len(first) != len(otherwise) + 1 or None in first[1:]:
        wanted = "(height, width, channels)" if role == "encoder" else "(latents,)"
        single = f"a single input of fixed shape, {wanted}"
        if condition_dim:
            single = f"two inputs of fixed shapes, {wanted} and the condition's ({condition_dim},)"
        raise InputError(f"the {role} takes {shape}: give one with {single}")
    return tuple(first[1:])


def _named_posterior(outputs: Any) -> dict[str, Any]:
    if isinstance(outputs, dict) and set(outputs) == {"mean", "log_var"}:
        posterior = outputs
    elif isinstance(outputs, (list, tuple)) and len(outputs) == 2:
        posterior = dict(zip(("mean", "log_var"), outputs, strict=True))
    elif keras.utils.is_keras_tensor(outputs) and len(outputs.shape) == 2 and (outputs.shape[1] or 1) % 2 == 0:
        half = outputs.shape[1] // 2
        posterior = {"mean": outputs[:, :half], "log_var": outputs[:, half:]}
    else:
        posterior = {}
    if (
        not posterior
        or any(len(part.shape) != 2 for part in posterior.values())
        or (posterior["mean"].shape != posterior["log_var"].shape)
    ):
        raise InputError(
            f"the encoder returns {_shape(outputs)}: give one that returns {{'mean', 'log_var'}}, "
            "the two in that order, or one output (batch, 2 * latent_dim)"
        )
    return posterior


def _shape(outputs: Any) -> str:
    if isinstance(outputs, dict):
        return "{" + ", ".join(f"{name!r}: {_shape(part)}" for name, part in outputs.items()) + "}"
    if isinstance(outputs, (list, tuple)):
        return ", ".join(map(_shape, outputs)) or "nothing"
    return str(tuple(outputs.shape))
