"""The layers compute what the straightforward code does: values, gradients, statistics, at every border."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_vae import OBJECTIVES, VAE, networks
from keras_vae.networks.layers import BatchNormalization, HalvingConv2D, UpsampledConv2D
from keras_vae.support import replicas

Shape = tuple[int, ...]


class Written(layers.Layer):
    """`UpsampledConv2D` as the paper writes it, of Keras's own layers at the high resolution."""

    def __init__(self, block: UpsampledConv2D) -> None:
        super().__init__(dtype=block.dtype_policy, name=block.name)
        options: dict[str, Any] = {"dtype": block.dtype_policy}
        pad = networks.ReplicationPadding2D if block.padding == "edge" else layers.ZeroPadding2D
        self.steps = [
            layers.UpSampling2D(2, **options),
            layers.Cropping2D(tuple((0, crop) for crop in block.crop), **options),
            pad(**options),
            layers.Conv2D(block.filters, 3, use_bias=block.normalization is None, **options),
        ]
        if block.normalization is not None:
            self.steps.append(plain_normalization(block.normalization))

    def build(self, input_shape: Shape) -> None:
        for step in self.steps:
            step.build(input_shape)
            input_shape = step.compute_output_shape(input_shape)

    def call(self, images: Any, training: bool = False) -> Any:
        for step in self.steps:
            is_normalization = isinstance(step, layers.BatchNormalization)
            images = step(images, training=training) if is_normalization else step(images)
        return images


def plain_normalization(norm: BatchNormalization) -> layers.BatchNormalization:
    plain = layers.BatchNormalization.from_config(norm.get_config())
    plain.trainable = norm.trainable
    return plain


def written(model: keras.Model) -> keras.Model:
    """The same model, with the same weights, of Keras's own layers."""

    def clone(layer: layers.Layer) -> layers.Layer:
        if isinstance(layer, UpsampledConv2D):
            return Written(layer)
        if isinstance(layer, BatchNormalization):
            return plain_normalization(layer)
        if isinstance(layer, HalvingConv2D):
            return layers.Conv2D(layer.filters, 4, 2, "same", use_bias=False, dtype=layer.dtype_policy, name=layer.name)
        return type(layer).from_config(layer.get_config())

    copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy


def randomized(model: keras.Model, seed: int = 0) -> keras.Model:
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        positive = "variance" in weight.path
        weight.assign(rng.uniform(0.5, 2.0, weight.shape) if positive else rng.normal(0, 0.2, weight.shape))
    return model


def stack(*parts: Any, shape: Shape = (5, 6, 4)) -> keras.Model:
    x = inputs = keras.Input(shape)
    for part in parts:
        x = part(x)
    return randomized(keras.Model(inputs, x))


def inputs_of(model: keras.Model, batch: int = 6) -> tf.Tensor:
    return tf.constant(np.random.default_rng(1).standard_normal((batch, *model.input_shape[1:])), tf.float32)


def everything(model: keras.Model, training: bool = True, graph: bool = True) -> list[np.ndarray]:
    """Outputs, gradients to inputs and weights, and statistics afterwards; weights are then what they were.

    In a graph, as models are trained, or operation by operation: a graph of each small model takes longest by far.
    """
    before = model.get_weights()
    x = inputs_of(model)

    def run(x: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = [tf.cast(each, tf.float32) for each in tf.nest.flatten(model(x, training=training))]
            total = tf.add_n([tf.reduce_sum(tf.sin(each)) for each in outputs])
        return outputs, tape.gradient(total, [x, *model.trainable_weights])

    outputs, gradients = (tf.function(run) if graph else run)(x)
    statistics = [np.array(weight) for weight in model.non_trainable_weights]
    model.set_weights(before)
    return [np.array(each) for each in (*outputs, *gradients, *statistics)]


def expected_of(model: keras.Model, training: bool = True) -> list[np.ndarray]:
    """The same of Keras's own layers, which are no other in a graph."""
    return everything(written(model), training, graph=False)


def assert_close(found: list[np.ndarray], expected: list[np.ndarray], tolerance: float = 1e-4) -> None:
    """As close as float32 allows. Gradients that cancel out, a bias's before normalization, are rounding alone."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(np.abs(other).max(), 1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("network", "shape"),
    [
        *(("dfc", shape) for shape in ((16, 16, 3), (17, 30, 1), (48, 32, 3))),
        *(("resnet", shape) for shape in ((16, 16, 3), (48, 32, 3))),
        pytest.param("resnet", (17, 30, 1), marks=pytest.mark.slow),  # cut as those of `dfc` are
    ],
)
def test_families_compute_the_same(network: str, shape: tuple[int, int, int], training: bool) -> None:
    """At every border: 16 pixels leave one place at the lowest resolution, odd sides are cut."""
    for model in networks.build(network, shape, 5, "float32", {"width": 8}):
        randomized(model)
        assert_close(everything(model, training), expected_of(model, training))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("padding", ["edge", "zero"])
def test_upsampling_and_convolution_are_one(padding: str, normalized: bool, training: bool) -> None:
    """Each crop, each size from a single place on."""
    for crop in itertools.product((0, 1), repeat=2):
        for shape in ((1, 1, 2), (1, 3, 2), (2, 5, 3)):
            model = stack(UpsampledConv2D(3, padding, crop, normalized), shape=shape)
            plain = written(model)
            assert model.output_shape == plain.output_shape
            # One size of each crop in a graph.
            found = everything(model, training, graph=shape == (2, 5, 3))
            assert_close(found, everything(plain, training, graph=False))


def test_blocks_one_after_the_other_and_within_another_model() -> None:
    inner = stack(UpsampledConv2D(4, normalized=True), layers.LeakyReLU(), UpsampledConv2D(2, "zero"))
    model, plain = stack(inner, layers.LeakyReLU()), stack(written(inner), layers.LeakyReLU())
    plain.set_weights(model.get_weights())
    assert_close(everything(model), everything(plain, graph=False))


def test_normalization_is_keras_s() -> None:
    model = stack(BatchNormalization(momentum=0.7, epsilon=0.01))
    assert_close(everything(model), expected_of(model))
    assert_close(everything(model, training=False), expected_of(model, training=False))


def test_float64_is_computed_in_float64() -> None:
    wide = stack(
        UpsampledConv2D(3, "edge", (1, 0), normalized=True, dtype="float64"), BatchNormalization(dtype="float64")
    )
    assert wide.output.dtype == "float64"
    assert_close(everything(wide), expected_of(wide), 1e-5)


@pytest.mark.parametrize("block", [lambda: BatchNormalization(), lambda: UpsampledConv2D(3, normalized=True)])
def test_frozen_normalization_stays_frozen(block: Any) -> None:
    """As Keras does: what it would do in evaluation, and its statistics do not move."""
    layer = block()
    getattr(layer, "normalization", layer).trainable = False
    model = stack(layer, layers.Conv2D(2, 1))
    before = model.get_weights()
    assert_close(everything(model), expected_of(model))
    model(inputs_of(model), training=True)
    for weight, value in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)


@pytest.mark.parametrize("network", ["dfc", pytest.param("resnet", marks=pytest.mark.slow)])
def test_mixed_precision_is_no_less_exact(network: str) -> None:
    """Against float32, the layers are no further off than the plain ones; their matrix products among the rest."""
    for role, training in itertools.product((0, 1), (True, False)):
        exact = randomized(networks.build(network, (32, 32, 3), 16, "float32", {"width": 16})[role])
        mixed = randomized(networks.build(network, (32, 32, 3), 16, "mixed_bfloat16", {"width": 16})[role])
        expected = expected_of(exact, training)
        errors = [
            np.array(
                [
                    np.linalg.norm(one - other) / max(np.linalg.norm(other), 1e-3)
                    for one, other in zip(everything(model, training), expected, strict=True)
                ]
            )
            for model in (mixed, written(mixed))
        ]
        assert errors[0].mean() < 1.2 * errors[1].mean() + 1e-3
        assert errors[0].max() < 1.5 * errors[1].max() + 1e-2


def test_matrix_products_equal_the_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, where nothing is rounded away that could hide a slip."""
    monkeypatch.setattr("keras_vae.networks.layers.as_matrix", lambda images, places, most: places <= most)
    for model in networks.build("dfc", (64, 64, 3), 8, "float32", {"width": 8}):
        randomized(model)
        assert_close(everything(model), expected_of(model))


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_blocks_are_saved_and_made_again(policy: str, tmp_path: Path) -> None:
    model = stack(
        HalvingConv2D(4, dtype=policy),
        UpsampledConv2D(3, "edge", (1, 0), normalized=True, dtype=policy),
        BatchNormalization(0.5, dtype=policy),
        UpsampledConv2D(2, "zero", (0, 1), dtype=policy),
    )
    model.save(tmp_path / "blocks.keras")
    loaded = keras.saving.load_model(tmp_path / "blocks.keras")
    assert [layer.compute_dtype for layer in loaded.layers] == [layer.compute_dtype for layer in model.layers]
    x = inputs_of(model)
    np.testing.assert_array_equal(loaded(x), model(x))
    assert loaded.layers[2].normalization.momentum == 0.9
    assert loaded.layers[3].momentum == 0.5


@pytest.mark.parametrize(("padding", "crop"), [("same", (0, 0)), ("edge", (2, 0)), ("zero", (0, 0, 0))])
def test_other_paddings_and_crops_are_refused(padding: str, crop: Any) -> None:
    with pytest.raises(ValueError, match="padding="):
        UpsampledConv2D(3, padding, crop)


# Whole steps -----------------------------------------------------------------------------------


def straightforward_step(vae: VAE, images: np.ndarray, learning_rate: float) -> tuple[float, list[np.ndarray]]:
    """The paper's equations in plain operations, and one step of gradient descent."""
    encoder, decoder = written(vae.encoder), written(vae.decoder)
    with tf.GradientTape() as tape:
        parameters = encoder(images, training=True)
        mean, log_var = parameters["mean"], parameters["log_var"]
        noise = replicas.NoiseByPlace(vae.seed, stream=1).draw(mean.shape)
        decoded = decoder(mean + tf.exp(0.5 * log_var) * noise, training=True)
        kl = 0.5 * tf.reduce_sum(tf.exp(log_var) + mean**2 - 1 - log_var, 1)
        loss = tf.reduce_mean(kl)
        if vae.pixel_weight:
            loss += tf.reduce_mean(-vae.likelihood.log_prob(images, decoded, training=True))
        if vae.perceptual is not None:
            for target, feature in zip(vae.perceptual.features(images), vae.perceptual.features(decoded), strict=True):
                loss += 0.5 * 0.5 * tf.reduce_mean(tf.square(feature - tf.stop_gradient(target)))
    weights = [*encoder.trainable_weights, *decoder.trainable_weights]
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
    vae.compile(keras.optimizers.SGD(rate))
    logs = vae.fit(x, batch_size=8, shuffle=False, verbose=0).history
    assert logs["loss"][0] == pytest.approx(loss, rel=1e-5)
    moved = dict(zip((id(each) for each in vae.encoder.weights + vae.decoder.weights), start, strict=True))
    for weight, value in zip(vae.trainable_weights, expected, strict=True):
        step = np.abs(value - moved[id(weight)]).max()
        np.testing.assert_allclose(np.array(weight), value, rtol=0, atol=1e-4 * step + 1e-7)
