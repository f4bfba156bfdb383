"""Probability distributions of the model: the posterior over latents and the likelihoods of images.

Everything is computed in float32, whatever the precision of the network that produced the parameters: half precision is
too coarse for sums over thousands of pixels.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import keras
from keras import layers, ops

from keras_vae.support import replicas
from keras_vae.support.errors import InputError

LOG_TWO_PI = math.log(2.0 * math.pi)
# Of the fixed Gaussian by default, and of a calibrated one until training has seen an error.
DEFAULT_VARIANCE = 0.05
# A perfect reconstruction would have an infinite likelihood: standard deviations are at least a quarter of 1/255.
MIN_VARIANCE = (0.25 / 255.0) ** 2
VARIANCE_MOMENTUM = 0.99  # of the running variances that evaluation uses: about the last hundred steps


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

    def sample(self, seed: Any = None) -> Any:
        """Draws one value each by the reparametrization mean + exp(log_var / 2) * noise.

        Kingma and Welling 2014, arXiv 1312.6114, section 2.4: the draw is differentiable in mean and log_var.

        Args:
            seed: an integer (the same one gives the same draw), a `keras.random.SeedGenerator` (each call continues its
                stream), None for a draw that differs each time, or the noise itself: float32 (batch, latent_dim).

        Returns:
            float32 tensor, shape (batch, latent_dim).
        """
        drawn = ops.is_tensor(seed) and seed.dtype == "float32"
        noise = seed if drawn else keras.random.normal(ops.shape(self.mean), dtype="float32", seed=seed)
        return self.mean + ops.exp(0.5 * self.log_var) * noise

    def mode(self) -> Any:
        """The most probable value, which is the mean: float32, shape (batch, latent_dim)."""
        return self.mean

    def log_prob(self, z: Any) -> Any:
        """Logarithm of the density of latents, in nats, summed over latents.

        Args:
            z: float, (..., batch, latent_dim).

        Returns:
            float32 tensor, shape (..., batch).
        """
        error = ops.square(ops.cast(z, "float32") - self.mean) * ops.exp(-self.log_var)
        return -0.5 * ops.sum(error + self.log_var + LOG_TWO_PI, axis=-1)

    def kl(self) -> Any:
        """Kullback-Leibler divergence from the standard normal, in nats, summed over latents.

        Returns:
            float32 tensor, shape (batch,).
        """
        return ops.sum(self.kl_per_latent(), axis=-1)

    def kl_per_latent(self) -> Any:
        """Kullback-Leibler divergence of each latent from the standard normal, in nats.

        Returns:
            float32 tensor, shape (batch, latent_dim).
        """
        return kl_per_latent(self.mean, self.log_var)

    def kl_with_free_bits(self, nats: float) -> Any:
        """The KL that is charged where each latent may carry some nats for free, the same for each image of the batch.

        Of each latent the mean over the batch is compared (Kingma et al. 2016, arXiv 1606.04934, appendix C.8).

        Args:
            nats: that each latent may carry.

        Returns:
            float32 tensor, shape (batch,).
        """
        per_latent = ops.mean(self.kl_per_latent(), axis=0)
        charged = ops.sum(ops.maximum(per_latent, nats))
        return ops.broadcast_to(charged, ops.shape(self.mean)[:1])


def kl_per_latent(mean: Any, log_var: Any) -> Any:
    """Kullback-Leibler divergence of N(mean, exp(log_var)) from the standard normal, in nats, element by element.

    In closed form (arXiv 1312.6114, appendix B): KL = 1/2 * (exp(log_var) + mean^2 - 1 - log_var).

    Args:
        mean, log_var: arrays or tensors of one shape, float32 or float64.

    Returns:
        tensor of that shape and dtype.
    """
    return 0.5 * (ops.exp(log_var) + ops.square(mean) - 1.0 - log_var)


@keras.saving.register_keras_serializable("keras_vae")
class RunningVariance(layers.Layer):
    """The optimal variances of some Gaussians: each batch's own in training, their running mean in evaluation.

    The variance that maximizes the likelihood of a batch is its mean squared error (sigma-VAE, Rybkin et al. 2021,
    arXiv 2006.13202, section 3.2). Evaluation must not look at the images it judges: it uses the mean over the last
    hundred or so training batches.

    Args:
        size: number of Gaussians.
        minimum: lower limit of the variances.
    """

    def __init__(self, size: int = 1, minimum: float = MIN_VARIANCE, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", "trainable": False, **kwargs})
        self.size = size
        self.minimum = minimum
        self.value = self.add_weight(name="value", shape=(size,), initializer=_initial_variance, trainable=False)
        self.updates = self.add_weight(name="updates", shape=(), initializer="zeros", trainable=False)
        self.built = True

    def call(self, squared_errors: Any, training: bool = False) -> Any:
        """The variances to use for a batch, updating the running ones in training.

        Args:
            squared_errors: float32 (batch, size), each image's mean squared error under each Gaussian.

        Returns:
            float32, shape (size,). No gradient passes: at the optimum the likelihood does not change with it.
        """
        if not training:
            return ops.maximum(self.value, self.minimum)
        optimal = ops.maximum(ops.stop_gradient(replicas.mean(squared_errors)), self.minimum)
        # A plain mean over the first updates, which then forgets: no trace of the initial value is left.
        share = ops.maximum(1.0 - VARIANCE_MOMENTUM, 1.0 / (self.updates + 1.0))
        self.value.assign(self.value + share * (optimal - self.value))
        self.updates.assign(self.updates + 1.0)
        return optimal

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "size": self.size, "minimum": self.minimum}


def _initial_variance(shape: Any, dtype: Any = None) -> Any:
    return DEFAULT_VARIANCE * ops.ones(shape, dtype)


class Likelihood(layers.Layer):
    """p(x | z): how probable an image is, given what the decoder made of its latents.

    Subclasses implement `log_prob`. It is a Keras layer, so that what a likelihood learns or tracks is trained and
    saved with the model.

    Attributes:
        kind: its name for `VAE(likelihood=...)` and the command line.
        discrete: whether it is a probability rather than a density; then bits per dimension mean something.
    """

    kind: ClassVar[str]
    discrete: ClassVar[bool] = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", "name": type(self).__name__.lower(), **kwargs})
        self.built = True

    def log_prob(self, images: Any, decoded: Any, training: bool = False) -> Any:
        """log p(images | z) in nats per image, every constant included.

        Args:
            images, decoded: shape (batch, height, width, channels), in [0, 1].
            training: whether the likelihood may adapt to this batch.

        Returns:
            float32 tensor, shape (batch,).
        """
        raise NotImplementedError

    def mean_squared_error(self, nats: float, count: int, training: bool = False) -> float | None:
        """The mean squared error that follows from -log p(x | z); None if none does.

        Args:
            nats: -log p(x | z), the mean over some images.
            count: number of values in an image.
            training: whether the nats are from a training step.
        """
        return None

    def call(self, images: Any, decoded: Any, training: bool = False) -> Any:
        return self.log_prob(images, decoded, training)


@keras.saving.register_keras_serializable("keras_vae")
class Gaussian(Likelihood):
    """N(x; decoded image, variance) for every pixel value, with one fixed variance.

    Its negative logarithm is squared error over twice the variance, plus a constant.

    Args:
        variance: sigma^2 of each pixel value, with images in [0, 1]. The default, 0.05, gave a KL of 181 nats on faces,
            where the paper's perceptual loss gave 145.

    Raises:
        InputError: the variance is not a positive number.
    """

    kind = "gaussian"

    def __init__(self, variance: float = DEFAULT_VARIANCE, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not (math.isfinite(variance) and variance > 0):
            raise InputError(f"variance={variance}: the Gaussian likelihood needs a positive variance")
        self.variance = float(variance)

    def log_prob(self, images: Any, decoded: Any, training: bool = False) -> Any:
        return _gaussian_log_prob(*_squared_error(images, decoded), self.variance)

    def mean_squared_error(self, nats: float, count: int, training: bool = False) -> float | None:
        return _gaussian_error(nats, count, self.variance)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "variance": self.variance}


@keras.saving.register_keras_serializable("keras_vae")
class GaussianCalibrated(Likelihood):
    """N(x; decoded image, variance) for every pixel value, with the one variance that fits best.

    sigma-VAE (Rybkin et al. 2021, arXiv 2006.13202): in training the variance is the batch's mean squared error,
    which maximizes its likelihood in closed form; in evaluation it is the running mean of those, a fixed number that
    has not seen the images, so that the ELBO is a bound. Nothing is left to tune between pixels and KL.
    """

    kind = "gaussian-calibrated"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.running = RunningVariance(name="variance")

    @property
    def variance(self) -> float:
        """The variance that evaluation uses."""
        return float(ops.convert_to_numpy(self.running.value)[0])

    def log_prob(self, images: Any, decoded: Any, training: bool = False) -> Any:
        error, count = _squared_error(images, decoded)
        (variance,) = ops.unstack(self.running(error[:, None], training=training), 1)
        return _gaussian_log_prob(error, count, variance)

    def mean_squared_error(self, nats: float, count: int, training: bool = False) -> float | None:
        if training:  # the variance was the error: of several batches this is the geometric mean, that of their dB
            return math.exp(2.0 * nats / count - 1.0) / (2.0 * math.pi)
        return _gaussian_error(nats, count, self.variance)


@keras.saving.register_keras_serializable("keras_vae")
class Bernoulli(Likelihood):
    """Likelihood of binary pixels: the decoded value is the probability of a one.

    Grey values in [0, 1] are accepted, as is common, but then the figure is not a likelihood. Decoded values are kept
    1e-6 away from 0 and 1, where the logarithm diverges.
    """

    kind = "bernoulli"
    discrete = True

    def log_prob(self, images: Any, decoded: Any, training: bool = False) -> Any:
        images = ops.cast(images, "float32")
        probability = ops.clip(ops.cast(decoded, "float32"), 1e-6, 1.0 - 1e-6)
        values = images * ops.log(probability) + (1.0 - images) * ops.log1p(-probability)
        return ops.sum(values, axis=_pixel_axes(values))


@keras.saving.register_keras_serializable("keras_vae")
class DiscretizedLogistic(Likelihood):
    """Probability of 8-bit values: the mass of a logistic distribution about the decoded value, in each value's bin.

    As in Kingma et al. 2016 (arXiv 1606.04934, appendix C) with one scale, which is learned. The bins of 0 and 255
    reach to minus and plus infinity, so that the 256 probabilities add up to one. Images are rounded to the nearest
    of the 256 values first.

    Args:
        scale: the initial scale, with images in [0, 1]; the standard deviation is 1.8 times this.

    Raises:
        InputError: the scale is not a positive number.
    """

    kind = "discretized-logistic"
    discrete = True

    def __init__(self, scale: float = 0.05, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not (math.isfinite(scale) and scale > 0):
            raise InputError(f"scale={scale}: the discretized logistic likelihood needs a positive scale")
        self.initial_scale = float(scale)
        self.log_scale = self.add_weight(
            name="log_scale", shape=(), initializer=keras.initializers.Constant(math.log(scale)), trainable=True
        )

    @property
    def scale(self) -> float:
        """The scale learned so far."""
        return math.exp(float(self.log_scale))

    def log_prob(self, images: Any, decoded: Any, training: bool = False) -> Any:
        level = ops.round(ops.cast(images, "float32") * 255.0)
        inverse_scale = ops.exp(-self.log_scale)
        distance = level / 255.0 - ops.cast(decoded, "float32")
        upper = (distance + 0.5 / 255.0) * inverse_scale
        lower = (distance - 0.5 / 255.0) * inverse_scale
        # log(sigmoid(u) - sigmoid(l)) = log sigmoid(u) + log sigmoid(-l) + log(1 - exp(l - u)): exact even far from the
        # mean, where the difference of the sigmoids rounds to zero. u - l is the width of one bin.
        width = inverse_scale / 255.0
        inside = ops.log_sigmoid(upper) + ops.log_sigmoid(-lower) + _log1mexp(width)
        values = ops.where(
            level <= 0.0, ops.log_sigmoid(upper), ops.where(level >= 255.0, ops.log_sigmoid(-lower), inside)
        )
        return ops.sum(values, axis=_pixel_axes(values))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "scale": self.initial_scale}


def _pixel_axes(values: Any) -> tuple[int, ...]:
    return tuple(range(1, len(values.shape)))


def _squared_error(images: Any, decoded: Any) -> tuple[Any, int]:
    """Mean squared error of each image, float32 (batch,), and the number of values it is a mean of."""
    error = ops.square(ops.cast(images, "float32") - ops.cast(decoded, "float32"))
    return ops.mean(error, axis=_pixel_axes(error)), math.prod(error.shape[1:])


def _gaussian_log_prob(mean_squared_error: Any, count: int, variance: Any) -> Any:
    return -0.5 * count * (mean_squared_error / variance + ops.log(2.0 * math.pi * variance))


def _gaussian_error(nats: float, count: int, variance: float) -> float | None:
    """`_gaussian_log_prob` solved for the error; None if rounding has left nothing of it."""
    error = variance * (2.0 * nats / count - math.log(2.0 * math.pi * variance))
    return error if error > 0 else None


def _log1mexp(x: Any) -> Any:
    """log(1 - exp(-x)) for x > 0, exact for small and for large x (Maechler 2012)."""
    small = ops.minimum(x, math.log(2.0))
    large = ops.maximum(x, math.log(2.0))
    return ops.where(x < math.log(2.0), ops.log(-ops.expm1(-small)), ops.log1p(-ops.exp(-large)))


LIKELIHOODS: dict[str, type[Likelihood]] = {
    likelihood.kind: likelihood for likelihood in (Gaussian, GaussianCalibrated, Bernoulli, DiscretizedLogistic)
}


def get_likelihood(likelihood: str | Likelihood) -> Likelihood:
    """The likelihood of that name, or the given object itself.

    Raises:
        InputError: there is no likelihood of that name.
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    check_likelihood(likelihood)
    return LIKELIHOODS[likelihood]()


def check_likelihood(likelihood: str) -> None:
    """Refuses an unknown name.

    Raises:
        InputError: there is no likelihood of that name.
    """
    if not isinstance(likelihood, str) or likelihood not in LIKELIHOODS:
        raise InputError(f"unknown likelihood {likelihood!r}: choose one of {', '.join(LIKELIHOODS)}")
