"""The variational autoencoder: a Keras model with its own training step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_vae import networks
from keras_vae.data import image_batches
from keras_vae.features.perceptual import PerceptualLoss, perceptual_loss
from keras_vae.model import conditioning, distributions, feature_terms, guards, metrics, priors
from keras_vae.model.averaging import AveragedWeights
from keras_vae.model.generative import GenerativeModel
from keras_vae.model.presets import DEFAULT_LAYERS, DEFAULT_PERCEPTUAL_WEIGHT
from keras_vae.model.state import Untracked
from keras_vae.support import keras_internals, precision, replicas
from keras_vae.support.conditions import Condition
from keras_vae.support.errors import InputError, check_weight
from keras_vae.support.keras_defaults import keras_defaults


@keras.saving.register_keras_serializable("keras_vae")
class VAE(GenerativeModel):
    """Variational autoencoder whose loss sees pixels, deep features, or both.

    Kingma and Welling 2014 (arXiv 1312.6114) with the deep-feature-consistent loss of Hou et al. 2017
    (arXiv 1610.00291). Training minimizes

        loss = pixel_weight * -log p(x | z) + perceptual + beta * KL

    KL and log-likelihood are in nats per image, summed over latents and over pixel values, without a hidden factor.
    `elbo`, log p(x | z) - KL, is always reported, and has no weight in it. `perceptual_weight` says what `perceptual`
    is. By default pixels and features are both calibrated Gaussians; `keras_vae.OBJECTIVES` has other objectives by
    name, the paper's among them: `VAE(**keras_vae.OBJECTIVES["vae-123"])`.

    Images are float32 (batch, height, width, channels) in [0, 1]; uint8 images are scaled. `fit`, `evaluate` and
    `predict` take arrays, or datasets of images, of (image, label), or of dicts with the key "image".

    Args:
        image_shape: (height, width, channels), with 1 or 3 channels.
        latent_dim: number of latents.
        network: encoder and decoder family, a key of `keras_vae.networks.FAMILIES`; `keras-vae train` has "ppca".
        network_options: the family's own options, such as {"width": 64}.
        condition: what images can be asked for by: a number of classes, names of attributes, or a
            `keras_vae.Condition`, which names classes. `fit` then takes (images, labels). A share of the labels is left
            out in training, so that the same model knows images of any kind.
        encoder, decoder: Keras models of your own instead of a family; give both; they determine image_shape and
            latent_dim. The encoder returns {"mean", "log_var"}, the two in that order, or one output with the means
            first; the decoder returns images in [0, 1]. With a condition it is their second input.
        perceptual: "vgg19", "vgg16", "hed-vgg16", a `PerceptualLoss`, or None. It is loaded when
            training starts, is frozen, and is not saved with the model.
        perceptual_layers: "vae-123", "vae-1234", "vae-345", "vae-12345" or layer names, where `perceptual` is a name.
        perceptual_weight: how the terms d enter, of each layer and then each texture (`PerceptualLoss.distances`).
            A number w: w * sum(d), the paper's with 0.5. One number a term: sum(w * d).
            "calibrated": each layer's features get a Gaussian with its own optimal variance, and the term is their
            negative log-likelihood in nats. "balanced": the same, with each layer's nats scaled as if it had 2.5
            times as many values as the image: no layer counts more because it is wide.
        pixel_weight: factor of the negative log-likelihood of the pixels; the paper's is 0.
        beta: factor of the KL in the loss; 1 is the ELBO's. `vae.beta` can be set, and `keras_vae.schedules` set it.
        free_bits: nats that each latent may carry without being charged in the loss (Kingma et al. 2016,
            arXiv 1606.04934, appendix C.8: the mean over the batch is compared). `kl` stays what it is.
        likelihood: "gaussian", "gaussian-calibrated", "bernoulli", "discretized-logistic", or an object of
            `keras_vae.distributions`.
        seed: seed of the draws from the posterior and of nothing else; Keras's global seed
            (`keras.utils.set_random_seed`) is what initial weights depend on.
        texture_layers: layers, such as ("relu2_1", "relu3_1"), whose features are compared wherever they are in the
            image, too, where `perceptual` is a name (see `PerceptualLoss`): sharper images, each pixel less right.

    Raises:
        InputError: an argument that cannot be used, said in one line.

    Example:
        >>> vae = VAE(image_shape=(64, 64, 3), latent_dim=100, perceptual="vgg19")
        >>> vae.compile(keras.optimizers.Adam(5e-4))
        >>> vae.fit(images, epochs=5, validation_split=0.1)
        >>> faces = vae.sample(64, seed=0)

        >>> vae = VAE(image_shape=(28, 28, 1), condition=10)
        >>> vae.compile()
        >>> vae.fit(images, labels, epochs=5)
        >>> boots = vae.sample(8, condition=9)
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (64, 64, 3),
        latent_dim: int = 100,
        network: str = "dfc",
        perceptual: str | PerceptualLoss | None = "vgg19",
        perceptual_layers: str | Sequence[str] = DEFAULT_LAYERS,
        perceptual_weight: float | Sequence[float] | str = DEFAULT_PERCEPTUAL_WEIGHT,
        pixel_weight: float = 1.0,
        beta: float = 1.0,
        free_bits: float = 0.0,
        likelihood: str | distributions.Likelihood = "gaussian-calibrated",
        network_options: Mapping[str, Any] | None = None,
        condition: int | Sequence[str] | Condition | None = None,
        encoder: keras.Model | None = None,
        decoder: keras.Model | None = None,
        seed: int | None = None,
        texture_layers: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        precision.check_policy(self.dtype_policy)
        self.network, self.network_options = network, dict(network_options or {})
        self.own_networks = encoder is not None or decoder is not None
        self.condition = Condition.of(condition)
        self.encoder, self.decoder, self.image_shape, self.latent_dim = networks.make(
            network,
            image_shape,
            latent_dim,
            self.dtype_policy,
            self.network_options,
            encoder,
            decoder,
            self.condition_dim,
        )
        self.seed = seed
        self.initial_beta = check_weight("beta", beta)
        self.free_bits = check_weight("free_bits", free_bits)
        self.pixel_weight = check_weight("pixel_weight", pixel_weight)
        self.likelihood = distributions.get_likelihood(likelihood)
        # A plain object, so that Keras neither saves nor counts the frozen network as a part of the model.
        self.perceptual = perceptual_loss(perceptual, perceptual_layers, texture_layers)
        counts = None if self.perceptual is None else self.perceptual.counts
        self.perceptual_weight = feature_terms.check_perceptual_weight(perceptual_weight, counts)
        if counts is not None:
            self.feature_term = feature_terms.feature_term(
                self.perceptual_weight, sum(counts), math.prod(self.image_shape)
            )
        elif not self.pixel_weight:
            raise InputError("pixel_weight=0 and no perceptual network: nothing says what an image should look like")
        self.beta_variable = self._scalar("beta", self.initial_beta)
        self.last_kl_variable = self._scalar("last_kl", 0.0)
        # Evaluation draws from a stream of its own, which starts over each time: it does not change the training that
        # follows, and finds the same figures a second time.
        self.train_noise = replicas.NoiseByPlace(seed, name="train_noise", stream=1)
        self.test_noise = replicas.NoiseByPlace(seed, name="test_noise")
        self.term_means = metrics.TermMeans(self._term_names())
        self.active_units = metrics.ActiveUnits(self.latent_dim)
        self.watch = guards.Watch(self._term_names())
        self.averaging = AveragedWeights(self._statistics)
        self._in_xla: dict[str, Any] = {}
        self._prior = Untracked(priors.StandardNormal(self.latent_dim))
        self.build((None, *self.image_shape))

    # The model: q(z | x), p(x | z) and the objective -------------------------------------------

    def encode(self, images: Any, condition: Any = None, *, training: bool = False) -> distributions.DiagonalGaussian:
        """The posterior q(z | x) of a batch of images, of a conditional model q(z | x, c).

        Args:
            images: (batch, height, width, channels), float in [0, 1] or uint8.
            condition: what the images are of, as `keras_vae.Condition.rows` takes it; None if that is not known.
            training: whether batch statistics follow this batch.

        Raises:
            InputError: images of another shape than the model's, outside of [0, 1] or not finite, or a condition that
                the model does not know. Within a function that TensorFlow compiles, values are not checked.
        """
        images = image_batches.as_array(image_batches.unpack(images) if isinstance(images, dict) else images)
        if tf.executing_eagerly():
            image_batches.check(images, self.image_shape)
        images = image_batches.as_float32(images, self.image_shape)
        rows = conditioning.rows(self.condition, condition, ops.shape(images)[0])
        parameters = self._run(self.encoder, networks.inputs(images, rows), training)
        return distributions.DiagonalGaussian(parameters["mean"], parameters["log_var"])

    def decode(self, z: Any, condition: Any = None, *, training: bool = False) -> Any:
        """Images of a batch of latents: float32, (batch, height, width, channels) in [0, 1].

        Args:
            z: float, (batch, latent_dim).
            condition: what the images are to be of, as for `encode`.
            training: whether batch statistics follow this batch.

        Raises:
            InputError: latents of another size than the model's, or a condition that it does not know.
        """
        z = ops.cast(ops.convert_to_tensor(z), "float32")
        if len(z.shape) != 2 or z.shape[1] != self.latent_dim:
            raise InputError(f"latents have shape {tuple(z.shape)}: this model decodes (batch, {self.latent_dim})")
        return self._run(
            self.decoder, networks.inputs(z, conditioning.rows(self.condition, condition, ops.shape(z)[0])), training
        )

    def call(self, inputs: Any, training: bool = False, condition: Any = None) -> Any:
        """Reconstructions, from the posterior's mode: what `predict` returns, without randomness."""
        return self.decode(self.encode(inputs, condition, training=training).mode(), condition, training=training)

    @keras_defaults()
    def objective(
        self, images: Any, noise: Any, training: bool, targets: list[Any] | None = None, condition: Any = None
    ) -> tuple[dict[str, Any], distributions.DiagonalGaussian]:
        """Every term of the objective for each image, in float32, shape (batch,), and the posterior.

        Args:
            images: of the model's shape, float in [0, 1] or uint8.
            noise: standard normal, float32 (batch, latent_dim), or a seed, as `DiagonalGaussian.sample` takes it.
            training: whether batch statistics and calibrated variances follow this batch.
            targets: the images' features, if they are already computed.
            condition: what the images are of, as for `encode`.

        Returns:
            `loss`, `elbo`, `reconstruction` (-log p(x | z)), `kl`, and where they apply `kl_floored`,
            `bits_per_dim` and `perceptual`.
        """
        images = image_batches.as_float32(images, self.image_shape)
        posterior = self.encode(images, condition, training=training)
        decoded = self.decode(posterior.sample(noise), condition, training=training)
        # Left out of the loss, the pixels still teach a likelihood's own parameters, but not the decoder.
        seen = decoded if self.pixel_weight else ops.stop_gradient(decoded)
        reconstruction = -self.likelihood.log_prob(images, seen, training=training)
        kl = posterior.kl()
        terms = {"elbo": -reconstruction - kl, "reconstruction": reconstruction, "kl": kl}
        if self.free_bits:
            terms["kl_floored"] = posterior.kl_with_free_bits(self.free_bits)
        if self.likelihood.discrete:
            terms["bits_per_dim"] = -terms["elbo"] / (math.log(2.0) * math.prod(self.image_shape))

        loss = self.beta_variable * terms.get("kl_floored", kl)
        if self.pixel_weight:
            loss = loss + self.pixel_weight * reconstruction
        if self.perceptual is not None:
            feature_terms.check_terms(self.perceptual.terms, self.feature_term.count)
            targets = self.perceptual.targets(images) if targets is None else targets
            terms["perceptual"] = self.feature_term(
                self.perceptual.distances(targets, decoded), sizes=self.perceptual.sizes(targets), training=training
            )
            loss = loss + feature_terms.loss_factor(self.perceptual_weight) * terms["perceptual"]
        return {"loss": loss, **terms}, posterior

    # Steps -------------------------------------------------------------------------------------

    @keras_internals.freed_with_its_model
    def train_step(self, data: Any) -> dict[str, Any]:
        if self.condition is not None:
            conditioning.needed(data, self.condition)
        images, condition, images_fine = self._noted(data)
        images = replicas.at_least_one(replicas.one_for_each(images))
        before = [tf.identity(each) for each in self._moved_without_gradient()]
        self.schedule_beta()
        noise = self.train_noise.draw((ops.shape(images)[0], self.latent_dim + conditioning.draws(self.condition)))
        noise, chances = noise[:, : self.latent_dim], noise[:, self.latent_dim :]
        if condition is not None:
            condition = conditioning.partly_unknown(replicas.at_least_one(condition), chances)
        # Before the tape: no gradient goes to the real images' features, and nothing is kept for one.
        targets = None if self.perceptual is None else self.perceptual.targets(images)
        with tf.GradientTape() as tape:
            terms, posterior = self.objective(images, noise, training=True, targets=targets, condition=condition)
            size = replicas.batch_size(images)
            loss = ops.sum(terms["loss"]) / size + self._beside_the_objective(terms, size)
            scaled_loss = self.optimizer.scale_loss(loss)  # for float16
        gradients = tape.gradient(scaled_loss, self.trainable_weights)
        beta, means = self.beta_variable + 0.0, self.term_means.of(terms)
        guards.take_step(self, images_fine, gradients, means, loss, before)
        return self._logged({**self._track(means, size, posterior.mean), "beta": beta})

    def _beside_the_objective(self, terms: dict[str, Any], size: Any) -> Any:
        """Losses that layers added, such as weight decay; without pixels also that of a likelihood's parameters."""
        added = sum(ops.cast(each, "float32") for each in self.losses) / replicas.count()
        if not self.pixel_weight and self.likelihood.trainable_weights:
            added = added + ops.sum(terms["reconstruction"]) / size
        return added

    def test_step(self, data: Any) -> dict[str, Any]:
        images, condition, _ = self._noted(data)
        rows = ops.shape(images)[0]
        noise = replicas.at_least_one(self.test_noise.draw((rows, self.latent_dim)))
        images, condition = replicas.at_least_one(images), replicas.at_least_one(condition)
        terms, posterior = self.objective(images, noise, training=False, condition=condition)
        # Of the images alone: where a replica has none, one stood in for them.
        terms, mean = {name: values[:rows] for name, values in terms.items()}, posterior.mean[:rows]
        return self._logged(self._track(self.term_means.of(terms), replicas.batch_size(mean), mean))

    def predict_step(self, data: Any) -> Any:
        images, condition, _ = self._noted(data)
        found = self(replicas.at_least_one(images), training=False, condition=replicas.at_least_one(condition))
        return found[: ops.shape(images)[0]]

    def _track(self, means: Any, size: Any, latents: Any) -> dict[str, Any]:
        self.term_means.update_state(means, size)
        self.active_units.update_state(ops.stop_gradient(latents))
        return {**self.term_means.means(), self.active_units.name: self.active_units.result()}

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return [self.term_means, *self.term_means.others, self.active_units]

    # Saving ------------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        own = {"encoder": self.encoder, "decoder": self.decoder} if self.own_networks else {}
        return {
            **super().get_config(),
            "image_shape": self.image_shape,
            "latent_dim": self.latent_dim,
            "network": self.network,
            "layout": networks.LAYOUT,
            **({} if self.condition is None else {"condition": self.condition.config()}),
            "network_options": self.network_options,
            "perceptual": keras.saving.serialize_keras_object(self.perceptual),
            "perceptual_weight": self.perceptual_weight,
            "pixel_weight": self.pixel_weight,
            "beta": self.initial_beta,
            "free_bits": self.free_bits,
            "likelihood": keras.saving.serialize_keras_object(self.likelihood),
            "seed": self.seed,
            **{name: keras.saving.serialize_keras_object(network) for name, network in own.items()},
        }

    @classmethod
    @keras_defaults()
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> VAE:
        config = dict(config)
        calibrated = config.get("perceptual") is not None and isinstance(config["perceptual_weight"], str)
        networks.check_layout(config["network"], config.pop("layout", 1), "encoder" in config, calibrated)
        for name in ("perceptual", "likelihood", "encoder", "decoder"):
            if isinstance(config.get(name), dict):
                config[name] = keras.saving.deserialize_keras_object(config[name], custom_objects)
        return cls(**config)

    def _term_names(self) -> list[str]:
        """The terms that `objective` returns, which training and evaluation report the means of."""
        optional = {
            "kl_floored": bool(self.free_bits),
            "bits_per_dim": self.likelihood.discrete,
            "perceptual": self.perceptual is not None,
        }
        return ["loss", "elbo", "reconstruction", "kl", *(name for name, there in optional.items() if there)]
