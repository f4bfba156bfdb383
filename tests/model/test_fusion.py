"""A training step in fewer operations computes what the straightforward code does: values, gradients, statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_vae import OBJECTIVES, VAE, PerceptualLoss
from keras_vae.model import fusion, networks
from keras_vae.model.fusion import fuse

Shape = tuple[int, ...]


def randomized(model: keras.Model, seed: int = 0) -> keras.Model:
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        positive = "variance" in weight.path
        weight.assign(rng.uniform(0.5, 2.0, weight.shape) if positive else rng.normal(0, 0.2, weight.shape))
    return model


def inputs_of(model: keras.Model, batch: int = 6) -> tf.Tensor:
    return tf.constant(np.random.default_rng(1).standard_normal((batch, *model.input_shape[1:])), tf.float32)


def everything(model: keras.Model, original: keras.Model, training: bool = True) -> list[np.ndarray]:
    """Outputs, gradients to inputs and weights, and statistics afterwards; the original's weights stay as they were."""
    before = [np.array(weight) for weight in original.weights]
    x = inputs_of(original)

    @tf.function
    def run(x: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = [tf.cast(each, tf.float32) for each in tf.nest.flatten(model(x, training=training))]
            total = tf.add_n([tf.reduce_sum(tf.sin(each)) for each in outputs])
        return outputs, tape.gradient(total, [x, *original.trainable_weights])

    outputs, gradients = run(x)
    statistics = [np.array(weight) for weight in original.non_trainable_weights]
    for weight, value in zip(original.weights, before, strict=True):
        weight.assign(value)
    return [np.array(each) for each in (*outputs, *gradients, *statistics)]


def assert_close(found: list[np.ndarray], expected: list[np.ndarray], tolerance: float = 1e-4) -> None:
    """As close as float32 allows. Gradients that cancel out, a bias's before normalization, are rounding alone."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(np.abs(other).max(), 1))


def kinds(model: keras.Model) -> set[str]:
    return {type(layer).__name__ for layer in model.layers}


@pytest.mark.parametrize("network", ["dfc", "resnet"])
@pytest.mark.parametrize(("shape", "training"), [((16, 16, 3), True), ((17, 30, 1), True), ((48, 32, 3), False)])
def test_families_compute_the_same(network: str, shape: tuple[int, int, int], training: bool) -> None:
    """At every border: 16 pixels leave one place at the lowest resolution, odd sides are cut."""
    for model in networks.build(network, shape, 5, "float32", {"width": 8}):
        randomized(model)
        fused = fuse(model)
        assert_close(everything(fused, model, training), everything(model, model, training))
        assert ("FusedBatchNormalization" in kinds(fused)) == (network == "dfc")
    # Where sides are odd, resnet's padding with zeros begins at another place.
    assert ("UpSampling2D" in kinds(fused)) == (network == "resnet" and shape[0] == 17)


def stack(*parts: Any, shape: Shape = (5, 6, 4)) -> keras.Model:
    x = inputs = keras.Input(shape)
    for part in parts:
        x = part(x)
    return keras.Model(inputs, x)


def upsampling() -> layers.Layer:
    return layers.UpSampling2D(2)


FUSED: dict[str, Callable[[], keras.Model]] = {
    "same padding, bias and activation": lambda: stack(
        upsampling(), layers.Conv2D(3, 3, padding="same", activation="tanh")
    ),
    "padded with zeros": lambda: stack(upsampling(), layers.ZeroPadding2D(1), layers.Conv2D(3, 3)),
    "padded with the edge and cut": lambda: stack(
        upsampling(), layers.Cropping2D(((0, 1), (0, 0))), networks.ReplicationPadding2D(),
        layers.Conv2D(3, 3, use_bias=False),
    ),
    "one after the other": lambda: stack(
        upsampling(), layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization(), layers.LeakyReLU(),
        upsampling(), layers.Conv2D(2, 3, padding="same"),
    ),
    "within another model": lambda: stack(
        stack(upsampling(), layers.Conv2D(3, 3, padding="same")), layers.BatchNormalization()
    ),
    "sequential": lambda: keras.Sequential([keras.Input((4, 4, 2)), upsampling(), layers.Conv2D(3, 3, padding="same")]),
    "normalization alone": lambda: stack(layers.BatchNormalization(momentum=0.7, epsilon=0.01)),
}  # fmt: skip


@pytest.mark.parametrize("case", FUSED)
def test_what_is_fused_computes_the_same(case: str) -> None:
    model = randomized(FUSED[case]())
    fused = fuse(model)
    flat = {kind for layer in fused._flatten_layers() for kind in [type(layer).__name__]}
    assert flat & {"UpsampledConv2D", "FusedBatchNormalization"}
    assert_close(everything(fused, model), everything(model, model))


def frozen() -> layers.Layer:
    layer = layers.BatchNormalization()
    layer.trainable = False
    return layer


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.dense(x)


ALONE: dict[str, Callable[[], keras.Model]] = {
    "bilinear upsampling": lambda: stack(
        layers.UpSampling2D(2, interpolation="bilinear"), layers.Conv2D(3, 3, padding="same")
    ),
    "tripled": lambda: stack(layers.UpSampling2D(3), layers.Conv2D(3, 3, padding="same")),
    "no padding": lambda: stack(upsampling(), layers.Conv2D(3, 3)),
    "a larger kernel": lambda: stack(upsampling(), layers.Conv2D(3, 5, padding="same")),
    "cut and padded with zeros": lambda: stack(
        upsampling(), layers.Cropping2D(((0, 1), (0, 1))), layers.ZeroPadding2D(1), layers.Conv2D(3, 3)
    ),
    "cut twice": lambda: stack(
        upsampling(), layers.Cropping2D(((0, 1), (0, 0))), layers.Cropping2D(((0, 1), (0, 0))),
        networks.ReplicationPadding2D(), layers.Conv2D(3, 3),
    ),
    "normalized over rows": lambda: stack(layers.BatchNormalization(axis=1)),
    "not scaled": lambda: stack(layers.BatchNormalization(scale=False)),
    "of vectors": lambda: stack(layers.BatchNormalization(), shape=(7,)),
    "an activity regularizer": lambda: stack(
        upsampling(), layers.Conv2D(3, 3, padding="same", activity_regularizer=keras.regularizers.L2(0.1))
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ALONE)
def test_what_is_something_else_is_left_alone(case: str) -> None:
    model = randomized(ALONE[case]())
    fused = fuse(model)
    assert kinds(fused) == kinds(model)
    assert_close(everything(fused, model), everything(model, model))


def test_frozen_normalization_stays_frozen() -> None:
    """As Keras does: what it would do in evaluation, and its statistics do not move."""
    model = randomized(stack(frozen(), layers.Conv2D(2, 1)))
    before = [np.array(weight) for weight in model.weights]
    assert_close(everything(fuse(model), model), everything(model, model))
    fuse(model)(inputs_of(model), training=True)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_subclassed_models_are_returned_as_they_are() -> None:
    model = Subclassed()
    assert fuse(model) is model


@pytest.mark.parametrize("network", ["dfc", "resnet"])
def test_mixed_precision_is_no_less_exact(network: str) -> None:
    """Against float32, the fused network is no further off than the plain one; its matrix products among the rest."""
    for role in (0, 1):
        exact = randomized(networks.build(network, (32, 32, 3), 16, "float32", {"width": 16})[role])
        mixed = randomized(networks.build(network, (32, 32, 3), 16, "mixed_bfloat16", {"width": 16})[role])
        expected = everything(exact, exact)
        errors = [
            np.array(
                [
                    np.linalg.norm(one - other) / max(np.linalg.norm(other), 1e-3)
                    for one, other in zip(found, expected, strict=True)
                ]
            )
            for found in (everything(fuse(mixed), mixed), everything(mixed, mixed))
        ]
        assert errors[0].mean() < 1.2 * errors[1].mean() + 1e-3
        assert errors[0].max() < 1.5 * errors[1].max() + 1e-2


def test_matrix_products_equal_the_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, where nothing is rounded away that could hide a slip."""
    encoder, decoder = networks.build("dfc", (64, 64, 3), 8, "float32", {"width": 8})
    monkeypatch.setattr(fusion, "_as_matrix", lambda dtype, places, most: places <= most)
    for model in (encoder, decoder):
        randomized(model)
        assert_close(everything(fuse(model), model), everything(model, model))
    assert "HalvedConv2D" in kinds(fuse(encoder))


# Whole steps -----------------------------------------------------------------------------------


def straightforward_step(vae: VAE, images: np.ndarray, learning_rate: float) -> tuple[float, list[np.ndarray]]:
    """The paper's equations in plain operations, and one step of gradient descent."""
    with tf.GradientTape() as tape:
        parameters = vae.encoder(images, training=True)
        mean, log_var = parameters["mean"], parameters["log_var"]
        noise = keras.random.normal(mean.shape, seed=keras.random.SeedGenerator(vae.seed))
        decoded = vae.decoder(mean + tf.exp(0.5 * log_var) * noise, training=True)
        kl = 0.5 * tf.reduce_sum(tf.exp(log_var) + mean**2 - 1 - log_var, 1)
        loss = tf.reduce_mean(kl)
        if vae.pixel_weight:
            loss += tf.reduce_mean(-vae.likelihood.log_prob(images, decoded, training=True))
        if vae.perceptual is not None:
            for target, feature in zip(vae.perceptual.features(images), vae.perceptual.features(decoded), strict=True):
                loss += 0.5 * 0.5 * tf.reduce_mean(tf.square(feature - tf.stop_gradient(target)))
    weights = vae.trainable_weights
    gradients = tape.gradient(loss, weights)
    return float(loss), [np.array(w) - learning_rate * np.array(g) for w, g in zip(weights, gradients, strict=True)]


@pytest.mark.parametrize("objective", ["plain", "vae-123", "vae-345"])
def test_a_step_is_the_straightforward_one(images: np.ndarray, objective: str) -> None:
    settings = {**OBJECTIVES[objective], "network_options": {"width": 8}, "latent_dim": 6, "seed": 3}
    if objective != "plain":
        settings["perceptual"] = "hed-vgg16"
    x = images[:8]
    rate = 1e-3
    keras.utils.set_random_seed(0)
    vae = VAE((32, 32, 3), **settings)
    vae.load_perceptual()
    # Where an image is flat, rounding decides which of equal pixels max pooling passes on, and where the gradient goes.
    randomized(vae.decoder)
    start = [np.array(weight) for weight in vae.encoder.weights + vae.decoder.weights]
    loss, expected = straightforward_step(vae, x, rate)
    for weight, value in zip(vae.encoder.weights + vae.decoder.weights, start, strict=True):
        weight.assign(value)
    vae.compile(keras.optimizers.SGD(rate))
    logs = vae.fit(x, batch_size=8, shuffle=False, verbose=0).history
    assert logs["loss"][0] == pytest.approx(loss, rel=1e-5)
    moved = dict(zip((id(each) for each in vae.encoder.weights + vae.decoder.weights), start, strict=True))
    for weight, value in zip(vae.trainable_weights, expected, strict=True):
        step = np.abs(value - moved[id(weight)]).max()
        np.testing.assert_allclose(np.array(weight), value, rtol=0, atol=1e-4 * step + 1e-7)


# The perceptual distance -----------------------------------------------------------------------


def own_network() -> keras.Model:
    x = inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="one")(x)
    x = layers.MaxPooling2D(name="pooled")(x)
    x = skip = layers.Conv2D(5, 3, padding="same", activation="relu", name="two")(x)
    x = layers.Conv2D(5, 3, padding="same", activation="gelu", name="three")(x)
    x = layers.Add(name="four")([x, skip])
    x = layers.MaxPooling2D(2, padding="same")(x)
    return keras.Model(inputs, layers.Conv2D(3, 1, name="five")(x))


def unit_length(features: tf.Tensor) -> tf.Tensor:
    return features * tf.math.rsqrt(tf.reduce_sum(features**2, -1, keepdims=True) + 1e-6)


def comparisons() -> dict[str, Callable[[], PerceptualLoss]]:
    own = [("one", "two"), ("pooled", "three"), ("two", "four", "five"), ("five",)]
    hed = ("vae-123", "vae-345", "vae-12345")
    return {
        **{preset: lambda preset=preset: PerceptualLoss("hed-vgg16", preset) for preset in hed},
        "normalized": lambda: PerceptualLoss("hed-vgg16", normalize=True),
        **{
            " ".join(names): lambda names=names: PerceptualLoss(
                randomized(own_network(), 3), names, preprocessing="0..1"
            )
            for names in own
        },
    }  # fmt: skip


@pytest.mark.parametrize("case", comparisons())
@pytest.mark.parametrize("batch", [1, 5])
def test_distances_and_their_gradient_are_the_straightforward_ones(images: np.ndarray, case: str, batch: int) -> None:
    perceptual = comparisons()[case]()
    real, decoded = tf.constant(images[:batch]), tf.constant(images[batch : 2 * batch])
    scale = tf.constant(np.random.default_rng(0).uniform(1, 2, (batch, len(perceptual.keras_layers))), tf.float32)
    targets = perceptual.targets(real)
    found = []
    for straightforward in (False, True):
        with tf.GradientTape() as tape:
            tape.watch(decoded)
            if straightforward:
                pairs = zip(targets, perceptual.features(decoded), strict=True)
                if perceptual.normalize:
                    pairs = [[unit_length(each) for each in pair] for pair in pairs]
                distances = tf.stack([0.5 * tf.reduce_mean((one - two) ** 2, (1, 2, 3)) for one, two in pairs], 1)
            else:
                distances = perceptual.distances(targets, decoded)
            total = tf.reduce_sum(distances * scale)
        found.append([np.array(distances), np.array(tape.gradient(total, decoded))])
    assert found[0][0].shape == (batch, len(perceptual.keras_layers))
    assert_close(*found, tolerance=1e-4)


def test_distances_in_bfloat16_are_summed_in_float32(images: np.ndarray) -> None:
    """Of features as they are, rounded, the distance is exact."""
    perceptual = PerceptualLoss("hed-vgg16").load("mixed_bfloat16")
    targets, features = perceptual.targets(images[:4]), perceptual.features(images[4:8])
    assert targets[0].dtype == "bfloat16"
    distances = perceptual.distances(targets, images[4:8])
    assert distances.dtype == "float32"
    expected = [
        0.5 * np.mean((np.array(one, np.float64) - np.array(two, np.float64)) ** 2, axis=(1, 2, 3))
        for one, two in zip(targets, features, strict=True)
    ]
    np.testing.assert_allclose(distances, np.stack(expected, 1), rtol=2e-2)
