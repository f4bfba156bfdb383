"""The variational autoencoder: a Keras model with its own training step."""

from __future__ import annotations

import hashlib
import inspect
import math
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_vae.data import image_batches, pipelines
from keras_vae.export import latents
from keras_vae.export.generator import compose
from keras_vae.features import perceptual as features

# As modules: any of them may be what imported Keras first, whose import brings this module along (see `keras_vae`).
from keras_vae.model import distributions, metrics, networks, priors, schedules, watch
from keras_vae.model.presets import DEFAULT_LAYERS, DEFAULT_PERCEPTUAL_WEIGHT
from keras_vae.support import precision, replicas
from keras_vae.support.errors import InputError, check_count, check_weight
from keras_vae.support.keras_defaults import keras_defaults

LEARNING_RATE = 5e-4  # Hou et al., section 4.1
# Where float16's loss scale begins. Keras begins at 2^15, meant for losses near 1. Likelihoods are sums over pixels: it
# then leaves out a dozen steps, whose gradients overflow, before it arrives here.
INITIAL_LOSS_SCALE = 4.0
# The paper's features are averaged over the pixels: the more there are, the smaller are their gradients. With 32x32
# pixels a scale of 16 is right and 1024 overflows, with 256x256 1024 is right.
PIXELS_PER_LOSS_SCALE = 64
KERAS_BATCH = 32  # where none is given
SHARE_MARK = "fewer images than replicas"
MIN_FEATURE_VARIANCE = 1e-8  # below the rounding of bfloat16 features of length 1


@keras.saving.register_keras_serializable("keras_vae")
class VAE(keras.Model):
    """Variational autoencoder whose loss sees pixels, deep features, or both.

    Kingma and Welling 2014 (arXiv 1312.6114) with the deep-feature-consistent loss of Hou et al. 2017
    (arXiv 1610.00291). Training minimizes

        loss = pixel_weight * -log p(x | z) + perceptual + beta * KL

    KL and log-likelihood are in nats per image, summed over latents and over pixel values, and have no hidden factor.
    `elbo` is reported in any case, as log p(x | z) - KL with no weight in it. What `perceptual` is,
    `perceptual_weight` says. With the defaults pixels and features are both calibrated Gaussians;
    `keras_vae.OBJECTIVES` holds other choices by name, the paper's among them:
    `VAE(**keras_vae.OBJECTIVES["vae-123"])`.

    Images are float32 (batch, height, width, channels) in [0, 1]; uint8 images are scaled. Anything
    Keras takes will do for `fit`, `evaluate` and `predict`: arrays, or datasets of images, of (image, label), or
    of dicts with the key "image".

    Args:
        image_shape: (height, width, channels), with 1 or 3 channels.
        latent_dim: number of latents.
        network: encoder and decoder family, a key of `keras_vae.networks.FAMILIES`.
        network_options: the family's own options, such as {"width": 64}.
        encoder, decoder: Keras models of your own instead of a family, both; they say image_shape and latent_dim
            too. The encoder returns {"mean", "log_var"}, the two in that order, or one output with the means first;
            the decoder returns images in [0, 1].
        perceptual: "vgg19", "vgg16", "hed-vgg16", a `PerceptualLoss`, or None. It is loaded when
            training starts, is frozen, and is not saved with the model.
        perceptual_layers: "vae-123", "vae-1234", "vae-345", "vae-12345" or layer names, where `perceptual` is a name.
        perceptual_weight: how the layers' terms d (each 1/(2CWH) times the sum of squared differences) enter.
            A number w: w * sum(d), the paper's with 0.5. One number a layer: sum(w * d).
            "calibrated": each layer's features get a Gaussian with its own optimal variance, and the term is their
            negative log-likelihood in nats. "balanced": the same, with each layer's nats scaled as if it had
            `keras_vae.perceptual.BALANCE` (2.5) times as many values as the image: no layer counts more for its
            width.
        pixel_weight: factor of the negative log-likelihood of the pixels; the paper's is 0.
        beta: factor of the KL in the loss; 1 is the ELBO's. `vae.beta` can be set at any time, and
            `keras_vae.schedules` do.
        free_bits: nats that each latent may carry without being charged in the loss (Kingma et al. 2016,
            arXiv 1606.04934, appendix C.8: the mean over the batch is compared). `kl` stays what it is.
        likelihood: "gaussian", "gaussian-calibrated", "bernoulli", "discretized-logistic", or an object of
            `keras_vae.distributions`.
        seed: seed of the draws from the posterior and of nothing else; Keras's global seed
            (`keras.utils.set_random_seed`) is what initial weights depend on.

    Raises:
        InputError: an argument that cannot be used, said in one line.

    Example:
        >>> vae = VAE(image_shape=(64, 64, 3), latent_dim=100, perceptual="vgg19")
        >>> vae.compile(keras.optimizers.Adam(5e-4))
        >>> vae.fit(images, epochs=5, validation_split=0.1)
        >>> faces = vae.sample(64, seed=0)
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (64, 64, 3),
        latent_dim: int = 100,
        network: str = "dfc",
        perceptual: str | features.PerceptualLoss | None = "vgg19",
        perceptual_layers: str | Sequence[str] = DEFAULT_LAYERS,
        perceptual_weight: float | Sequence[float] | str = DEFAULT_PERCEPTUAL_WEIGHT,
        pixel_weight: float = 1.0,
        beta: float = 1.0,
        free_bits: float = 0.0,
        likelihood: str | distributions.Likelihood = "gaussian-calibrated",
        network_options: Mapping[str, Any] | None = None,
        encoder: keras.Model | None = None,
        decoder: keras.Model | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        precision.check_policy(self.dtype_policy)
        self.network = network
        self.network_options = dict(network_options or {})
        self.own_networks = encoder is not None or decoder is not None
        shape = _image_shape(image_shape)
        latent_dim = check_count("latent_dim", latent_dim)
        if self.own_networks and (network_options or network != "dfc"):
            raise InputError("encoder and decoder are given, and network or network_options too: leave these out")
        if encoder is not None and decoder is not None:
            self.encoder, self.decoder, shape, latent_dim = networks.adopt(encoder, decoder, shape, int(latent_dim))
        elif self.own_networks:
            raise InputError("give both encoder and decoder, or neither and the name of a network")
        else:
            try:
                self.encoder, self.decoder = networks.build(
                    network, shape, int(latent_dim), self.dtype_policy, self.network_options
                )
            except tf.errors.ResourceExhaustedError as error:
                raise InputError(
                    f"network {network!r} of image_shape={shape}, latent_dim={latent_dim} and {self.network_options} "
                    "does not fit in memory: give smaller ones"
                ) from error
        layers = [*self.encoder._flatten_layers(), *self.decoder._flatten_layers()]
        self.computes_in_float16 = "float16" in {self.compute_dtype, *(layer.compute_dtype for layer in layers)}
        self.image_shape: tuple[int, int, int] = shape
        self.latent_dim = int(latent_dim)
        self.seed = seed
        self.initial_beta = check_weight("beta", beta)
        self.free_bits = check_weight("free_bits", free_bits)
        self.pixel_weight = check_weight("pixel_weight", pixel_weight)
        self.likelihood = distributions.get_likelihood(likelihood)
        # A plain object, so that Keras neither saves nor counts the frozen network as a part of the model.
        if perceptual == "none":  # as on the command line
            perceptual = None
        if isinstance(perceptual, str):
            perceptual = features.PerceptualLoss(perceptual, perceptual_layers)
        self.perceptual = perceptual
        if not isinstance(self.perceptual, features.PerceptualLoss | None):
            raise InputError(
                f"perceptual={perceptual!r}: give a name, or keras_vae.PerceptualLoss(model, layers, preprocessing=...)"
            )
        self.perceptual_weight = features.check_perceptual_weight(perceptual_weight, self.perceptual)
        if self.perceptual is None and not self.pixel_weight:
            raise InputError("pixel_weight=0 and no perceptual network: nothing says what an image should look like")
        self._scalar("_beta", self.initial_beta)
        self._scalar("_last_kl", 0.0)
        if self.perceptual is not None and isinstance(self.perceptual_weight, str):
            count = len(self.perceptual.keras_layers)
            self.feature_variances = distributions.RunningVariance(
                count, minimum=MIN_FEATURE_VARIANCE, name="feature_variances"
            )
        # Evaluation draws from a stream of its own, from the same start each time: it neither changes the training
        # that goes on after it, nor finds other figures the second time.
        self.train_noise = keras.random.SeedGenerator(seed, name="train_noise")
        self.test_noise = replicas.NoiseByPlace(seed, name="test_noise")
        self.trackers = {name: keras.metrics.Mean(name=name, dtype="float32") for name in self._metric_names()}
        self.active_units = metrics.ActiveUnits(self.latent_dim)
        self._statistics_averages = _Untracked([])
        self._averages_to_begin = _Untracked([])
        self._xla_functions: dict[str, Any] = {}
        self._prior = _Untracked(priors.StandardNormal(self.latent_dim))
        self.watch = watch.Watch(self._metric_names())
        self.build((None, *self.image_shape))

    def _scalar(self, name: str, value: float) -> None:
        weight = self.add_weight(
            name=name.lstrip("_"),
            shape=(),
            initializer=keras.initializers.Constant(value),
            dtype="float32",
            trainable=False,
            autocast=False,
        )
        setattr(self, name, weight)

    def _metric_names(self) -> list[str]:
        names = ["loss", "elbo", "reconstruction", "kl"]
        if self.free_bits:
            names.append("kl_floored")
        if self.likelihood.discrete:
            names.append("bits_per_dim")
        if self.perceptual is not None:
            names.append("perceptual")
        return names

    def build(self, input_shape: Any) -> None:
        self.built = True  # both networks are built when they are made

    # The three steps of the model ------------------------------------------------------------

    def encode(self, images: Any, training: bool = False) -> distributions.DiagonalGaussian:
        """The posterior q(z | x) of a batch of images.

        Args:
            images: (batch, height, width, channels), float in [0, 1] or uint8.

        Raises:
            InputError: images of another shape than the model's, outside of [0, 1] or not finite. Within a function
                that TensorFlow compiles, values are not looked at.
        """
        images = image_batches.as_array(image_batches.unpack(images) if isinstance(images, dict) else images)
        if tf.executing_eagerly():
            image_batches.check(images, self.image_shape)
        parameters = self._run(self.encoder, image_batches.as_float32(images, self.image_shape), training)
        return distributions.DiagonalGaussian(parameters["mean"], parameters["log_var"])

    def decode(self, z: Any, training: bool = False) -> Any:
        """Images of a batch of latents: float32, (batch, height, width, channels) in [0, 1].

        Args:
            z: float, (batch, latent_dim).

        Raises:
            InputError: latents of another size than the model's.
        """
        z = ops.cast(ops.convert_to_tensor(z), "float32")
        if len(z.shape) != 2 or z.shape[1] != self.latent_dim:
            raise InputError(f"latents have shape {tuple(z.shape)}: this model decodes (batch, {self.latent_dim})")
        return self._run(self.decoder, z, training)

    def sample(self, count: int, seed: int | None = None, temperature: float = 1.0) -> Any:
        """Images of `count` draws from the prior.

        The same seed gives the same noise here, in `keras_vae.export.runtime` and on the command line. Decoding
        follows the model's precision; exported decoders compute in float32.

        Args:
            count: how many.
            seed: of the draw.
            temperature: the noise's standard deviation; below 1 images are more alike, and more like the mean.

        Raises:
            InputError: a count below 1, or a temperature that is no number from 0 on.
        """
        noise = latents.draw(check_count("count", count), self.latent_dim, seed)
        return self.decode(self.prior(check_weight("temperature", temperature) * noise))

    @property
    def prior(self) -> priors.Prior:
        """Where latents come from: a map from standard normal noise to them, and its density.

        A `keras_vae.priors.StandardNormal`, until `fit_prior` replaces it. It is saved with the model, and is of the
        weights that it was fitted to: after more training, fit it again.
        """
        return self._prior.items

    def set_prior(self, prior: priors.Prior) -> None:
        """Takes a prior that is at hand: another model's of the same weights, or the standard normal.

        A method, for Keras tracks what attributes are set to, and lets nothing be added to a model that is built.

        Raises:
            InputError: it is no prior of `keras_vae.model.priors`, or of another number of latents.
        """
        if not isinstance(prior, priors.StandardNormal | priors.FlowMatchingPrior):
            raise InputError(f"prior={prior!r}: give a prior of keras_vae.model.priors")
        if prior.latent_dim != self.latent_dim:
            raise InputError(f"the prior has {prior.latent_dim} latents, and the model {self.latent_dim}")
        self._prior.items = prior

    def fit_prior(self, images: Any, steps: int | None = None, seed: int = 0, limit: int | None = None) -> None:
        """Fits the prior to the codes of images that the model was trained on: samples are then drawn where these lie.

        Args:
            images: as for `fit`: an array, or a dataset or other iterable of batches.
            steps: of fitting, each of 256 codes, 3,500 by default; fewer where codes would come over 100 times.
            seed: of the draws.
            limit: images whose codes are kept, 100,000 by default; of more, as many are drawn.

        Raises:
            InputError: as `encode`, or no images.
        """
        from keras_vae.model.encoding import encode

        steps = check_count("steps", priors.STEPS if steps is None else steps)
        limit = check_count("limit", priors.MOST_CODES if limit is None else limit)
        images = image_batches.unpack(images) if isinstance(images, dict) else images
        if images is None or isinstance(images, tf.data.Dataset):
            images = self._checked("fit_prior", images, option="")
        elif hasattr(images, "shape"):
            images = pipelines.of_array(images, KERAS_BATCH)
        encoded = encode(self, images, limit=limit, seed=seed, description="encoding for the prior")
        self.set_prior(priors.fit(encoded.mean, encoded.log_var, seed, steps))

    def generator(self) -> keras.Model:
        """Prior and decoder as one Keras model: noise float32 (batch, latent_dim) to images."""
        return compose(self.decoder, self.prior)

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Reconstructions, from the posterior's mode: what `predict` returns, without chance in it."""
        return self.decode(self.encode(inputs, training).mode(), training)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        return (None, *self.image_shape)

    # Training --------------------------------------------------------------------------------

    @keras_defaults()
    def objective(
        self, images: Any, noise: Any, training: bool, targets: list[Any] | None = None
    ) -> tuple[dict[str, Any], distributions.DiagonalGaussian]:
        """Every term of the objective for each image, in float32, shape (batch,), and the posterior.

        Args:
            images: float32, of the model's shape.
            noise: where draws from the posterior come from: a `keras.random.SeedGenerator`, or standard normal noise,
                a float32 tensor (batch, latent_dim).
            training: whether batch statistics and calibrated variances follow this batch.
            targets: the images' features, where they are at hand.

        Returns:
            `loss`, `elbo`, `reconstruction` (-log p(x | z)), `kl`, and where they apply `kl_floored`,
            `bits_per_dim` and `perceptual`.
        """
        posterior = self.encode(images, training)
        decoded = self.decode(posterior.sample(noise), training)

        # Left out of the loss, the pixels still teach a likelihood's own parameters, but not the decoder.
        seen = decoded if self.pixel_weight else ops.stop_gradient(decoded)
        reconstruction = -self.likelihood.log_prob(images, seen, training=training)
        kl = charged = posterior.kl()
        terms = {"elbo": -reconstruction - kl, "reconstruction": reconstruction, "kl": kl}
        if self.free_bits:
            charged = terms["kl_floored"] = self._floored(posterior)
        if self.likelihood.discrete:
            terms["bits_per_dim"] = -terms["elbo"] / (math.log(2.0) * math.prod(self.image_shape))

        loss = self._beta * charged
        if self.pixel_weight:
            loss = loss + self.pixel_weight * reconstruction
        if self.perceptual is not None:
            targets = self.perceptual.targets(images) if targets is None else targets
            terms["perceptual"], term = self._perceptual(targets, decoded, training)
            loss = loss + term
        return {"loss": loss, **terms}, posterior

    def _perceptual(self, targets: list[Any], decoded: Any, training: bool) -> tuple[Any, Any]:
        """The perceptual term of each image as it is reported, and as it enters the loss."""
        assert self.perceptual is not None
        distances = self.perceptual.distances(targets, decoded)
        if isinstance(self.perceptual_weight, float):
            total = ops.sum(distances, axis=1)
            return total, self.perceptual_weight * total
        if isinstance(self.perceptual_weight, tuple):
            weighted = ops.sum(distances * ops.convert_to_tensor(self.perceptual_weight, "float32"), axis=1)
            return weighted, weighted
        squared_errors = 2.0 * distances
        variances = self.feature_variances(squared_errors, training=training)
        nats = 0.5 * (squared_errors / variances + ops.log(2.0 * math.pi * variances))
        sizes = [math.prod(target.shape[1:]) for target in targets]
        if self.perceptual_weight == "balanced":
            sizes = [features.BALANCE * math.prod(self.image_shape)] * len(targets)
        total = ops.sum(nats * ops.convert_to_tensor(sizes, "float32"), axis=1)
        return total, total

    def _floored(self, posterior: distributions.DiagonalGaussian) -> Any:
        """The KL that the loss charges under free bits: the same for each image of the batch."""
        per_latent = ops.mean(posterior.kl_per_latent(), axis=0)
        charged = ops.sum(ops.maximum(per_latent, self.free_bits))
        return ops.broadcast_to(charged, ops.shape(posterior.mean)[:1])

    def train_step(self, data: Any) -> dict[str, Any]:
        images = self._images(data)
        if replicas.count() > 1:  # a replica without images has no batch statistics, nor can oneDNN convolve none
            with tf.control_dependencies([tf.debugging.Assert(ops.shape(images)[0] > 0, [SHARE_MARK])]):
                images = tf.identity(images)
        images_fine = self.watch.note_images(images)
        images = replicas.at_least_one(images)
        before = [tf.identity(each) for each in self._moved_without_gradient()]
        # Before the tape: no gradient goes to the real images' features, and nothing is kept for one.
        targets = None if self.perceptual is None else self.perceptual.targets(images)
        with tf.GradientTape() as tape:
            terms, posterior = self.objective(images, self.train_noise, training=True, targets=targets)
            # The whole batch's mean: replicas add their gradients up.
            size = replicas.batch_size(images)
            loss = ops.sum(terms["loss"]) / size
            if not self.pixel_weight and self.likelihood.trainable_weights:
                loss = loss + ops.sum(terms["reconstruction"]) / size
            # Losses that layers added (weight decay, say); float16 needs the loss scaled before the gradient.
            loss = loss + sum(ops.cast(extra, "float32") for extra in self.losses) / replicas.count()
            scaled_loss = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled_loss, self.trainable_weights)
        self._update(images_fine, gradients, terms, loss, before)
        return self._logged({**self._track(terms, posterior.mean), "beta": self._beta + 0.0})

    def _update(
        self, images_fine: Any, gradients: list[Any], terms: dict[str, Any], loss: Any, before: list[Any]
    ) -> None:
        """Moves the model, or leaves all of it as it was before a step that is not to be followed.

        Args:
            images_fine: whether the images may be used.
            gradients: of the trainable weights.
            terms: of the objective.
            loss: that the gradients are of, but for its scale.
            before: what `_moved_without_gradient` were before the step.
        """
        scales = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        step = self.optimizer.iterations + 1
        fine, usable, means = self.watch.note_numbers(step, images_fine, terms, loss, gradients, scales)

        def apply(gradients: list[Any], *_: Any) -> None:
            self.optimizer.apply(gradients, self.trainable_weights)

        def follow(gradients: list[Any], kl: Any, before: list[Any]) -> None:
            if not scales:
                apply(gradients)
            self._average_statistics()
            self._last_kl.assign(kl)

        def restore(gradients: list[Any], kl: Any, before: list[Any]) -> None:
            for variable, value in zip(self._moved_without_gradient(), before, strict=True):
                variable.assign(value)

        if scales:
            # The optimizer sees gradients that overflow, to lower its scale. It looks at one replica's alone.
            nan = tf.constant(math.nan)
            gradients = [
                each if each is None else tf.where(fine, each, ops.cast(nan, each.dtype)) for each in gradients
            ]
            replicas.choose(usable, apply, _nothing, gradients)
        replicas.choose(fine, follow, restore, gradients, means["kl"], before)

    def test_step(self, data: Any) -> dict[str, Any]:
        images = self._images(data)
        rows = ops.shape(images)[0]
        noise = replicas.at_least_one(self.test_noise.draw((rows, self.latent_dim)))
        self.watch.note_images(images)
        terms, posterior = self.objective(replicas.at_least_one(images), noise, training=False)
        terms = {name: values[:rows] for name, values in terms.items()}
        return self._logged(self._track(terms, posterior.mean[:rows]))

    def predict_step(self, data: Any) -> Any:
        images = self._images(data)
        self.watch.note_images(images)
        return self(replicas.at_least_one(images), training=False)[: ops.shape(images)[0]]

    def _track(self, terms: dict[str, Any], means: Any) -> dict[str, Any]:
        # A mean over images, not over batches: a smaller last batch weighs less.
        for name, tracker in self.trackers.items():
            tracker.update_state(terms[name])
        self.active_units.update_state(ops.stop_gradient(means))
        if replicas.count() == 1:
            return {metric.name: metric.result() for metric in self.metrics}
        sums = [[tracker.total.value, tracker.count.value] for tracker in self.trackers.values()]
        totals, counts = tf.unstack(replicas.total(tf.convert_to_tensor(sums)), axis=1)
        means = tf.unstack(tf.math.divide_no_nan(totals, counts))
        return {**dict(zip(self.trackers, means, strict=True)), self.active_units.name: self.active_units.result()}

    def _logged(self, logs: dict[str, Any]) -> dict[str, Any]:
        """What a step returns, as Keras 3.15 can reduce it over workers: it asks their scalars for a first axis."""
        if not isinstance(self.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy):
            return logs
        return {name: ops.reshape(value, (1,)) for name, value in logs.items()}

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return [*self.trackers.values(), self.active_units]

    def reset_metrics(self) -> None:
        super().reset_metrics()
        self.test_noise.begin()  # Keras calls this where an evaluation begins: it draws what the one before drew

    @property
    def beta(self) -> float:
        """Factor of the KL in the loss, as it is now."""
        return _number(self._beta)

    @beta.setter
    def beta(self, value: float) -> None:
        self._beta.assign(check_weight("beta", value))

    @property
    def last_kl(self) -> float:
        """Mean KL of the last training batch, in nats per image."""
        return _number(self._last_kl)

    def compile(self, optimizer: Any = None, *, jit_compile: bool | str = "auto", **kwargs: Any) -> None:
        """As `keras.Model.compile`, less `loss` and `metrics`: the model brings its own.

        Args:
            optimizer: a Keras optimizer; Adam with the paper's learning rate, 5e-4, by default. Under the policy
                "mixed_float16" Keras wraps it for dynamic loss scaling.
            jit_compile: whether to compile with XLA. "auto" follows Keras on a GPU; on a CPU it compiles only
                float16, which cannot be computed there otherwise. Under a strategy of several replicas it compiles
                nothing: XLA cannot.
            **kwargs: `run_eagerly`, `steps_per_execution`, `auto_scale_loss`.

        Raises:
            InputError: a loss or metrics were given.
        """
        # All that can be refused is refused first: a model whose `compile` fails is as it was.
        for name in ("loss", "loss_weights", "metrics", "weighted_metrics"):
            if kwargs.pop(name, None) is not None:
                raise InputError(f"compile({name}=...): a VAE brings its own loss and metrics; leave {name!r} out")
        unknown = set(kwargs) - {"run_eagerly", "steps_per_execution", "auto_scale_loss"}
        if unknown:
            raise InputError(
                f"compile takes no {', '.join(sorted(unknown))}: it takes optimizer, jit_compile, run_eagerly, "
                "steps_per_execution and auto_scale_loss"
            )
        if "steps_per_execution" in kwargs:
            check_count("steps_per_execution", kwargs["steps_per_execution"])
        optimizer = _optimizer(optimizer, self.trainable_variables)
        if self.computes_in_float16 and kwargs.get("auto_scale_loss", True):
            optimizer = _scaling(optimizer, self._initial_loss_scale())
        compiles = self._compiles(jit_compile, bool(kwargs.get("run_eagerly")))
        super().compile(optimizer, jit_compile=compiles, **kwargs)
        self._asked_jit_compile = jit_compile
        # Now rather than at the first step, so that a model saved before it loads with the same variables.
        self.optimizer.build(self.trainable_variables)
        averaging = self._averaging_optimizer() is not None
        self._statistics_averages = _Untracked(
            [tf.Variable(np.array(each)) for each in self._statistics()] if averaging else []
        )
        self.watch.overflows.assign(0.0)  # of the loss scale of another optimizer

    def _compiles(self, jit_compile: bool | str, run_eagerly: bool) -> bool | str:
        """What Keras is told of XLA."""
        if jit_compile not in (True, False, "auto"):
            raise InputError(f"jit_compile={jit_compile!r}: give True, False or 'auto'")
        replicas_in_sync = self.distribute_strategy.num_replicas_in_sync
        one_gpu = replicas_in_sync == 1 and tf.config.list_physical_devices("GPU")
        if jit_compile == "auto" and not one_gpu:
            jit_compile = self._needs_xla() and not run_eagerly
        if jit_compile is True and replicas_in_sync > 1:
            raise InputError(
                f"XLA compiles a step for one device, not for {replicas_in_sync} replicas: leave out jit_compile, and "
                "on CPUs use mixed_bfloat16 or float32"
            )
        if self._needs_xla() and (run_eagerly or not jit_compile):
            raise InputError(
                "float16 on a CPU runs only when compiled by XLA: leave out jit_compile and run_eagerly, "
                "or use mixed_bfloat16 or float32"
            )
        return jit_compile

    def _initial_loss_scale(self) -> float:
        if self.pixel_weight or isinstance(self.perceptual_weight, str):
            return INITIAL_LOSS_SCALE
        height, width, _ = self.image_shape
        return max(INITIAL_LOSS_SCALE, 2.0 ** math.floor(math.log2(height * width / PIXELS_PER_LOSS_SCALE)))

    def get_compile_config(self) -> dict[str, Any] | None:
        config = super().get_compile_config()
        # Keras would store what "auto" came to here; another machine decides for itself.
        return config and {**config, "jit_compile": self._asked_jit_compile}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.fit`, without weights of samples or classes.

        With an optimizer that averages weights (`use_ema=True`), validation uses the averages, and so does everything
        after `fit`, which puts them in the weights' place.

        A step whose images, loss or gradient cannot be used leaves the model as it was, and ends `fit`: at once, and on
        a GPU, where a look waits for the device, within 50 steps or at the end of the epoch.

        Raises:
            InputError: images that are not finite, outside of [0, 1], or of another shape than the model's; no images,
                or a dataset without end; weights of samples or classes; two callbacks that set beta; perceptual weights
                that cannot be had; a model that was not compiled.
            NotFiniteError: the loss or its gradient became infinite or NaN.
        """
        options = dict(inspect.signature(keras.Model.fit).bind(self, x, *args, **kwargs).arguments)
        del options["self"]
        self._check_compiled("fit")
        for name in ("sample_weight", "class_weight"):
            if options.get(name) is not None:
                raise InputError(f"fit({name}=...): the bound counts every image alike; leave {name!r} out")
        steering = [each for each in _callbacks(options) if isinstance(each, schedules.KLSchedule | schedules.TargetKL)]
        if len(steering) > 1:
            names = " and ".join(type(each).__name__ for each in steering)
            raise InputError(f"{names} both set beta: give one of them")
        if not self.trainable_weights:
            raise InputError("no weight is trainable: set vae.trainable = True, and compile again")
        options["x"] = self._checked("fit", x, options.get("steps_per_epoch"), "steps_per_epoch")
        held_out = options.get("validation_data")
        if isinstance(held_out, list):
            held_out = tuple(held_out)  # as Keras takes it
        if held_out is not None:
            images = image_batches.unpack(held_out) if isinstance(held_out, tuple) else held_out
            with watch.named("validation_data"):
                images = self._checked("validation_data", images, options.get("validation_steps"), "validation_steps")
            options["validation_data"] = (images, *held_out[1:]) if isinstance(held_out, tuple) else images
        if isinstance(x, tf.data.Dataset):
            # Keras's default, True, makes it warn that datasets shuffle themselves.
            options.setdefault("shuffle", False)
        with self._watched(options):
            history = super().fit(**options)
        # Keras has put the averages in the weights' place: the statistics have to belong to them.
        for variable, average in self.averages():
            variable.assign(average)
        return history

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        sample_weight: Any = None,
        steps: int | None = None,
        callbacks: Any = None,
        return_dict: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As `keras.Model.evaluate`; with averaged weights where the optimizer keeps them.

        The draw of an image's latents depends on the model's seed and the image's place in the data alone: figures do
        not depend on the batch size, but for free bits, which compare means over a batch.

        Raises:
            InputError: as `fit`.
        """
        options = {"callbacks": callbacks}
        within_fit = "_use_cached_eval_dataset" in kwargs
        if not within_fit:
            self._check_compiled("evaluate")
            if sample_weight is not None:
                raise InputError("evaluate(sample_weight=...): the bound counts every image alike; leave it out")
            x = self._checked("evaluate", x, steps, "steps")
        # Keras's callback does the same: twice would be not at all.
        swaps = any(isinstance(each, keras.callbacks.SwapEMAWeights) for each in _callbacks(options))
        averaged: Any = self.averaged_weights()
        if swaps:
            averaged = ExitStack()
            averaged.enter_context(_restored_on_failure([each for pair in self.averages() for each in pair]))
            averaged.enter_context(_swapped(self._averaged_statistics()))
        with averaged, nullcontext() if within_fit else self._watched(options):
            return super().evaluate(
                x,
                y,
                batch_size,
                verbose,
                steps=steps,
                callbacks=options["callbacks"],
                return_dict=return_dict,
                **kwargs,
            )

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        steps: int | None = None,
        callbacks: Any = None,
    ) -> Any:
        """As `keras.Model.predict`: reconstructions, float32 in [0, 1].

        Raises:
            InputError: as `fit`.
        """
        x = self._checked("predict", x, steps, "steps")
        if isinstance(x, np.ndarray) and x.dtype in (np.float32, np.uint8) and steps is None:
            x, batch_size = pipelines.of_array(x, batch_size or KERAS_BATCH), None
        options = {"callbacks": callbacks}
        with self._watched(options):
            return super().predict(x, batch_size=batch_size, verbose=verbose, steps=steps, **options)

    def train_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.train_on_batch`. Raises as `fit`."""
        self._check_compiled("train_on_batch")
        return self._looked_at(super().train_on_batch, self._checked("train_on_batch", x), *args, **kwargs)

    def test_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.test_on_batch`. Raises as `fit`."""
        self._check_compiled("test_on_batch")
        return self._looked_at(super().test_on_batch, self._checked("test_on_batch", x), *args, **kwargs)

    def predict_on_batch(self, x: Any) -> Any:
        """As `keras.Model.predict_on_batch`. Raises as `fit`."""
        return self._looked_at(super().predict_on_batch, self._checked("predict_on_batch", x))

    def _looked_at(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self.watch.anew():
            result = method(*args, **kwargs)
            self.watch.look(self)
        return result

    def _check_compiled(self, method: str) -> None:
        if not self.compiled:
            raise InputError(f"{method} comes after compile: call vae.compile() first; without arguments it takes Adam")

    def _checked(self, method: str, images: Any, steps: int | None = None, option: str = "steps") -> Any:
        """What Keras is given for images, refused where it would stumble over them, or pass over a fault."""
        if images is None:
            raise InputError(f"{method} needs images: give an array or a dataset")
        if isinstance(images, tf.data.Dataset):
            return image_batches.checked_dataset(images, self.image_shape, steps, option)
        if isinstance(images, tuple):
            raise InputError(f"{method} takes images and labels apart, as {method}(images, labels), not as a tuple")
        values = image_batches.unpack(images) if isinstance(images, dict) else images
        # Keras would take a list for that of a model's inputs, and shuffle each image's rows.
        if isinstance(values, list | np.ndarray | np.generic | tf.Variable | keras.Variable) or tf.is_tensor(values):
            values = image_batches.as_array(values)
            image_batches.check(values, self.image_shape)
            return {**images, "image": values} if isinstance(images, dict) else values
        return images

    @contextmanager
    def _watched(self, options: dict[str, Any]) -> Iterator[None]:
        """Within it, what steps note is looked at, by a callback that is added to the options'."""
        looks, given = watch.Looks(), options.get("callbacks")
        if isinstance(given, keras.callbacks.CallbackList):
            looks.set_model(self)
            given.callbacks.insert(0, looks)
        else:
            options["callbacks"] = [looks, *_callbacks(options)]  # first: nobody writes down a step that was left out
        try:
            with self.watch.anew():
                yield
        except ValueError as error:
            if "Python generator" in str(error):
                raise InputError(
                    "a generator must yield tuples, (images,) or (images, labels), at least one"
                ) from error
            if "Unrecognized data type" in str(error):
                raise InputError(
                    "images come as an array, a tensor, a tf.data or Python dataset, or a generator"
                ) from error
            raise
        except tf.errors.InvalidArgumentError as error:
            if SHARE_MARK in str(error):
                raise InputError(
                    f"a batch has fewer images than the {self.distribute_strategy.num_replicas_in_sync} replicas that "
                    "share it: leave out the smaller last one, as .batch(64, drop_remainder=True) does"
                ) from None
            refused = image_batches.worded(error, self.image_shape)
            if refused is None:
                raise
            raise refused from None
        finally:
            if isinstance(given, keras.callbacks.CallbackList):
                given.callbacks.remove(looks)

    def load_weights(self, filepath: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As `keras.Model.load_weights`, whole or not at all.

        Raises:
            InputError: a file that is missing, damaged, or of another model; the model is as it was.
        """
        optimizer = getattr(self, "optimizer", None)
        state = [*self.variables, *([] if optimizer is None else optimizer.variables), self._beta]
        state += [self.train_noise.state, self.test_noise.state, *self._statistics_averages.items]
        before, prior = [np.array(variable) for variable in state], self.prior
        try:
            super().load_weights(filepath, *args, **kwargs)
            for variable, average in self._averages_to_begin.items:
                average.assign(variable)
        except Exception as error:
            for variable, value in zip(state, before, strict=True):
                variable.assign(value)
            self.set_prior(prior)
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"cannot load the weights {filepath}, and the model is as it was: {reason}") from error

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within it, weights are their exponential moving averages, where the optimizer keeps such (`use_ema=True`).

        Afterwards they are again what they were, to the last bit. (Keras's callback `SwapEMAWeights` swaps by adding
        and subtracting, which leaves the training after it a little different.)
        """
        with _swapped(self.averages()):
            yield

    def averages(self) -> list[tuple[Any, Any]]:
        """Variables with their exponential moving averages, where the optimizer keeps such; none before the first step.

        Besides the weights, which Keras averages, these are the statistics that go with them: batch normalization's
        and the calibrated variances.
        """
        optimizer = self._averaging_optimizer()
        if optimizer is None or not _number(optimizer.iterations):
            return []
        weights = zip(optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True)
        return [*weights, *self._averaged_statistics()]

    def _averaged_statistics(self) -> list[tuple[Any, Any]]:
        if self._averaging_optimizer() is None:
            return []
        return list(zip(self._statistics(), self._statistics_averages.items, strict=True))

    def _averaging_optimizer(self) -> Any:
        optimizer: Any = getattr(self, "optimizer", None)  # Keras gives a model none before `compile`
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        return optimizer if getattr(optimizer, "use_ema", False) else None

    def _parts(self) -> list[keras.layers.Layer]:
        parts = [self.encoder, self.decoder, self.likelihood, getattr(self, "feature_variances", None)]
        return [part for part in parts if part is not None]

    def _statistics(self) -> list[Any]:
        """What is averaged with the weights: moving means and variances, of features and of errors."""
        found = [variable for part in self._parts() for variable in part.non_trainable_variables]
        return [variable for variable in found if keras.backend.is_float_dtype(variable.dtype)]

    def _moved_without_gradient(self) -> list[Any]:
        """What the forward pass of a step may assign: statistics, counters, the state of noise."""
        found = [variable for part in self._parts() for variable in part.non_trainable_variables]
        for network in (self.encoder, self.decoder):
            for layer in network._flatten_layers():
                if isinstance(layer, keras.layers.SpectralNormalization):  # it assigns its kernel, divided, anew
                    found += layer.trainable_variables
        return [*found, self.train_noise.state]

    def _average_statistics(self) -> None:
        """Averages the statistics as the optimizer has just averaged the weights, from the first step's on."""
        optimizer = self._averaging_optimizer()
        if optimizer is None:
            return
        momentum = ops.where(optimizer.iterations > 1, optimizer.ema_momentum, 0.0)
        for variable, average in self._averaged_statistics():
            share = ops.cast(momentum, average.dtype)
            average.assign(share * average + (1.0 - share) * variable)

    def make_train_function(self, force: bool = False) -> Any:
        self._make_networks()
        return super().make_train_function(force)

    def make_test_function(self, force: bool = False) -> Any:
        self._make_networks()
        return super().make_test_function(force)

    def _make_networks(self) -> None:
        """All that a step calls, before it is traced: replicas trace it in threads, whose names Keras counts apart."""
        self.load_perceptual()

    def _maybe_symbolic_build(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the model is built when it is made, and Keras 3.15 fails here to put replicas' batches together."""

    def load_perceptual(self) -> None:
        """Loads the perceptual network's weights, once; training and evaluation call it by themselves.

        Raises:
            InputError: the weights cannot be had.
        """
        if self.perceptual is not None:
            with self.distribute_strategy.scope():  # a copy on each device
                self.perceptual.load(self.dtype_policy.name)

    # Saving and exporting --------------------------------------------------------------------

    def save(self, filepath: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As `keras.Model.save`, into a .keras file.

        Raises:
            InputError: a path with another ending: Keras's older formats cannot hold the model.
        """
        if Path(filepath).suffix != ".keras":
            raise InputError(f"{filepath}: name a file that ends in .keras")
        super().save(filepath, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "image_shape": self.image_shape,
            "latent_dim": self.latent_dim,
            "network": self.network,
            "layout": networks.LAYOUT,
            "network_options": self.network_options,
            "perceptual": keras.saving.serialize_keras_object(self.perceptual),
            "perceptual_weight": self.perceptual_weight,
            "pixel_weight": self.pixel_weight,
            "beta": self.initial_beta,
            "free_bits": self.free_bits,
            "likelihood": keras.saving.serialize_keras_object(self.likelihood),
            "seed": self.seed,
            **(
                {"encoder": _serialized(self.encoder), "decoder": _serialized(self.decoder)}
                if self.own_networks
                else {}
            ),
        }

    def save_own_variables(self, store: Any) -> None:
        # Keras saves no seed generator; without its state a loaded model would draw its first noise again.
        for generator in (self.train_noise, self.test_noise):
            store[generator.name] = np.array(generator.state)
        store["beta"] = np.array(self._beta)
        for index, average in enumerate(self._statistics_averages.items):
            store[f"statistics_average_{index}"] = average.numpy()
        if isinstance(self.prior, priors.FlowMatchingPrior):  # its weights Keras saves as those of an attribute
            store["prior"] = np.array([self.prior.width, self.prior.blocks])

    def load_own_variables(self, store: Any) -> None:
        for generator in (self.train_noise, self.test_noise):
            generator.state.assign(store[generator.name])
        self._beta.assign(store["beta"])
        self._averages_to_begin.items = []
        for index, (variable, average) in enumerate(self._averaged_statistics()):
            name = f"statistics_average_{index}"
            if name in store.keys():  # noqa: SIM118 - a store of Keras's has no `in` of its own
                average.assign(store[name])
            else:  # saved by a model that does not average: they begin with the statistics, once these are loaded
                self._averages_to_begin.items.append((variable, average))
        if "prior" in store.keys():  # noqa: SIM118 - Keras loads its weights next
            self.set_prior(priors.FlowMatchingPrior(self.latent_dim, *(int(size) for size in np.array(store["prior"]))))
        else:
            self.set_prior(priors.StandardNormal(self.latent_dim))

    @classmethod
    @keras_defaults()
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> VAE:
        config = dict(config)
        networks.check_layout(config["network"], config.pop("layout", 1), own="encoder" in config)
        for name in ("perceptual", "likelihood", "encoder", "decoder"):
            if isinstance(config.get(name), dict):
                config[name] = keras.saving.deserialize_keras_object(config[name], custom_objects)
        return cls(**config)

    def export(
        self,
        filepath: str | os.PathLike[str],
        format: str = "tf_saved_model",
        verbose: bool | None = None,
        *,
        precision: str = "float32",
        calibration: Any = None,
        part: str = "decoder",
        encoder: bool = False,
        run_id: str = "",
        **kwargs: Any,
    ) -> Any:
        """Writes the decoder for deployment: z float32 (batch, latent_dim) to image float32 in [0, 1].

        With `part="generator"` it is the generator: standard normal noise, float32 (batch, latent_dim), to image, by
        the prior and the decoder. A SavedModel is both.

        It computes in float32 with a free batch whatever the training policy was, is compared with the Keras
        decoder before it takes its place, and replaces an earlier artifact only when it is equal.

        Args:
            filepath: a folder for "tf_saved_model" (TF Serving wants a version number: NAME/1), else a file: .onnx,
                .tflite for "litert", .xml for "openvino".
            format: "tf_saved_model", "onnx", "litert" or "openvino", as `keras.Model.export` names them.
            verbose: print where the decoder went and how far it is from the Keras one.
            precision: of "onnx" alone, "float16" or "int8": smaller files, whose images differ.
            calibration: for int8, images to find ranges of values with, some hundreds that the model was trained on: an
                array (count, height, width, channels), or a dataset of batches.
            part: "decoder" or "generator".
            encoder: whether a SavedModel gets the signature `encode` too, from images to mean and log_var.
            run_id: the training run's id, for the metadata.

        Returns:
            `keras_vae.export.verify.Report`, the differences that were measured.

        Raises:
            InputError: weights that are not finite, or unknown arguments.
            keras_vae.export.errors.ExportError: unknown format, or a path that cannot be written.
            keras_vae.export.errors.VerificationError: the artifact differs from the Keras decoder by more than 1e-4,
                or one of lower precision by more than it may.
        """
        from keras_vae._version import __version__
        from keras_vae.export.artifact import check_target, export_decoder
        from keras_vae.export.formats import FORMATS, PARTS

        path = Path(filepath)
        check_target(path, format, precision)
        if any(not np.isfinite(np.array(weight)).all() for weight in self.decoder.weights):
            raise InputError("the decoder's weights are not finite: its training diverged; train again")
        if kwargs:
            raise InputError(
                f"export takes no {', '.join(kwargs)}: it takes filepath, format, verbose, precision, calibration, "
                "part, encoder and run_id"
            )
        if part not in PARTS:
            raise InputError(f"part={part!r}: give {' or '.join(map(repr, PARTS))}")
        if precision == "int8" and calibration is None:
            raise InputError("int8 is calibrated on images: give calibration=, some hundreds the model was trained on")
        with self.averaged_weights():
            metadata = {"keras_vae_version": __version__, "run_id": run_id, "model": self.fingerprint()}
            report = export_decoder(
                self.decoder,
                path,
                format,
                metadata,
                precision=precision,
                calibration=None if calibration is None else self._calibration(calibration),
                prior=self.prior if part == "generator" or FORMATS[format].holds_all else None,
                encoder=self.encoder if encoder else None,
            )
        if verbose:
            print(f"{part} written to {filepath}: {report.summary()}")
        return report

    def fingerprint(self) -> str:
        """SHA-256 of both networks' weights: what is fitted to a model is known by it to be of that model."""
        found = hashlib.sha256()
        for weight in (*self.encoder.weights, *self.decoder.weights):
            found.update(np.ascontiguousarray(weight).tobytes())
        return found.hexdigest()

    # Helpers ---------------------------------------------------------------------------------

    def _needs_xla(self) -> bool:
        return self.computes_in_float16 and precision.needs_xla("float16")

    @keras_defaults()
    def _run(self, network: keras.Model, inputs: Any, training: bool) -> Any:
        """Calls a network; float16 on a CPU goes through XLA, outside of `fit` too."""
        if tf.executing_eagerly() and self._needs_xla():
            role = "encoder" if network is self.encoder else "decoder"
            if role not in self._xla_functions:
                self._xla_functions[role] = tf.function(network, jit_compile=True)
            return self._xla_functions[role](inputs, training=training)
        return network(inputs, training=training)

    def _calibration(self, images: Any) -> np.ndarray:
        """Latents as decoders meet them, float32 (count, latent_dim): codes of images, and as many of the prior's."""
        codes = self._latents_of(images)
        return np.concatenate([codes, ops.convert_to_numpy(self.prior(latents.draw(len(codes), self.latent_dim, 0)))])

    def _latents_of(self, images: Any) -> np.ndarray:
        """One draw from the posterior of each image, float32 (count, latent_dim)."""
        batches = images
        if not isinstance(images, tf.data.Dataset):
            images = np.asarray(images)
            batches = (images[start : start + 64] for start in range(0, len(images), 64))
        return np.concatenate(
            [ops.convert_to_numpy(self.encode(batch).sample(number)) for number, batch in enumerate(batches)]
        )

    def _images(self, data: Any) -> Any:
        """The images of what Keras hands over, float32 of the model's shape."""
        return image_batches.as_float32(image_batches.unpack(data), self.image_shape)


def _number(variable: Any) -> float:
    """The value of a scalar variable, mirrored on several devices or not."""
    return float(ops.convert_to_numpy(variable))


def _nothing(*_: Any) -> None:
    """Leaves a step out."""


def _callbacks(options: dict[str, Any]) -> list[Any]:
    callbacks = options.get("callbacks")
    callbacks = getattr(callbacks, "callbacks", callbacks)
    return list(callbacks) if isinstance(callbacks, list | tuple) else [] if callbacks is None else [callbacks]


def _serialized(network: keras.Model) -> dict[str, Any]:
    return keras.saving.serialize_keras_object(network)


@contextmanager
def _swapped(pairs: list[tuple[Any, Any]]) -> Iterator[None]:
    """Within it, each variable has the value of the other; afterwards its own again, to the last bit."""
    own = [np.array(variable) for variable, _ in pairs]
    for variable, other in pairs:
        variable.assign(other)
    try:
        yield
    finally:
        for (variable, _), value in zip(pairs, own, strict=True):
            variable.assign(value)


@contextmanager
def _restored_on_failure(variables: list[Any]) -> Iterator[None]:
    """Variables have their values of now again where the block fails, in which Keras's callback swaps them."""
    before = [np.array(variable) for variable in variables]
    try:
        yield
    except BaseException:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
        raise


class _Untracked:
    """Holds variables that Keras is not to count among the model's."""

    def __init__(self, items: Any) -> None:
        self.items = items


def _optimizer(optimizer: Any, variables: list[Any]) -> keras.optimizers.Optimizer:
    """The optimizer that is asked for, refused where Keras does not know it or it belongs to another model."""
    if optimizer is None:
        return keras.optimizers.Adam(LEARNING_RATE)
    try:
        found = keras.optimizers.get(optimizer)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"unknown optimizer {optimizer!r}: give a Keras optimizer, or a name such as 'adam'"
        ) from error
    inner = getattr(found, "inner_optimizer", found)
    if inner.built and [id(each) for each in inner._trainable_variables] != [id(each) for each in variables]:
        raise InputError(
            "the optimizer was made for other weights, of another model or before some were frozen: give a new one"
        )
    return found


def _scaling(optimizer: keras.optimizers.Optimizer, initial_scale: float) -> keras.optimizers.Optimizer:
    """Wraps an optimizer for float16, as Keras would, but starting from a scale that such losses can bear."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=initial_scale)


def _image_shape(image_shape: Sequence[int]) -> tuple[int, int, int]:
    try:
        height, width, channels = map(operator.index, image_shape)
    except (TypeError, ValueError) as error:
        raise InputError(f"image_shape={image_shape!r}: give (height, width, channels)") from error
    return height, width, channels
