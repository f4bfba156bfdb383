"""Fits a prior to the codes of images by flow matching."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_vae.model import conditioning, picture_field
from keras_vae.model.priors import FlowMatchingPrior, unfitted_flow, whitening
from keras_vae.support import progress
from keras_vae.support.conditions import Condition
from keras_vae.support.errors import InputError
from keras_vae.support.keras_defaults import keras_defaults

MOST_CODES = 100_000  # the most images to whose codes a prior is fitted
STEPS = 3500  # of fitting
BATCH = 256
BATCH_WITH_PICTURE = 64
EPOCHS = 100  # of fitting at most, or a few codes would be memorized
LEARNING_RATE = 2e-3
WARMUP_STEPS = 50


class Stage(NamedTuple):
    """Some steps of fitting: how many, on how many codes, convolutions' dtype (None: left out), what is fitted."""

    steps: int
    batch: int
    conv_dtype: str | None
    weights: Sequence[Any]


@keras_defaults()
def fit(
    mean: np.ndarray,
    log_var: np.ndarray,
    seed: int = 0,
    steps: int = STEPS,
    conditions: np.ndarray | None = None,
    unknown: tuple[np.ndarray, np.ndarray] | None = None,
    condition: Condition | None = None,
    decode: Callable[[np.ndarray], Any] | None = None,
    conv_dtype: str = "float32",
) -> FlowMatchingPrior:
    """A prior fitted to codes: draws from the posteriors of training images.

    Args:
        mean, log_var: of their posteriors, float32 (images, latent_dim).
        seed: of the field's first weights and of all that is drawn.
        steps: of fitting, each on 256 codes; with `decode`, the second half fits the convolutions, on 64 codes. Fewer
            are made if each code would be seen more than `EPOCHS` times.
        conditions: of the images of a conditional model, float32 (images, condition_dim); some are left out in each
            step, as in the model's training.
        unknown: means and log-variances of the same images when nothing is known of them.
        condition: of the model; these three go together.
        decode: latents to images, float (count, height, width, channels): part of the field then works on these
            (`PictureField`). None for a field without that part.
        conv_dtype: in which its convolutions are computed while it is fitted.

    Raises:
        InputError: codes that are not finite.
    """
    count, latent_dim = mean.shape
    if unknown is not None:  # behind those of known images, in the same order
        mean, log_var = (np.concatenate(each) for each in zip((mean, log_var), unknown, strict=True))
    condition_dim = 0 if condition is None else len(condition)
    centre, axes = whitening(mean, log_var)
    # Codes and posteriors in the axes in which they are white.
    to_axes = np.linalg.inv(axes.astype(np.float64)).T.astype(np.float32)
    means = (mean - centre) @ to_axes
    first = np.random.default_rng(seed)
    patches = None
    if decode is not None:  # of codes of which nothing is known, where there are such
        chosen = len(mean) - count + first.integers(count, size=max(picture_field.DECODED, 4 * latent_dim))
        noise = first.standard_normal((len(chosen), latent_dim), np.float32)
        z = mean[chosen] + np.exp(0.5 * log_var[chosen]) * noise
        patches = picture_field.patch_map((z - centre) @ to_axes, lambda rows: decode(z[rows]))
    if patches is None:
        prior = unfitted_flow(centre, axes, condition_dim)
    else:
        components = patches.shape[1] // picture_field.SIDE**2
        prior = unfitted_flow(centre, axes, condition_dim, channels=picture_field.CHANNELS, components=components)
        assert prior.picture is not None
        prior.picture.set_patch_map(patches)
    for kernel in prior.kernels:
        limit = math.sqrt(6.0 / (math.prod(kernel.shape[:-2]) * sum(kernel.shape[-2:])))  # Glorot's
        kernel.assign(first.uniform(-limit, limit, kernel.shape))
    means = tf.constant(means)
    deviations = tf.constant(np.exp(0.5 * log_var))
    draws = tf.random.Generator.from_seed(seed, alg="philox")
    # Halfway between the codes' own metric, in which wide axes count most, and the white one: it gave the best images.
    widths = np.linalg.norm(axes, axis=0)
    axis_weights = (widths / widths.mean()).astype(np.float32)

    def error(batch: int, conv_dtype: str | None) -> tf.Tensor:
        rows, known = draws.uniform((batch,), maxval=count, dtype=tf.int64), None
        if condition is not None:
            chances = draws.normal((batch, conditioning.draws(condition)))
            known = conditioning.partly_unknown(tf.gather(conditions, rows), chances)
            rows += tf.where(tf.reduce_all(known == 0.0, axis=1), tf.constant(count, tf.int64), 0)
        spread = tf.gather(deviations, rows) * draws.normal((batch, latent_dim))
        codes = tf.gather(means, rows) + tf.matmul(spread, to_axes)
        noise = draws.normal((batch, latent_dim))
        # Stratified, and more of them late, where the field tells codes apart.
        places = np.arange(batch, dtype=np.float32)[:, np.newaxis]
        t = tf.sqrt((places + draws.uniform((batch, 1))) / batch)
        velocity = prior.velocity(t * codes + (1.0 - t) * noise, t, known, conv_dtype)
        return tf.reduce_mean(axis_weights * tf.square(velocity - (codes - noise)))

    if prior.picture is None:
        stages = [Stage(min(steps, EPOCHS * count // BATCH), BATCH, None, prior.field_weights)]
    else:  # first the dense part alone, whose steps take in more codes; then what convolutions add to it
        half = min(steps // 2, EPOCHS * count // (BATCH + BATCH_WITH_PICTURE))
        stages = [
            Stage(half, BATCH, None, prior.field_weights),
            Stage(half, BATCH_WITH_PICTURE, conv_dtype, prior.picture.field_weights),
        ]
    with progress.bar(sum(stage.steps for stage in stages), "fitting the prior", "steps") as bar:
        for stage in stages:
            for _ in _taken(stage, error):
                bar.update(1)
    if not all(np.isfinite(np.asarray(weight)).all() for weight in prior.weights):
        raise InputError(
            "the prior could not be fitted: its weights are not finite; leave it out with --prior standard"
        )
    return prior


def _taken(stage: Stage, error: Callable[[int, str | None], tf.Tensor]) -> Iterator[None]:
    """Takes a stage's steps with Adam, one at a time."""
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(stage.steps, 1), warmup_target=LEARNING_RATE, warmup_steps=min(WARMUP_STEPS, stage.steps)
    )
    optimizer = keras.optimizers.Adam(rate)
    optimizer.build(stage.weights)
    values = [weight.value for weight in stage.weights]
    # XLA's convolutions on a CPU are slow.
    in_xla = stage.conv_dtype is None or bool(tf.config.list_logical_devices("GPU"))

    @tf.function(autograph=False, jit_compile=in_xla)
    def step() -> None:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            loss = error(stage.batch, stage.conv_dtype)
        optimizer.apply(tape.gradient(loss, values), stage.weights)

    for _ in range(stage.steps):
        step()
        yield
