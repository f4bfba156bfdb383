"""Textures: the sliced Wasserstein distance, and the terms that `PerceptualLoss` and `VAE` make of it."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from keras_vae import VAE, InputError, PerceptualLoss
from keras_vae.features import textures


def features(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shuffled(images: np.ndarray) -> np.ndarray:
    """The same features in other places."""
    count, height, width, channels = images.shape
    places = np.random.default_rng(1).permutation(height * width)
    return images.reshape(count, height * width, channels)[:, places].reshape(images.shape)


def own_network() -> keras.Model:
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="early")(inputs)
    x = layers.Conv2D(6, 3, strides=2, padding="same", activation="gelu", name="late")(x)
    return keras.Model(inputs, layers.Dense(2, name="head")(layers.GlobalAveragePooling2D()(x)))


def test_it_is_the_mean_over_directions_of_the_squared_wasserstein_distance() -> None:
    one, two = features(0, 3, 4, 5, 7), features(1, 3, 4, 5, 7) * 2 + 1
    along = textures.directions(7)
    np.testing.assert_allclose(along.T @ along, np.eye(7), atol=1e-6)
    expected = []
    for each, other in zip(one.reshape(3, 20, 7), two.reshape(3, 20, 7), strict=True):
        pairs = zip((each @ along).T, (other @ along).T, strict=True)
        expected.append(0.5 * np.mean([np.mean((np.sort(a) - np.sort(b)) ** 2) for a, b in pairs]))
    np.testing.assert_allclose(textures.distance(one, two), expected, rtol=1e-5)
    np.testing.assert_allclose(textures.distance(two, one), expected, rtol=1e-5)


def test_of_normal_features_it_is_what_mathematics_gives() -> None:
    """Between N(0, 1) and N(m, s^2) the squared distance is m^2 + (s - 1)^2; here along one axis, the only one."""
    quantiles = scipy.stats.norm.ppf((np.arange(4096) + 0.5) / 4096).astype(np.float32)
    one, two = quantiles.reshape(1, 64, 64, 1), (3 * quantiles[::-1] + 2).reshape(1, 64, 64, 1)
    assert float(textures.distance(one, two)[0]) == pytest.approx(0.5 * (2**2 + 2**2), rel=1e-2)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 99), channels=st.integers(1, 40), height=st.integers(1, 6), width=st.integers(1, 6))
def test_places_do_not_matter_and_the_same_places_are_an_upper_bound(
    seed: int, channels: int, height: int, width: int
) -> None:
    one, two = (features(seed + each, 2, height, width, channels) for each in (0, 100))
    assert textures.directions(channels).shape == (channels, min(channels, textures.DIRECTIONS))
    np.testing.assert_allclose(textures.distance(one, shuffled(one)), 0, atol=1e-8)
    found = textures.distance(one, two).numpy()
    np.testing.assert_allclose(found, textures.distance(shuffled(one), two), rtol=1e-4)
    along = textures.directions(channels)
    bound = 0.5 * np.mean(((one - two) @ along) ** 2, axis=(1, 2, 3))
    assert (found <= bound * 1.0001).all()


def test_the_gradient_is_the_numerical_one_and_goes_to_the_features_alone() -> None:
    one, two = tf.constant(features(0, 2, 3, 3, 4)), tf.constant(features(1, 2, 3, 3, 4))
    with tf.GradientTape() as tape:
        tape.watch([one, two])
        distance = textures.distance(one, two)
    to_target, to_features = tape.gradient(distance, [one, two])
    assert to_target is None
    step = features(2, 2, 3, 3, 4) * 1e-3
    change = textures.distance(one, two + step) - textures.distance(one, two - step)
    np.testing.assert_allclose(change / 2, np.sum(to_features * step, axis=(1, 2, 3)), rtol=1e-2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_features_of_low_precision_are_compared_in_float32(dtype: str) -> None:
    """Squares of features of hundreds are beyond float16."""
    one, two = (tf.cast(600 * features(seed, 2, 8, 8, 32), dtype) for seed in (0, 1))
    found = textures.distance(one, two)
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, textures.distance(tf.cast(one, "float32"), tf.cast(two, "float32")), rtol=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
def test_an_empty_batch_has_no_distance(compiled: bool) -> None:
    empty = tf.zeros((0, 4, 4, 3))
    assert tf.function(textures.distance, jit_compile=compiled)(empty, empty).shape == (0,)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("network", ["hed-vgg16", "own"])
def test_terms_of_a_perceptual_loss(network: str, normalize: bool, images: np.ndarray) -> None:
    """A layer that is compared by place too, and one that is not."""
    images, own = images[:4, :16, :16], network == "own"
    layer, both = ("late", ("early", "late")) if own else ("relu2_1", ("relu1_1", "relu2_1"))
    given_network = own_network() if own else network
    preprocessing = "0..1" if own else None
    plain = PerceptualLoss(given_network, layer, preprocessing=preprocessing, normalize=normalize)
    loss = PerceptualLoss(given_network, layer, preprocessing=preprocessing, normalize=normalize, texture_layers=both)
    targets = loss.targets(images[:2])
    found = loss.distances(targets, images[2:])
    assert found.shape == (2, 3) == (2, len(loss.terms))
    np.testing.assert_allclose(found[:, 0], plain(images[:2], images[2:]), rtol=1e-4)
    alone = PerceptualLoss(given_network, both, preprocessing=preprocessing)
    for column, (one, two) in enumerate(
        zip(alone.features(images[:2]), alone.features(images[2:]), strict=True), start=1
    ):
        if normalize:
            one, two = (each / np.sqrt(np.sum(np.square(each), -1, keepdims=True) + 1e-6) for each in (one, two))
        np.testing.assert_allclose(found[:, column], textures.distance(one, two), rtol=1e-3)
    sizes = {name: int(np.prod(target.shape[1:])) for name, target in zip(loss._layers_read, targets, strict=True)}
    assert loss.sizes(targets)[0] == sizes[loss.keras_layers[0]]
    assert loss.sizes(targets)[1:] == (
        [16 * 16 * 4, 8 * 8 * 6] if own else [16 * 16 * textures.DIRECTIONS, 8 * 8 * textures.DIRECTIONS]
    )
    np.testing.assert_allclose(loss(images[:2], images[:2]), 0, atol=1e-6)


@pytest.mark.parametrize("weight", ["calibrated", (1.0, 0.5)])
def test_a_model_trains_with_textures_and_remembers_them(weight: object, images: np.ndarray, tmp_path: Path) -> None:
    options = {"perceptual": "hed-vgg16", "perceptual_layers": "relu1_1", "perceptual_weight": weight, "seed": 0}
    vae = VAE((32, 32, 3), 4, texture_layers=["relu2_1"], **options)
    vae.compile(keras.optimizers.Adam(1e-3))
    history = vae.fit(images[:32], epochs=4, batch_size=16, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    vae.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras")
    assert loaded.perceptual.texture_layers == ("relu2_1",)
    assert loaded.perceptual.terms == vae.perceptual.terms
    found = vae.evaluate(images[:8], verbose=0, return_dict=True)
    assert loaded.evaluate(images[:8], verbose=0, return_dict=True) == pytest.approx(found, rel=1e-5)
    # Of these very images, without noise, the term is what the distances say.
    terms, _ = vae.objective(images[:8], tf.zeros((8, 4)), training=False)
    decoded = vae.predict(images[:8], verbose=0)
    distances = np.array(vae.perceptual.distances(vae.perceptual.targets(images[:8]), decoded))
    expected = distances @ [1.0, 0.5]
    if weight == "calibrated":
        variances = np.array(vae.feature_term.variances.value)
        nats = 0.5 * (2 * distances / variances + np.log(2 * np.pi * variances))
        expected = nats @ [32 * 32 * 64, 16 * 16 * textures.DIRECTIONS]
    np.testing.assert_allclose(terms["perceptual"], expected, rtol=1e-4)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_decoder_learns_from_textures(jit_compile: bool, images: np.ndarray) -> None:
    """With a weight of zero for the layer, no pixels and no KL, they are all that there is."""
    loss = PerceptualLoss(own_network(), "early", preprocessing="0..1", texture_layers="late")
    vae = VAE((16, 16, 3), 4, perceptual=loss, perceptual_weight=(0.0, 1.0), pixel_weight=0.0, beta=0.0, seed=0)
    vae.compile(keras.optimizers.Adam(3e-3), jit_compile=jit_compile)
    images = images[:16, ::2, ::2]

    def texture() -> float:
        distances = loss.distances(loss.targets(images), vae.predict(images, verbose=0))
        return float(distances.numpy()[:, 1].mean())

    before = texture()
    vae.fit(images, epochs=30, batch_size=16, verbose=0)
    assert texture() < 0.7 * before


def test_a_feature_network_of_ones_own_is_given_again_with_its_textures(images: np.ndarray, tmp_path: Path) -> None:
    images, network = images[:8, ::2, ::2], own_network()
    vae = VAE(
        (16, 16, 3), 4, perceptual=PerceptualLoss(network, "early", preprocessing="0..1", texture_layers="late"), seed=0
    )
    vae.compile()
    figures = vae.evaluate(images, verbose=0)
    vae.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras")
    with pytest.raises(InputError, match=r"PerceptualLoss\(network, \['early'\], ..., texture_layers=\['late'\]\)"):
        loaded.evaluate(images, verbose=0)
    loaded.perceptual = PerceptualLoss(network, "early", preprocessing="0..1")
    with pytest.raises(InputError, match="compares early, and this model was made for 2 terms: give it the layers"):
        loaded.evaluate(images, verbose=0)
    loaded.perceptual = PerceptualLoss(network, "early", preprocessing="0..1", texture_layers="late")
    assert loaded.evaluate(images, verbose=0) == pytest.approx(figures, rel=1e-5)


def test_files_of_before_textures_are_read() -> None:
    config = PerceptualLoss("hed-vgg16", "vae-123").get_config()
    assert config.pop("texture_layers") == []
    assert PerceptualLoss.from_config(config).terms == PerceptualLoss("hed-vgg16", "vae-123").terms


@pytest.mark.parametrize("none", [None, "none", ()])
def test_no_textures(none: object) -> None:
    assert PerceptualLoss("hed-vgg16", "vae-123", texture_layers=none).counts == (3, 0)
    assert VAE((16, 16, 3), 4, perceptual=None, texture_layers=none).perceptual is None


@pytest.mark.parametrize("perceptual", [None, "none", "object"])
def test_textures_need_the_name_of_a_network(perceptual: str | None) -> None:
    given_network = (
        PerceptualLoss(own_network(), "early", preprocessing="0..1") if perceptual == "object" else perceptual
    )
    with pytest.raises(InputError, match=r"texture_layers=\['relu2_1'\]: name a feature network too"):
        VAE((16, 16, 3), 4, perceptual=given_network, texture_layers=["relu2_1"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "hed-vgg16", "texture_layers": "relu9_9"}, "unknown texture layers 'relu9_9'"),
        ({"network": "hed-vgg16", "texture_layers": ""}, "texture_layers='': a name is empty"),
        (
            {"network": "own", "texture_layers": ["late", ""]},
            "a name is empty; name layers such as relu2_1, or give none",
        ),
        ({"network": "hed-vgg16", "texture_layers": False}, "texture_layers=False: give names of layers"),
        ({"network": "hed-vgg16", "texture_layers": 3}, "texture_layers=3: give names of layers"),
        ({"network": "hed-vgg16", "texture_layers": ["relu9_9"]}, "unknown layer 'relu9_9'"),
        ({"network": "own", "texture_layers": ["lat"]}, "has no layer 'lat': try late"),
        ({"network": "own", "texture_layers": ["head"]}, "texture layer 'head' of a Keras model has no places"),
    ],
)
def test_layers_without_textures_are_refused(arguments: dict[str, object], message: str) -> None:
    own = arguments["network"] == "own"
    network = own_network() if own else arguments["network"]
    with pytest.raises(InputError, match=message):
        PerceptualLoss(
            network,
            "early" if own else "vae-123",
            preprocessing="0..1" if own else None,
            texture_layers=arguments["texture_layers"],
        )


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (False, "^layers=False: give names of layers"),
        (("relu1_1", ""), "^layers=.*: a name is empty; name layers such as relu2_1$"),
    ],
)
def test_layers_that_are_no_names_are_refused(layers: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PerceptualLoss("hed-vgg16", layers)


def test_texture_layers_are_taken_once_and_from_arrays() -> None:
    twice = PerceptualLoss("hed-vgg16", "vae-123", texture_layers=np.array(["relu2_1", "relu3_1", "relu2_1"]))
    assert twice.texture_layers == ("relu2_1", "relu3_1")
    assert twice.counts == (3, 2)


def test_a_weight_for_each_term() -> None:
    with pytest.raises(
        InputError,
        match="3 numbers for 3 layers and 2 texture layers: give a number, one number a layer and then texture layer",
    ):
        VAE((32, 32, 3), 4, perceptual="hed-vgg16", texture_layers=("relu2_1", "relu3_1"), perceptual_weight=(1, 1, 1))
