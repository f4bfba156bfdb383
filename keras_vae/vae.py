"""The variational autoencoder: a Keras model with its own training step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_vae import networks, precision
from keras_vae.distributions import DiagonalGaussian, Likelihood, get_likelihood
from keras_vae.errors import InputError
from keras_vae.perceptual import PerceptualLoss, check_weight

METRICS = ("loss", "elbo", "reconstruction", "kl", "perceptual")
LEARNING_RATE = 5e-4  # Hou et al., section 4.1
# Keras begins at 2^15, meant for losses near 1. Ours are sums over pixels: it then leaves out a dozen steps, whose
# gradients overflow, before it arrives here.
INITIAL_LOSS_SCALE = 4.0


@keras.saving.register_keras_serializable("keras_vae")
class VAE(keras.Model):
    """Variational autoencoder with an optional deep-feature-consistent (perceptual) loss.

    Kingma and Welling 2014 (arXiv 1312.6114) with the loss of Hou et al. 2017 (arXiv 1610.00291).
    With a perceptual network, training minimizes

        loss = beta * KL + perceptual_weight * perceptual      (the paper's objective)

    and without one the negative ELBO, beta weighting the KL:

        loss = -log p(x | z) + beta * KL

    KL and log-likelihood are in nats per image, summed over latents and over pixel values. `elbo`
    is reported in either case, as log p(x | z) - KL with no weight in it.

    Images are float32 (batch, height, width, channels) in [0, 1]; uint8 images are scaled. Anything
    Keras takes will do for `fit`, `evaluate` and `predict`: arrays, or datasets of images, of (image, label), or
    of dicts with the key "image".

    Args:
        image_shape: (height, width, channels), with 1 or 3 channels.
        latent_dim: number of latents.
        network: encoder and decoder family, a key of `keras_vae.networks.FAMILIES`.
        perceptual: "vgg19", "vgg16", "hed-vgg16", a `PerceptualLoss`, or None. It is loaded when
            training starts, is frozen, and is not saved with the model.
        perceptual_layers: "vae-123", "vae-345" or layer names, where `perceptual` is a name.
        perceptual_weight: factor of the perceptual term; the paper's is 0.5.
        beta: factor of the KL in the loss; 1 is the ELBO's.
        likelihood: "gaussian", "bernoulli", or an object of `keras_vae.distributions`.
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
        perceptual: str | PerceptualLoss | None = "vgg19",
        perceptual_layers: str | Sequence[str] = "vae-123",
        perceptual_weight: float = 0.5,
        beta: float = 1.0,
        likelihood: str | Likelihood = "gaussian",
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        height, width, channels = _image_shape(image_shape)
        self.image_shape = (height, width, channels)
        self.latent_dim = int(latent_dim)
        self.network = network
        self.beta = check_weight("beta", beta)
        self.perceptual_weight = check_weight("perceptual_weight", perceptual_weight)
        self.likelihood = get_likelihood(likelihood)
        self.seed = seed
        # A plain object, so that Keras neither saves nor counts the frozen network as a part of the model.
        self.perceptual = PerceptualLoss(perceptual, perceptual_layers) if isinstance(perceptual, str) else perceptual
        self.encoder, self.decoder = networks.build(network, self.image_shape, self.latent_dim, self.dtype_policy)
        # Evaluation draws from a stream of its own: it must not change the training that goes on after it.
        self.train_noise = keras.random.SeedGenerator(seed, name="train_noise")
        self.test_noise = keras.random.SeedGenerator(seed, name="test_noise")
        self.trackers = {name: keras.metrics.Mean(name=name) for name in METRICS}
        if self.perceptual is None:
            del self.trackers["perceptual"]
        self._xla_functions: dict[str, Any] = {}
        self.build((None, *self.image_shape))

    def build(self, input_shape: Any) -> None:
        self.built = True  # both networks are built when they are made

    # The three steps of the model ------------------------------------------------------------

    def encode(self, images: Any, training: bool = False) -> DiagonalGaussian:
        """The posterior q(z | x) of a batch of images.

        Args:
            images: (batch, height, width, channels), float in [0, 1] or uint8.

        Raises:
            InputError: images of another shape than the model's.
        """
        parameters = self._run(self.encoder, self._images(images), training)
        return DiagonalGaussian(parameters["mean"], parameters["log_var"])

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

    def sample(self, count: int, seed: int | None = None) -> Any:
        """Images of `count` draws from the prior, a standard normal.

        The same seed gives the same latents here, in `export.runtime` and on the command line.
        """
        return self.decode(np.random.default_rng(seed).standard_normal((count, self.latent_dim), np.float32))

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Reconstructions, from the posterior's mode: what `predict` returns, without chance in it."""
        return self.decode(self.encode(inputs, training).mode(), training)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        return (None, *self.image_shape)

    # Training --------------------------------------------------------------------------------

    def objective(self, images: Any, noise: keras.random.SeedGenerator, training: bool) -> dict[str, Any]:
        """Every term of the objective for each image, in float32: the values of `METRICS`, shape (batch,)."""
        posterior = self.encode(images, training)
        decoded = self.decode(posterior.sample(noise), training)

        kl = posterior.kl()
        reconstruction = -self.likelihood.log_prob(images, decoded)
        terms = {"elbo": -reconstruction - kl, "reconstruction": reconstruction, "kl": kl}
        if self.perceptual is None:
            return {"loss": reconstruction + self.beta * kl, **terms}
        perceptual = self.perceptual(images, decoded)
        return {"loss": self.perceptual_weight * perceptual + self.beta * kl, **terms, "perceptual": perceptual}

    def train_step(self, data: Any) -> dict[str, Any]:
        images = self._images(_inputs(data))
        with tf.GradientTape() as tape:
            terms = self.objective(images, self.train_noise, training=True)
            loss = ops.mean(terms["loss"])
            # Losses that layers added (weight decay, say); float16 needs the loss scaled before the gradient.
            loss = loss + sum(ops.cast(extra, "float32") for extra in self.losses)
            scaled_loss = self.optimizer.scale_loss(loss)
        weights = self.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(scaled_loss, weights), weights, strict=True))
        return self._track(terms)

    def test_step(self, data: Any) -> dict[str, Any]:
        images = self._images(_inputs(data))
        return self._track(self.objective(images, self.test_noise, training=False))

    def predict_step(self, data: Any) -> Any:
        return self(_inputs(data), training=False)

    def _track(self, terms: dict[str, Any]) -> dict[str, Any]:
        # A mean over images, not over batches: a smaller last batch weighs less.
        for name, tracker in self.trackers.items():
            tracker.update_state(terms[name])
        return {name: tracker.result() for name, tracker in self.trackers.items()}

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return list(self.trackers.values())

    def compile(self, optimizer: Any = None, *, jit_compile: bool | str = "auto", **kwargs: Any) -> None:
        """As `keras.Model.compile`, less `loss` and `metrics`: the model brings its own.

        Args:
            optimizer: a Keras optimizer; Adam with the paper's learning rate, 5e-4, by default. Under the policy
                "mixed_float16" Keras wraps it for dynamic loss scaling.
            jit_compile: whether to compile with XLA. "auto" follows Keras on a GPU; on a CPU it compiles only
                float16, which cannot be computed there otherwise.
            **kwargs: `run_eagerly`, `steps_per_execution`, `auto_scale_loss`.

        Raises:
            InputError: a loss or metrics were given.
        """
        for name in ("loss", "loss_weights", "metrics", "weighted_metrics"):
            if kwargs.pop(name, None) is not None:
                raise InputError(f"compile({name}=...): a VAE brings its own loss and metrics; leave {name!r} out")
        if optimizer is None:
            optimizer = keras.optimizers.Adam(LEARNING_RATE)
        if self.compute_dtype == "float16" and kwargs.get("auto_scale_loss", True):
            optimizer = _scaling(optimizer)
        super().compile(optimizer, jit_compile=jit_compile, **kwargs)
        self._asked_jit_compile = jit_compile
        # Now rather than at the first step, so that a model saved before it loads with the same variables.
        self.optimizer.build(self.trainable_variables)
        if jit_compile == "auto" and not self.run_eagerly and not tf.config.list_physical_devices("GPU"):
            self.jit_compile = self._needs_xla()
        if self._needs_xla() and not self.jit_compile:
            raise InputError(
                "float16 on a CPU runs only when compiled by XLA: leave out jit_compile and run_eagerly, "
                "or use mixed_bfloat16 or float32"
            )

    def get_compile_config(self) -> dict[str, Any] | None:
        config = super().get_compile_config()
        # Keras would store what "auto" came to here; another machine decides for itself.
        return config and {**config, "jit_compile": self._asked_jit_compile}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.fit`; arrays are looked over first, for images outside [0, 1].

        Raises:
            InputError: an array of images in another range, or of another shape than the model's, or
                perceptual weights that cannot be had.
        """
        _check_range(x)
        if isinstance(x, tf.data.Dataset):
            kwargs.setdefault("shuffle", False)  # Keras's default, True, makes it warn that datasets shuffle themselves
        return super().fit(x, *args, **kwargs)

    def make_train_function(self, force: bool = False) -> Any:
        self.load_perceptual()
        return super().make_train_function(force)

    def make_test_function(self, force: bool = False) -> Any:
        self.load_perceptual()
        return super().make_test_function(force)

    def load_perceptual(self) -> None:
        """Loads the perceptual network's weights, once; training and evaluation call it by themselves.

        Raises:
            InputError: the weights cannot be had.
        """
        if self.perceptual is not None:
            self.perceptual.load(self.dtype_policy.name)

    # Saving and exporting --------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "image_shape": self.image_shape,
            "latent_dim": self.latent_dim,
            "network": self.network,
            "perceptual": keras.saving.serialize_keras_object(self.perceptual),
            "perceptual_weight": self.perceptual_weight,
            "beta": self.beta,
            "likelihood": keras.saving.serialize_keras_object(self.likelihood),
            "seed": self.seed,
        }

    def save_own_variables(self, store: Any) -> None:
        # Keras saves no seed generator; without its state a loaded model would draw its first noise again.
        for generator in (self.train_noise, self.test_noise):
            store[generator.name] = np.array(generator.state)

    def load_own_variables(self, store: Any) -> None:
        for generator in (self.train_noise, self.test_noise):
            generator.state.assign(store[generator.name])

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> VAE:
        config = dict(config)
        for name in ("perceptual", "likelihood"):
            if isinstance(config.get(name), dict):
                config[name] = keras.saving.deserialize_keras_object(config[name], custom_objects)
        return cls(**config)

    def export(
        self,
        filepath: str | os.PathLike[str],
        format: str = "tf_saved_model",
        verbose: bool | None = None,
        run_id: str = "",
        **kwargs: Any,
    ) -> Any:
        """Writes the decoder for deployment: z float32 (batch, latent_dim) to image float32 in [0, 1].

        It computes in float32 with a free batch whatever the training policy was, is compared with the Keras
        decoder before it takes its place, and replaces an earlier artifact only when it is equal.

        Args:
            filepath: a folder for "tf_saved_model" (TF Serving wants a version number: NAME/1), a file for "onnx".
            format: "tf_saved_model" or "onnx", as `keras.Model.export` names them.
            verbose: print where the decoder went and how far it is from the Keras one.
            run_id: the training run's id, for the ONNX metadata.

        Returns:
            `export.verify.Report`, the differences that were measured.

        Raises:
            InputError: unknown format, or a path that cannot be written.
            export.errors.VerificationError: the artifact differs from the Keras decoder by more than 1e-4.
        """
        from export import export_decoder
        from keras_vae._version import __version__

        if kwargs:
            raise InputError(f"export takes no {', '.join(kwargs)}: it takes filepath, format, verbose and run_id")
        metadata = {"keras_vae_version": __version__, "run_id": run_id}
        report = export_decoder(self.decoder, Path(filepath), format, metadata)
        if verbose:
            print(f"decoder written to {filepath}: {report.summary()}")
        return report

    # Helpers ---------------------------------------------------------------------------------

    def _needs_xla(self) -> bool:
        return precision.needs_xla(self.compute_dtype)

    def _run(self, network: keras.Model, inputs: Any, training: bool) -> Any:
        """Calls a network; float16 on a CPU goes through XLA, outside of `fit` too."""
        if tf.executing_eagerly() and self._needs_xla():
            if network.name not in self._xla_functions:
                self._xla_functions[network.name] = tf.function(network, jit_compile=True)
            return self._xla_functions[network.name](inputs, training=training)
        return network(inputs, training=training)

    def _images(self, images: Any) -> Any:
        """The images of what Keras hands over, as float32 in [0, 1] of the model's shape."""
        if isinstance(images, dict):
            if "image" not in images:
                raise InputError(f"batches have the keys {', '.join(images)}: name the images 'image'")
            images = images["image"]
        images = ops.convert_to_tensor(images)
        if tuple(images.shape[1:]) != self.image_shape:
            raise InputError(
                f"images have shape {tuple(images.shape)}: this model takes (batch, "
                f"{', '.join(map(str, self.image_shape))})"
            )
        if keras.backend.standardize_dtype(images.dtype) == "uint8":
            return ops.cast(images, "float32") / 255.0
        return ops.cast(images, "float32")


def _inputs(data: Any) -> Any:
    """The images of a batch of images, of (images, labels), or of a dict."""
    return keras.utils.unpack_x_y_sample_weight(data)[0]


def _scaling(optimizer: Any) -> keras.optimizers.Optimizer:
    """Wraps an optimizer for float16, as Keras would, but starting from a scale that such losses can bear."""
    optimizer = keras.optimizers.get(optimizer)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=INITIAL_LOSS_SCALE)


def _image_shape(image_shape: Sequence[int]) -> tuple[int, int, int]:
    if len(image_shape) != 3:
        raise InputError(f"image_shape={tuple(image_shape)}: give (height, width, channels)")
    height, width, channels = map(int, image_shape)
    return height, width, channels


def _check_range(images: Any) -> None:
    """Refuses an array of 0..255 floats, the usual slip; the first thousand images tell."""
    if isinstance(images, dict):
        images = images.get("image")
    if not isinstance(images, np.ndarray) or images.dtype == np.uint8 or not images.size:
        return
    low, high = float(np.min(images[:1000])), float(np.max(images[:1000]))
    if not (low >= 0.0 and high <= 1.0):
        raise InputError(f"images range from {low:g} to {high:g}: scale them to [0, 1], or pass 0..255 images as uint8")
