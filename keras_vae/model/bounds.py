"""Bounds on log p(x) tighter than the ELBO."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from scipy.special import logsumexp, softmax

from keras_vae.model.distributions import DiagonalGaussian
from keras_vae.support import progress
from keras_vae.support.errors import InputError
from keras_vae.support.keras_defaults import keras_defaults

# Pixel values decoded at a time: 341 images of 64x64x3. A decoder's activations take about fifty times as much.
DECODED_VALUES = 2**22


@dataclass(frozen=True)
class Bound:
    """An importance-weighted bound on log p(x).

    Attributes:
        mean: nats per image, over the images.
        standard_error: of that mean, because images differ; NaN for a single image.
        sampling_error: of that mean, because the draws are finitely many (delta method); NaN for K = 1.
        per_image: nats, float64 (images,).
        samples: K, the number of draws per image.
    """

    mean: float
    standard_error: float
    sampling_error: float
    per_image: np.ndarray
    samples: int


@keras_defaults()
def importance_weighted_bound(
    vae: keras.Model, batches: Iterable[Any], samples: int = 100, seed: int = 0, total: int | None = None
) -> Bound:
    """The importance-weighted bound of Burda et al. 2016 (arXiv 1509.00519, equation 8), in nats per image.

        L_K = E[ log 1/K sum_k p(x | z_k) p(z_k) / q(z_k | x) ],    z_k from q(z | x)

    For K = 1 it is the ELBO; it never decreases with K, and tends to log p(x). Draws are decoded a few hundred at a
    time, so memory hardly grows with K.

    Args:
        vae: a `keras_vae.VAE`, with the likelihood that it evaluates with.
        batches: images as for `VAE.evaluate`: a dataset, or any iterable of batches.
        samples: K, at least 1.
        seed: of the draws, which do not depend on how the images are batched.
        total: number of images, for the progress bar.

    Raises:
        InputError: samples below 1, no images, or images of another shape than the model's.
    """
    draws_in_all = None if total is None else total * samples
    bar = progress.bar(draws_in_all, f"importance-weighted bound, K={samples}", "draws", unit_scale=True)
    with vae.averaged_weights(), bar:
        bound_of = Estimator(vae, samples, seed, bar)
        found = [bound_of(images, vae.encode(images)) for images in map(vae.images_of, batches)]
    if not found:
        raise InputError("no images to bound the likelihood of")
    per_image, variances = (np.concatenate(column) for column in zip(*found, strict=True))
    count = len(per_image)
    return Bound(
        mean=float(per_image.mean()),
        standard_error=float(per_image.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan,
        sampling_error=float(math.sqrt(variances.sum()) / count),
        per_image=per_image,
        samples=samples,
    )


class Estimator:
    """Bounds of one batch of images after another.

    Args:
        vae, samples, seed: as `importance_weighted_bound`.
        bar: told of the draws that were made.

    Raises:
        InputError: samples below 1.
    """

    def __init__(self, vae: keras.Model, samples: int, seed: int = 0, bar: Any = None) -> None:
        if samples < 1:
            raise InputError(f"importance samples {samples}: give at least 1")
        self.vae, self.samples, self.bar = vae, samples, bar
        self._rng = np.random.default_rng(seed)
        self._log_weights = _log_weights_of(vae)

    def __call__(self, images: Any, posterior: DiagonalGaussian) -> tuple[np.ndarray, np.ndarray]:
        """Each image's bound in nats, and its sampling variance: float64 (images,) both; NaN variances for K = 1."""
        at_once = max(1, DECODED_VALUES // math.prod(self.vae.image_shape))
        group = max(1, at_once // self.samples)
        bounds, variances = np.empty(len(images)), np.full(len(images), math.nan)
        for start in range(0, len(images), group):
            part = slice(start, start + group)
            count = len(images[part])
            weights = np.empty((count, self.samples))
            for first in range(0, self.samples, at_once):
                draws = min(at_once, self.samples - first)
                noise = self._rng.standard_normal((count, draws, self.vae.latent_dim), np.float32)
                weights[:, first : first + draws] = self._log_weights(
                    images[part], posterior.mean[part], posterior.log_var[part], noise
                )
                if self.bar is not None:
                    self.bar.update(count * draws)
            bounds[part] = logsumexp(weights, axis=1) - math.log(self.samples)
            if self.samples > 1:  # delta method: the variance of a mean of weights, over its square
                variances[part] = self.samples * softmax(weights, axis=1).var(axis=1, ddof=1)
        return bounds, variances


def _log_weights_of(vae: keras.Model) -> Any:
    prior = DiagonalGaussian(np.zeros((1, vae.latent_dim)), np.zeros((1, vae.latent_dim)))

    @tf.function(jit_compile=vae.needs_xla, reduce_retracing=True)
    def log_weights(images: Any, mean: Any, log_var: Any, noise: Any) -> Any:
        """log p(x, z) - log q(z | x) of each draw: noise (images, draws, latents) to (images, draws)."""
        count, draws = ops.shape(noise)[0], ops.shape(noise)[1]
        z = mean[:, None] + ops.exp(0.5 * log_var)[:, None] * noise
        # log q(z | x) of z = mean + deviation * noise, from the noise itself.
        log_posterior = prior.log_prob(noise) - 0.5 * ops.sum(log_var, axis=-1)[:, None]
        decoded = vae.decode(ops.reshape(z, (-1, vae.latent_dim)))
        log_likelihood = vae.likelihood.log_prob(ops.repeat(images, draws, axis=0), decoded)
        return ops.reshape(log_likelihood, (count, draws)) + prior.log_prob(z) - log_posterior

    return log_weights
