"""Priors: maps from standard normal noise to latents.

A VAE is trained towards a standard normal, but the codes of its images, q(z) = E[q(z | x)], end up elsewhere, and the
more so the better it reconstructs. A decoder can only draw codes like those. Samples therefore come from a prior that
is fitted to the codes after training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_vae.model.distributions import DiagonalGaussian
from keras_vae.model.picture_field import PictureField
from keras_vae.support.errors import InputError, check_count
from keras_vae.support.keras_defaults import keras_defaults

WIDTH = 384
BLOCKS = 3
FREQUENCIES = 8
HIGHEST_FREQUENCY = 20.0  # radians between noise and codes; the lowest is 1
STEPS_TO_IMAGES = 12
RUNGE_KUTTA_STEPS = 8
PROBES = 16  # directions in which the field's divergence is measured
EMPHASIS = 1.4  # times the field, when samples are drawn
GUIDANCE = 2.0  # of samples of a condition, how much further they go than the codes of its images
LEAST_VARIANCE = 1e-6  # of an axis, relative to the mean: a latent may be the same for all images


@keras.saving.register_keras_serializable("keras_vae")
class StandardNormal(keras.layers.Layer):
    """The prior that a VAE is trained towards: latents are the noise itself.

    Args:
        latent_dim: number of latents.
    """

    kind: ClassVar[str] = "standard"

    def __init__(self, latent_dim: int, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", "name": "prior", **kwargs})
        self.latent_dim = check_count("latent_dim", latent_dim)
        self.built = True

    def call(self, noise: Any, condition: Any = None) -> Any:
        """Latents of noise, float32 (batch, latent_dim) both, whatever the condition."""
        return noise

    def inverse(self, z: Any, condition: Any = None) -> Any:
        """The noise of latents."""
        return ops.convert_to_tensor(z, "float32")

    def log_prob(self, z: Any, condition: Any = None) -> Any:
        """Log density in nats, float32 (batch,)."""
        return _standard_normal(ops.convert_to_tensor(z, "float32"))

    def distance(self) -> Callable[[Any], Any]:
        """As `FlowMatchingPrior.distance`: here the length of z over sqrt(latent_dim)."""
        return _length

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "latent_dim": self.latent_dim}


@keras.saving.register_keras_serializable("keras_vae")
class FlowMatchingPrior(keras.layers.Layer):
    """A density of codes: noise that flows to them along a learned velocity field.

        dx/dt = v(x, t),   x(0) = noise ~ N(0, I),   z = mean + axes x(1)

    The field is fitted by flow matching (Lipman et al. 2023, arXiv 2210.02747, with the straight paths of section 4.1):
    v(x, t) is the mean of (code - noise) over pairs with t code + (1 - t) noise = x. `mean` and `axes` (the codes'
    principal axes, the widest first) are those of the Gaussian with the codes' moments; as long as the field is zero,
    the prior is that Gaussian. Noise is mapped to latents by `STEPS_TO_IMAGES` steps of the second-order method of
    Adams and Bashforth; the density and the inverse follow the flow more closely, by the method of Runge and Kutta.

    Of a conditional model the field is v(x, t, c), fitted with the conditions c left out of a share of the codes, and
    samples follow v(x, t, 0) + `GUIDANCE` (v(x, t, c) - v(x, t, 0)) (classifier-free guidance, Ho and Salimans
    2022, arXiv 2207.12598): they are surer to be of what was asked for, and less varied. Without a condition, the codes
    are those of all images.

    In all of this v is taken `EMPHASIS` times, except in what guidance adds. Gaussian codes are drawn as before; of
    others, whose field is never learned completely, samples are better (benchmarks/NOTES.md has figures). The density
    is that of the flow as it was fitted, not of samples.

    With a picture, part of the field is convolutional: it works on the image that latents are decoded to
    (`PictureField`).

    Args:
        latent_dim: number of latents.
        width: of the field's hidden layers.
        blocks: residual blocks between the first and the last layer.
        condition_dim: numbers in a condition, 0 for none.
        channels, components: of its `PictureField`, 0 for none.
    """

    kind: ClassVar[str] = "learned"

    def __init__(
        self,
        latent_dim: int,
        width: int = WIDTH,
        blocks: int = BLOCKS,
        condition_dim: int = 0,
        channels: int = 0,
        components: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"dtype": "float32", "name": "prior", **kwargs})
        self.latent_dim = check_count("latent_dim", latent_dim)
        self.width = check_count("width", width)
        self.blocks = check_count("blocks", blocks)
        self.condition_dim = condition_dim
        self.mean = self._array("mean", (latent_dim,), "zeros")
        self.axes = self._array("axes", (latent_dim, latent_dim), keras.initializers.Identity())
        glorot = "glorot_uniform"
        self.first = self._array("first", (latent_dim, width), glorot)
        self.time = self._array("time", (2 * FREQUENCIES, width), glorot)
        self.first_bias = self._array("first_bias", (width,), "zeros")
        self.between = [
            (
                self._array(f"up_{block}", (width, width), glorot),
                self._array(f"up_bias_{block}", (width,), "zeros"),
                self._array(f"down_{block}", (width, width), glorot),
                self._array(f"down_bias_{block}", (width,), "zeros"),
            )
            for block in range(blocks)
        ]
        # The last layer starts at zero: no flow at all.
        self.last = self._array("last", (width, latent_dim), "zeros")
        self.skip = self._array("skip", (latent_dim, latent_dim), "zeros")
        self.last_bias = self._array("last_bias", (latent_dim,), "zeros")
        if condition_dim:
            self.condition = self._array("condition", (condition_dim, width), "zeros")
        self.picture: PictureField | None = None
        if channels:
            self.picture = PictureField(latent_dim, 2 * FREQUENCIES, channels, components, condition_dim)
        self.built = True

    def _array(self, name: str, shape: tuple[int, ...], initializer: Any) -> Any:
        # Not trainable as far as Keras is concerned: training the model leaves its prior alone.
        return self.add_weight(shape=shape, initializer=initializer, name=name, dtype="float32", trainable=False)

    @property
    def radius(self) -> float:
        """Root mean square of noise, or of white codes, beyond which hardly any lies: of many latents 2, of one 4.5."""
        return 2.0 * math.sqrt(1.0 + 4.0 / self.latent_dim)

    @property
    def kernels(self) -> list[Any]:
        """The weights of the field that begin at random."""
        own = [self.first, self.time, *(each for block in self.between for each in block[::2])]
        return own + ([] if self.picture is None else self.picture.kernels)

    @property
    def field_weights(self) -> list[Any]:
        """The weights of the velocity field, less its `picture`'s."""
        return self.weights[2 : None if self.picture is None else -len(self.picture.weights)]

    def velocity(self, x: Any, t: Any, condition: Any = None, conv_dtype: str | None = "float32") -> Any:
        """The field v(x, t): float32 (batch, latent_dim), as x is; t is (batch or 1, 1), from 0 to 1.

        The condition is float32 (batch, condition_dim); None is one of zeros. Convolutions are computed in
        `conv_dtype`; None leaves them out.
        """
        # Beyond all that it is fitted to the field stays as it is at that radius: it would grow, and carry them away.
        x = x * ops.rsqrt(ops.maximum(ops.mean(ops.square(x), axis=-1, keepdims=True) / self.radius**2, 1.0))
        angles = t * np.geomspace(1.0, HIGHEST_FREQUENCY, FREQUENCIES, dtype=np.float32)
        waves = ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)
        hidden = ops.matmul(x, self.first) + ops.matmul(waves, self.time) + self.first_bias
        if condition is not None:
            hidden = hidden + ops.matmul(condition, self.condition)
        for up, up_bias, down, down_bias in self.between:
            hidden = hidden + ops.matmul(ops.silu(ops.matmul(hidden, up) + up_bias), down) + down_bias
        velocity = ops.matmul(hidden, self.last) + ops.matmul(x, self.skip) + self.last_bias
        if self.picture is None or conv_dtype is None:
            return velocity
        return velocity + self.picture(x, waves, condition, conv_dtype=conv_dtype)

    def guided(self, x: Any, t: Any, condition: Any = None) -> Any:
        """The field that samples follow, as `velocity`."""
        velocity = self.velocity(x, t, condition)
        if condition is None:
            return EMPHASIS * velocity
        return EMPHASIS * velocity + (GUIDANCE - 1.0) * (velocity - self.velocity(x, t))

    def call(self, noise: Any, condition: Any = None) -> Any:
        """Latents of noise, float32 (batch, latent_dim) both, of images of a condition."""
        x, before = noise, None
        for step in range(STEPS_TO_IMAGES):
            velocity = self.guided(x, ops.full((1, 1), step / STEPS_TO_IMAGES, dtype="float32"), condition)
            ahead = velocity if before is None else 1.5 * velocity - 0.5 * before
            x, before = x + ahead / STEPS_TO_IMAGES, velocity
        return self.mean + ops.matmul(x, ops.transpose(self.axes))

    def inverse(self, z: Any, condition: Any = None) -> Any:
        """The noise that flows to latents, float32 (batch, latent_dim) both."""
        return self._reverse(ops.convert_to_tensor(z, "float32"), condition, with_density=False)[0]

    def log_prob(self, z: Any, condition: Any = None) -> Any:
        """Log density of the flow in nats, float32 (batch,).

        By the instantaneous change of variables (Chen et al. 2018, arXiv 1806.07366, theorem 1). The trace is exact for
        up to `PROBES` latents; of more it is estimated, without bias, from so many random directions (Hutchinson 1989;
        Grathwohl et al. 2019, arXiv 1810.01367), the same at every call.
        """
        noise, log_volume = self._reverse(ops.convert_to_tensor(z, "float32"), condition, with_density=True)
        _, log_scale = np.linalg.slogdet(np.asarray(self.axes, np.float64))
        return _standard_normal(noise) - log_volume - float(log_scale)

    def distance(self) -> Callable[[Any], Any]:
        """How far latents lie from the centre of the codes: a function of z, float32 (batch, latent_dim) to (batch,).

        The Mahalanobis distance under the Gaussian with the codes' moments, over sqrt(latent_dim): 1 is usual.
        """
        mean = np.asarray(self.mean)
        to_white = np.linalg.inv(np.asarray(self.axes, np.float64)).T.astype(np.float32)
        return lambda z: _length(ops.matmul(z - mean, to_white))

    def _reverse(self, z: Any, condition: Any, with_density: bool) -> tuple[Any, Any]:
        """The noise of latents, and the integral of the field's divergence along the way."""
        axes = np.asarray(self.axes, np.float64)
        x = ops.matmul(z - self.mean, np.linalg.inv(axes).T.astype(np.float32))
        return self._integrated(x, condition, with_density)

    @tf.function(reduce_retracing=True, autograph=False)
    def _integrated(self, x: tf.Tensor, condition: Any, with_density: bool) -> tuple[tf.Tensor, tf.Tensor]:
        def change(x: tf.Tensor, t: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            times = tf.reshape(t, (1, 1))
            if not with_density:
                return self.guided(x, times, condition), tf.zeros(tf.shape(x)[:1])
            return self.velocity(x, times, condition), self._divergence(x, times, condition)

        length = -1.0 / RUNGE_KUTTA_STEPS

        def advance(step: tf.Tensor, state: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
            x, log_volume = state
            t = 1.0 + tf.cast(step, tf.float32) * length
            slope_1, spread_1 = change(x, t)
            slope_2, spread_2 = change(x + 0.5 * length * slope_1, t + 0.5 * length)
            slope_3, spread_3 = change(x + 0.5 * length * slope_2, t + 0.5 * length)
            slope_4, spread_4 = change(x + length * slope_3, t + length)
            slope = (slope_1 + 2.0 * slope_2 + 2.0 * slope_3 + slope_4) / 6.0
            spread = (spread_1 + 2.0 * spread_2 + 2.0 * spread_3 + spread_4) / 6.0
            return x + length * slope, log_volume - length * spread

        return ops.fori_loop(0, RUNGE_KUTTA_STEPS, advance, (x, tf.zeros(tf.shape(x)[:1])))

    def _divergence(self, x: tf.Tensor, t: tf.Tensor, condition: Any) -> tf.Tensor:
        """The trace of the field's Jacobian, float32 (batch,): the sum over directions e of e . (J e)."""
        count, size = min(PROBES, self.latent_dim), tf.shape(x)[0]
        if self.latent_dim <= PROBES:
            along = tf.repeat(tf.eye(self.latent_dim), size, axis=0)
        else:
            uniform = tf.random.stateless_uniform((count * size, self.latent_dim), seed=(0, 0), alg="philox")
            along = tf.sign(uniform - 0.5) / math.sqrt(PROBES)
        repeated = tf.tile(x, (count, 1))
        known = None if condition is None else tf.tile(condition, (count, 1))
        with tf.GradientTape() as tape:
            tape.watch(repeated)
            velocity = self.velocity(repeated, t, known)
        gradient = tape.gradient(velocity, repeated, output_gradients=along)
        return tf.reduce_sum(tf.reshape(tf.reduce_sum(gradient * along, axis=1), (count, -1)), axis=0)

    def get_config(self) -> dict[str, Any]:
        sizes = {"latent_dim": self.latent_dim, "width": self.width, "blocks": self.blocks}
        sizes |= {"condition_dim": self.condition_dim} if self.condition_dim else {}
        if self.picture is not None:
            sizes |= {"channels": self.picture.channels, "components": self.picture.components}
        return {**super().get_config(), **sizes}


def _length(x: Any) -> Any:
    return ops.sqrt(ops.mean(ops.square(x), axis=-1))


def _standard_normal(x: Any) -> Any:
    return DiagonalGaussian(ops.zeros_like(x), ops.zeros_like(x)).log_prob(x)


def mixture_moments(mean: np.ndarray, log_var: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of an even mixture of diagonal Gaussians, float64 (latent_dim,) and (latent_dim, latent_dim).

    Args:
        mean, log_var: of its components, float (components, latent_dim).
    """
    between = np.atleast_2d(np.cov(mean, rowvar=False, bias=True))
    within = np.exp(log_var, dtype=np.float64).mean(axis=0)
    return mean.mean(axis=0, dtype=np.float64), between + np.diag(within)


Prior: TypeAlias = StandardNormal | FlowMatchingPrior


def gaussian(mean: np.ndarray, log_var: np.ndarray, condition_dim: int = 0) -> FlowMatchingPrior:
    """The Gaussian with the codes' mean and covariance: a flow that is not fitted yet.

    Args:
        mean, log_var: posteriors of training images, float32 (images, latent_dim).
        condition_dim: numbers in a condition, which makes no difference yet.

    Raises:
        InputError: codes that are not finite.
    """
    return unfitted_flow(*whitening(mean, log_var), condition_dim)


def whitening(mean: np.ndarray, log_var: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean of codes, and the axes in which they are white, as columns, the widest first: both float32.

    Args:
        mean, log_var: as for `gaussian`.

    Raises:
        InputError: codes that are not finite.
    """
    if not (np.isfinite(mean).all() and np.isfinite(log_var).all()):
        raise InputError("the codes of the images are not finite: the model's training diverged; train again")
    centre, covariance = mixture_moments(mean, log_var)
    variances, axes = np.linalg.eigh(covariance)
    variances = np.maximum(variances, LEAST_VARIANCE * variances.mean())[::-1]
    return centre.astype(np.float32), (axes[:, ::-1] * np.sqrt(variances)).astype(np.float32)


@keras_defaults()
def unfitted_flow(centre: np.ndarray, axes: np.ndarray, condition_dim: int = 0, **sizes: int) -> FlowMatchingPrior:
    """A flow whose field is still zero.

    Args:
        centre, axes: as `whitening` returns them.
        condition_dim, sizes: as `FlowMatchingPrior` takes them.
    """
    prior = FlowMatchingPrior(len(centre), condition_dim=condition_dim, **sizes)
    prior.mean.assign(centre)
    prior.axes.assign(axes)
    return prior
