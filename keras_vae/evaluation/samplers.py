"""Densities fitted to encoded images, to draw latents from instead of the prior.

The prior has latents that no image is encoded near to, and the decoder has not learned to draw those.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Mixture

from keras_vae import progress
from keras_vae.distributions import DiagonalGaussian
from keras_vae.errors import InputError
from keras_vae.evaluation.encoding import Encoded
from keras_vae.export.keras_defaults import keras_defaults
from keras_vae.export.samplers import GaussianMixture, Sampler, SecondStage

COMPONENTS = 10  # Ghosh et al. 2020
IMAGES_PER_COMPONENT = 20
LEAST_FOR_SECOND_STAGE = 500
WIDTH = 512
DEPTH = 3
STEPS = 4_000
BATCH = 256
LEARNING_RATE = 1e-3
LOG_DEVIATION = -2.0


def gaussian_mixture(
    encoded: Encoded, components: int = COMPONENTS, seed: int = 0, metadata: dict[str, str] | None = None
) -> GaussianMixture:
    """A mixture of Gaussians with full covariances, fitted to posterior means (Ghosh et al. 2020, arXiv 1903.12436).

    Args:
        encoded: images that the model trained on.
        components: of the mixture.
        seed: of its start.
        metadata: to keep with it.

    Raises:
        InputError: fewer than 20 images a component.
    """
    least = IMAGES_PER_COMPONENT * components
    if len(encoded) < least:
        raise InputError(f"a mixture of {components} Gaussians needs {least} images to fit, not {len(encoded)}")
    mixture = Mixture(components, covariance_type="full", random_state=seed, reg_covar=1e-4, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(encoded.mean.astype(np.float64))
    factors = np.linalg.cholesky(mixture.covariances_)
    return GaussianMixture(
        mixture.weights_.astype(np.float32),
        mixture.means_.astype(np.float32),
        factors.astype(np.float32),
        metadata or {},
    )


@keras_defaults()
def second_stage(
    encoded: Encoded, seed: int = 0, steps: int = STEPS, metadata: dict[str, str] | None = None
) -> SecondStage:
    """A second VAE whose data are draws from the first one's posteriors (Dai and Wipf 2019, arXiv 1903.05789, sect. 5).

    It has as many latents as the first, dense layers, and a Gaussian likelihood with one learned variance: where it
    reconstructs to that variance, the distribution of its samples is the data's.

    Args:
        encoded: images that the model trained on.
        seed: of its weights, batches and noise.
        steps: of training, in batches of 256.
        metadata: to keep with it.

    Raises:
        InputError: fewer than 500 images.
    """
    if len(encoded) < LEAST_FOR_SECOND_STAGE:
        raise InputError(f"a second-stage VAE needs {LEAST_FOR_SECOND_STAGE} images to fit, not {len(encoded)}")
    model = _SecondStage(encoded.latent_dim, seed)
    deviations = np.sqrt(encoded.mean.var(axis=0) + np.exp(encoded.log_var).mean(axis=0))
    shift, scale = encoded.mean.mean(axis=0), np.maximum(deviations, 1e-6)
    mean = ((encoded.mean - shift) / scale).astype(np.float32)
    deviation = (np.exp(0.5 * encoded.log_var) / scale).astype(np.float32)
    rng = np.random.default_rng(seed)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps))
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(z: Any, noise: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = model.negative_elbo(z, noise)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    with progress.bar(steps, "fitting the second stage", "steps") as bar:
        for _ in range(steps):
            rows = rng.integers(len(mean), size=BATCH)
            z = mean[rows] + deviation[rows] * rng.standard_normal((BATCH, encoded.latent_dim), np.float32)
            loss = step(z, rng.standard_normal(z.shape, np.float32))
            bar.update(1)
    if not math.isfinite(float(loss)):
        raise InputError("the second stage's loss is not finite: neither are the model's latents")
    return model.sampler(shift.astype(np.float32), scale.astype(np.float32), metadata or {})


class _SecondStage(keras.Model):
    def __init__(self, latent_dim: int, seed: int) -> None:
        super().__init__(dtype="float32")
        seeds = keras.random.SeedGenerator(seed)

        def dense(units: int, activation: str | None = None) -> layers.Dense:
            initializer = keras.initializers.GlorotUniform(int(keras.random.randint((), 0, 2**31 - 1, seed=seeds)))
            return layers.Dense(units, activation, kernel_initializer=initializer, dtype="float32")

        self.encoder = self._network(latent_dim, dense, 2 * latent_dim)
        self.decoder = self._network(latent_dim, dense, latent_dim)
        # Small at first: with a likelihood as wide as the data, telling nothing is a minimum that training ends in.
        start = keras.initializers.Constant(LOG_DEVIATION)
        self.log_deviation = self.add_weight((), start, name="log_deviation", dtype="float32")
        self.built = True

    def _network(self, latent_dim: int, dense: Any, outputs: int) -> keras.Model:
        inputs = hidden = keras.Input((latent_dim,), dtype="float32")
        for _ in range(DEPTH):
            hidden = dense(WIDTH, "relu")(hidden)
        return keras.Model(inputs, dense(outputs)(layers.Concatenate(dtype="float32")([hidden, inputs])))

    def negative_elbo(self, z: Any, noise: Any) -> Any:
        """Mean over the batch, nats."""
        mean, log_var = ops.split(self.encoder(z), 2, axis=-1)
        posterior = DiagonalGaussian(mean, ops.clip(log_var, -12.0, 2.0))
        drawn = posterior.mean + ops.exp(0.5 * posterior.log_var) * noise
        error = ops.square(z - self.decoder(drawn)) * ops.exp(-2.0 * self.log_deviation)
        nats = ops.sum(0.5 * error + self.log_deviation + 0.5 * math.log(2.0 * math.pi), axis=-1)
        return ops.mean(nats + posterior.kl())

    def sampler(self, shift: np.ndarray, scale: np.ndarray, metadata: dict[str, str]) -> SecondStage:
        weights = [np.array(weight) for weight in self.decoder.weights]
        deviation = np.exp(np.array(self.log_deviation))
        return SecondStage(tuple(weights[::2]), tuple(weights[1::2]), deviation, shift, scale, metadata)


FITS: dict[str, Callable[..., Sampler]] = {GaussianMixture.kind: gaussian_mixture, SecondStage.kind: second_stage}
