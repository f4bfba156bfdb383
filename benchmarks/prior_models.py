"""The priors that `benchmarks.priors` compares: each is fitted to codes and turns standard normal noise into samples.

Each has `draw(noise)`, float32 (count, latent_dim) from noise of the same shape, and if its density is known
`log_prob(z)`, nats, float32 (count,).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from scipy import stats
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from keras_vae.model import flow_matching, priors
from keras_vae.model.distributions import DiagonalGaussian
from keras_vae.model.encoding import Encoded

COMPONENTS = 10
BATCH = 256
LEARNING_RATE = 1e-3


def trained(loss_of: Callable[[Any], Any], weights: list[Any], codes: Encoded, seed: int, steps: int) -> None:
    """Minimizes a loss of white codes, draws from the posteriors, by Adam along a cosine."""
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps))
    optimizer.build(weights)
    draws = tf.random.Generator.from_seed(seed, alg="philox")
    mean, deviation = tf.constant(codes.mean), tf.constant(np.exp(0.5 * codes.log_var))

    @tf.function(autograph=False)
    def step() -> Any:
        rows = draws.uniform((BATCH,), maxval=len(codes), dtype=tf.int64)
        noise = draws.normal((BATCH, codes.latent_dim))
        with tf.GradientTape() as tape:
            loss = loss_of(tf.gather(mean, rows) + tf.gather(deviation, rows) * noise)
        optimizer.apply(tape.gradient(loss, weights), weights)
        return loss

    for _ in range(steps):
        loss = step()
    assert math.isfinite(float(loss))


def dense(sizes: tuple[int, ...], seeds: np.random.Generator, last: str = "glorot_uniform") -> keras.Sequential:
    """A network of ReLU layers but for the last; sizes from its inputs to its outputs."""
    network = keras.Sequential([keras.Input(sizes[:1])])
    for number, units in enumerate(sizes[1:], 2):
        kind, activation = (last, None) if number == len(sizes) else ("glorot_uniform", "relu")
        kernel = keras.initializers.GlorotUniform(int(seeds.integers(2**31))) if kind != "zeros" else "zeros"
        network.add(keras.layers.Dense(units, activation, kernel_initializer=kernel))
    return network


class TrainingCodes:
    """No prior, but the best that one can do: draws from the posteriors of training images."""

    def __init__(self, codes: Encoded, seed: int) -> None:
        self.codes, self.seed = codes, seed

    def draw(self, noise: np.ndarray) -> np.ndarray:
        rows = np.random.default_rng(self.seed).permutation(len(self.codes))[: len(noise)]
        return self.codes.mean[rows] + np.exp(0.5 * self.codes.log_var[rows]) * noise[: len(rows)]


class Mixture:
    """Gaussians N(mean, factor factor^T), each with its weight."""

    def __init__(self, weights: np.ndarray, means: np.ndarray, factors: np.ndarray, seed: int) -> None:
        self.weights, self.means, self.factors, self.seed = weights, means, factors, seed

    def draw(self, noise: np.ndarray) -> np.ndarray:
        chosen = np.random.default_rng(self.seed).choice(len(self.weights), len(noise), p=self.weights)
        drawn = np.empty_like(noise)
        for component in np.unique(chosen):
            rows = chosen == component
            drawn[rows] = self.means[component] + noise[rows] @ self.factors[component].T.astype(np.float32)
        return drawn

    def log_prob(self, z: np.ndarray) -> Any:
        found = [
            stats.multivariate_normal(mean, factor @ factor.T).logpdf(z)
            for mean, factor in zip(self.means, self.factors, strict=True)
        ]
        return tf.constant(logsumexp(found, axis=0, b=self.weights[:, np.newaxis]), tf.float32)


def one_gaussian(codes: Encoded, seed: int) -> Mixture:
    """The codes' mean and covariance."""
    fitted = priors.gaussian(codes.mean, codes.log_var)
    return Mixture(np.ones(1), np.asarray(fitted.mean)[None], np.asarray(fitted.axes, np.float64)[None], seed)


def mixture(codes: Encoded, seed: int) -> Mixture:
    """Ten Gaussians with full covariances, of posterior means (Ghosh et al. 2020, arXiv 1903.12436)."""
    fitted = GaussianMixture(COMPONENTS, random_state=seed, reg_covar=1e-4, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted.fit(codes.mean.astype(np.float64))
    return Mixture(fitted.weights_, fitted.means_, np.linalg.cholesky(fitted.covariances_), seed)


class SecondStage:
    """A VAE of codes that were scaled to variance 1, with one learned deviation (Dai and Wipf 2019, arXiv 1903.05789).

    Where it reconstructs to that deviation, the distribution of its samples is the codes'.
    """

    WIDTH, DEPTH, STEPS = 512, 3, 4000
    LOG_DEVIATION = -2.0  # at first: with a likelihood as wide as the data, telling nothing is a minimum

    def __init__(self, codes: Encoded, seed: int) -> None:
        self.seed = seed
        count = codes.latent_dim
        seeds = np.random.default_rng(seed)
        deviations = np.sqrt(codes.mean.var(axis=0) + np.exp(codes.log_var).mean(axis=0))
        self.shift, self.scale = codes.mean.mean(axis=0), np.maximum(deviations, 1e-6)
        self.encoder, self.decoder = (self._network(count, outputs, seeds) for outputs in (2 * count, count))
        self.log_deviation = keras.Variable(self.LOG_DEVIATION, dtype="float32")
        weights = [*self.encoder.trainable_weights, *self.decoder.trainable_weights, self.log_deviation]
        trained(lambda z: self._loss((z - self.shift) / self.scale), weights, codes, seed, self.STEPS)

    def _network(self, inputs: int, outputs: int, seeds: np.random.Generator) -> keras.Model:
        z = keras.Input((inputs,))
        hidden = dense((inputs, *(self.DEPTH - 1) * (self.WIDTH,), self.WIDTH), seeds)(z)
        both = keras.layers.Concatenate()([keras.layers.ReLU()(hidden), z])
        return keras.Model(z, dense((self.WIDTH + inputs, outputs), seeds)(both))

    def _loss(self, z: Any) -> Any:
        mean, log_var = tf.split(self.encoder(z), 2, axis=-1)
        log_var = tf.clip_by_value(log_var, -12.0, 2.0)
        posterior = DiagonalGaussian(mean, log_var)
        drawn = posterior.sample(tf.random.normal(tf.shape(mean)))
        error = tf.square(z - self.decoder(drawn)) * tf.exp(-2.0 * self.log_deviation)
        return tf.reduce_mean(tf.reduce_sum(0.5 * error + self.log_deviation, axis=-1) + posterior.kl())

    @tf.function(autograph=False, reduce_retracing=True)
    def _decoded(self, noise: Any) -> Any:
        return self.decoder(noise)

    def draw(self, noise: np.ndarray) -> np.ndarray:
        own = np.random.default_rng(self.seed).standard_normal(noise.shape, np.float32)
        drawn = np.asarray(self._decoded(tf.constant(noise))) + np.exp(np.asarray(self.log_deviation)) * own
        return self.shift + self.scale * drawn


class RealNVP:
    """Affine couplings with random rotations between them, of white codes (Dinh et al. 2017, arXiv 1605.08803)."""

    COUPLINGS, WIDTH, STEPS = 8, 256, 1500
    MOST = 1.5  # of a coupling's log scales

    def __init__(self, codes: Encoded, seed: int) -> None:
        count = codes.latent_dim
        seeds = np.random.default_rng(seed)
        fitted = priors.gaussian(codes.mean, codes.log_var)
        self.mean, self.axes = np.asarray(fitted.mean), np.asarray(fitted.axes)
        self.to_axes = np.linalg.inv(self.axes.astype(np.float64)).T.astype(np.float32)
        self.log_scale = float(np.linalg.slogdet(self.axes.astype(np.float64))[1])
        self.white = priors.StandardNormal(count)
        self.kept = count // 2
        sizes = (self.kept, self.WIDTH, self.WIDTH, 2 * (count - self.kept))
        self.networks = [dense(sizes, seeds, last="zeros") for _ in range(self.COUPLINGS)]
        turns = [np.linalg.qr(seeds.standard_normal((count, count)))[0] for _ in range(self.COUPLINGS)]
        self.rotations = [tf.constant(each, tf.float32) for each in turns]
        weights = [weight for network in self.networks for weight in network.trainable_weights]
        trained(lambda z: -tf.reduce_mean(self.log_prob(z)), weights, codes, seed, self.STEPS)

    def _coupling(self, network: Any, kept: Any) -> tuple[Any, Any]:
        log_scale, shift = tf.split(network(kept), 2, axis=-1)
        return self.MOST * tf.tanh(log_scale / self.MOST), shift

    @tf.function(autograph=False, reduce_retracing=True)
    def log_prob(self, z: Any) -> Any:
        x = tf.matmul(z - self.mean, self.to_axes)
        nats = -self.log_scale
        for network, rotation in zip(self.networks, self.rotations, strict=True):
            kept, moved = tf.split(tf.matmul(x, rotation), [self.kept, -1], axis=-1)
            log_scale, shift = self._coupling(network, kept)
            x = tf.concat([kept, moved * tf.exp(log_scale) + shift], axis=-1)
            nats += tf.reduce_sum(log_scale, axis=-1)
        return nats + self.white.log_prob(x)

    @tf.function(autograph=False, reduce_retracing=True)
    def draw(self, noise: Any) -> Any:
        x = noise
        for network, rotation in zip(reversed(self.networks), reversed(self.rotations), strict=True):
            kept, moved = tf.split(x, [self.kept, -1], axis=-1)
            log_scale, shift = self._coupling(network, kept)
            x = tf.matmul(tf.concat([kept, (moved - shift) * tf.exp(-log_scale)], axis=-1), rotation, transpose_b=True)
        return self.mean + tf.matmul(x, self.axes, transpose_b=True)


class OfPackage:
    """A prior of the package's own, its draws compiled."""

    def __init__(self, prior: Any) -> None:
        self.log_prob = prior.log_prob
        self.draw = tf.function(prior.call, autograph=False, reduce_retracing=True)


# From codes and a seed.
FITS: dict[str, Callable[[Encoded, int], Any]] = {
    "training codes": TrainingCodes,
    "standard": lambda codes, seed: OfPackage(priors.StandardNormal(codes.latent_dim)),
    "gaussian": one_gaussian,
    "mixture": mixture,
    "second stage": SecondStage,
    "realnvp": RealNVP,
    "flow matching": lambda codes, seed: OfPackage(flow_matching.fit(codes.mean, codes.log_var, seed)),
}
