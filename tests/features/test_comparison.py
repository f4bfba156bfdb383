"""The perceptual distance in few passes is the straightforward one: values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_vae import PerceptualLoss
from keras_vae.features import textures


def randomized(model: keras.Model) -> keras.Model:
    rng = np.random.default_rng(3)
    for weight in model.weights:
        weight.assign(rng.normal(0, 0.2, weight.shape))
    return model


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


def textured(perceptual: PerceptualLoss, targets: list[tf.Tensor], decoded: tf.Tensor) -> list[tuple[Any, Any]]:
    """Features of texture layers, of the targets and of decoded images."""
    named = dict(zip(perceptual._layers_read, targets, strict=True))
    outputs = perceptual._outputs(decoded)
    return [(named[name], outputs[name]) for name in perceptual.keras_texture_layers]


def comparisons() -> dict[str, Callable[[], PerceptualLoss]]:
    own = [("one", "two"), ("pooled", "three"), ("two", "four", "five"), ("five",)]
    hed = ("vae-123", "vae-345", "vae-12345")
    layers_of = {"layers": ("relu1_1", "relu2_1"), "texture_layers": ("relu1_2", "relu2_1", "relu3_1")}
    return {
        "textures": lambda: PerceptualLoss("hed-vgg16", **layers_of),
        "textures of an own network": lambda: PerceptualLoss(
            randomized(own_network()), ("two",), preprocessing="0..1", texture_layers=("one", "two")
        ),
        **{preset: lambda preset=preset: PerceptualLoss("hed-vgg16", preset) for preset in hed},
        "normalized": lambda: PerceptualLoss("hed-vgg16", normalize=True),
        **{
            " ".join(names): lambda names=names: PerceptualLoss(
                randomized(own_network()), names, preprocessing="0..1"
            )
            for names in own
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("batch", "case"),
    [
        # `vae-12345` has the layers of the other presets; a single image is a batch like others.
        pytest.param(batch, case, marks=pytest.mark.slow)
        if case in ("vae-123", "vae-345") or (batch == 1 and case != "two four five")
        else (batch, case)
        for batch in (1, 5)
        for case in comparisons()
    ],
)
def test_distances_and_their_gradient_are_the_straightforward_ones(images: np.ndarray, case: str, batch: int) -> None:
    perceptual = comparisons()[case]()
    real, decoded = tf.constant(images[:batch]), tf.constant(images[batch : 2 * batch])
    scale = tf.constant(np.random.default_rng(0).uniform(1, 2, (batch, len(perceptual.terms))), tf.float32)
    targets = perceptual.targets(real)
    found = []
    for straightforward in (False, True):
        with tf.GradientTape() as tape:
            tape.watch(decoded)
            if straightforward:
                pairs = zip(targets[: len(perceptual.keras_layers)], perceptual.features(decoded), strict=True)
                if perceptual.normalize:
                    pairs = [[unit_length(each) for each in pair] for pair in pairs]
                columns = [0.5 * tf.reduce_mean((one - two) ** 2, (1, 2, 3)) for one, two in pairs]
                columns += [textures.distance(*pair) for pair in textured(perceptual, targets, decoded)]
                distances = tf.stack(columns, 1)
            else:
                distances = perceptual.distances(targets, decoded)
            total = tf.reduce_sum(distances * scale)
        found.append([np.array(distances), np.array(tape.gradient(total, decoded))])
    assert found[0][0].shape == (batch, len(perceptual.terms))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * max(np.abs(other).max(), 1))


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
