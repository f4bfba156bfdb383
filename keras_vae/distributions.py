"""Probability distributions of the model: the posterior over latents and the likelihoods of images.

Everything is computed in float32, whatever the precision of the network that produced the
parameters: sums over thousands of pixels are not for half-precision numbers.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import keras
from keras import ops

from keras_vae.errors import InputError


class DiagonalGaussian:
    """A batch of Gaussians with diagonal covariance, given by mean and log-variance.

    Args:
        mean: array or tensor, shape (batch, latent_dim).
        log_var: array or tensor, natural logarithm of the variance, same shape.

    Example:
        >>> posterior = vae.encode(images)
        >>> z = posterior.sample(seed=0)      # (batch, latent_dim), float32
        >>> nats = posterior.kl()             # (batch,), float32
    """

    def __init__(self, mean: Any, log_var: Any) -> None:
        self.mean = ops.cast(ops.convert_to_tensor(mean), "float32")
        self.log_var = ops.cast(ops.convert_to_tensor(log_var), "float32")
        if tuple(self.mean.shape) != tuple(self.log_var.shape):
            raise InputError(
                f"mean has shape {tuple(self.mean.shape)} and log_var {tuple(self.log_var.shape)}: "
                "give both the same shape, (batch, latent_dim)"
            )

    def sample(self, seed: int | keras.random.SeedGenerator | None = None) -> Any:
        """Draws one value each by the reparametrization mean + exp(log_var / 2) * noise.

        Kingma and Welling 2014, arXiv 1312.6114, section 2.4: the draw is differentiable in
        mean and log_var.

        Args:
            seed: an integer (the same integer gives the same draw), a `keras.random.SeedGenerator`
                (each call continues its stream), or None for a draw that differs each time.

        Returns:
            float32 tensor, shape (batch, latent_dim).
        """
        noise = keras.random.normal(ops.shape(self.mean), dtype="float32", seed=seed)
        return self.mean + ops.exp(0.5 * self.log_var) * noise

    def mode(self) -> Any:
        """The most probable value, which is the mean: float32, shape (batch, latent_dim)."""
        return self.mean

    def kl(self) -> Any:
        """Kullback-Leibler divergence from the standard normal, in nats, summed over latents.

        In closed form (arXiv 1312.6114, appendix B):
        KL = 1/2 * sum(exp(log_var) + mean^2 - 1 - log_var).

        Returns:
            float32 tensor, shape (batch,).
        """
        terms = ops.exp(self.log_var) + ops.square(self.mean) - 1.0 - self.log_var
        return 0.5 * ops.sum(terms, axis=-1)


def _sum_over_pixels(values: Any) -> Any:
    return ops.sum(values, axis=tuple(range(1, len(values.shape))))


@keras.saving.register_keras_serializable("keras_vae")
class Gaussian:
    """Likelihood N(x; decoded image, variance) for every pixel value, with one fixed variance.

    Its negative logarithm is squared error over twice the variance, plus a constant.

    Args:
        variance: of each pixel value, images being in [0, 1]. The default, 0.05, gave a KL of
            181 nats on faces, where the paper's perceptual loss gave 145.

    Raises:
        InputError: the variance is not a positive number.
    """

    name: ClassVar[str] = "gaussian"

    def __init__(self, variance: float = 0.05) -> None:
        if not (math.isfinite(variance) and variance > 0):
            raise InputError(f"variance={variance}: the Gaussian likelihood needs a positive variance")
        self.variance = float(variance)

    def log_prob(self, images: Any, decoded: Any) -> Any:
        """log p(images | z) in nats per image, every constant included.

        Args:
            images, decoded: shape (batch, height, width, channels), in [0, 1].

        Returns:
            float32 tensor, shape (batch,).
        """
        error = ops.square(ops.cast(images, "float32") - ops.cast(decoded, "float32"))
        constant = math.log(2.0 * math.pi * self.variance)
        return _sum_over_pixels(-0.5 * (error / self.variance + constant))

    def get_config(self) -> dict[str, Any]:
        return {"variance": self.variance}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Gaussian:
        return cls(**config)


@keras.saving.register_keras_serializable("keras_vae")
class Bernoulli:
    """Likelihood of binary pixels: the decoded value is the probability of a one.

    Grey values in [0, 1] are accepted, as is common, but then the figure is not a likelihood.
    """

    name: ClassVar[str] = "bernoulli"

    def log_prob(self, images: Any, decoded: Any) -> Any:
        """log p(images | z) in nats per image.

        Args:
            images, decoded: shape (batch, height, width, channels), in [0, 1]. Decoded values are
                kept 1e-6 away from 0 and 1, where the logarithm ends.

        Returns:
            float32 tensor, shape (batch,).
        """
        images = ops.cast(images, "float32")
        probability = ops.clip(ops.cast(decoded, "float32"), 1e-6, 1.0 - 1e-6)
        values = images * ops.log(probability) + (1.0 - images) * ops.log1p(-probability)
        return _sum_over_pixels(values)

    def get_config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Bernoulli:
        return cls(**config)


Likelihood = Gaussian | Bernoulli
LIKELIHOODS: dict[str, type[Likelihood]] = {kind.name: kind for kind in (Gaussian, Bernoulli)}


def get_likelihood(likelihood: str | Likelihood) -> Likelihood:
    """The likelihood of that name, or the given object itself.

    Raises:
        InputError: there is no likelihood of that name.
    """
    if not isinstance(likelihood, str):
        return likelihood
    if likelihood not in LIKELIHOODS:
        raise InputError(f"unknown likelihood {likelihood!r}: choose one of {', '.join(LIKELIHOODS)}")
    return LIKELIHOODS[likelihood]()
