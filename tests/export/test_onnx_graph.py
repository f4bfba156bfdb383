"""ONNX files of decoders: the same function, in few operations, whoever wrote the decoder."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from browser import few_draws
from keras import layers, ops

from keras_vae import VAE
from keras_vae.export import export_decoder
from keras_vae.export.writers import onnx_graph
from keras_vae.networks import ReplicationPadding2D
from keras_vae.networks.layers import UpsampledConv2D, edge_padded


@pytest.fixture(scope="module", autouse=True)
def few() -> Iterator[None]:
    """A graph that is wrong differs for any latents, and there are many graphs here."""
    with few_draws():
        yield


def randomized(model: keras.Model) -> keras.Model:
    rng = np.random.default_rng(7)
    for weight in model.weights:
        positive = "variance" in weight.path
        weight.assign(rng.uniform(0.5, 2.0, weight.shape) if positive else rng.normal(0, 0.3, weight.shape))
    return model


def model(*stack: Any, shape: tuple[int, ...] = (5, 7, 3)) -> keras.Model:
    x = image = keras.Input(shape)
    for layer in stack:
        x = layer(x)
    return randomized(keras.Model(image, x))


def decoder_of(images: keras.Model) -> keras.Model:
    """A decoder around a model from images to images."""
    shape = images.input_shape[1:]
    z = keras.Input((3,))
    x = layers.LeakyReLU()(layers.Dense(int(np.prod(shape)))(z))
    return randomized(keras.Model(z, layers.Activation("sigmoid")(images(layers.Reshape(shape)(x)))))


def operations(path: Path) -> collections.Counter[str]:
    return collections.Counter(node.op_type for node in onnx.load(path).graph.node)


def roll(x: Any) -> Any:
    return ops.roll(x, 1, axis=1)


def replicated(*activations: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Upsampling, replication and convolution, again after each activation."""
    stack: list[keras.layers.Layer] = []
    for activation in (*activations, None):
        stack += [layers.UpSampling2D(), ReplicationPadding2D(), layers.Conv2D(4, 3)]
        stack += [activation] if activation is not None else []
    return stack


OWN: dict[str, Callable[[], keras.Model]] = {
    "zero padding": lambda: model(layers.UpSampling2D(), layers.Conv2D(4, 3, padding="same")),
    "a layer of zeros": lambda: model(layers.UpSampling2D(), layers.ZeroPadding2D(1), layers.Conv2D(4, 3)),
    "replication": lambda: model(layers.UpSampling2D(), ReplicationPadding2D(), layers.Conv2D(4, 3, use_bias=False)),
    "one row and column": lambda: model(layers.UpSampling2D(), layers.Conv2D(2, 3, padding="same"), shape=(1, 1, 2)),
    "activation": lambda: model(layers.UpSampling2D(), layers.Conv2D(4, 3, padding="same", activation="tanh")),
    "normalized": lambda: model(
        layers.UpSampling2D(), ReplicationPadding2D(), layers.Conv2D(4, 3), layers.BatchNormalization()
    ),
    "normalized without scale and centre": lambda: model(
        layers.UpSampling2D(), layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization(scale=False, center=False)
    ),
    "scaled": lambda: model(
        layers.UpSampling2D(), layers.Conv2D(3, 3, padding="same"), layers.Rescaling([0.1, 2.0, 3.0], -1.0)
    ),
    "odd, replication": lambda: model(
        layers.UpSampling2D(), layers.Cropping2D(((0, 1), (0, 1))), ReplicationPadding2D(), layers.Conv2D(4, 3)
    ),
    "twice": lambda: model(
        layers.UpSampling2D(),
        layers.Conv2D(4, 3, padding="same"),
        layers.BatchNormalization(),
        layers.LeakyReLU(),
        layers.UpSampling2D(),
        ReplicationPadding2D(),
        layers.Conv2D(2, 3),
    ),
    "replication three times": lambda: model(*replicated(layers.LeakyReLU(), layers.Activation("tanh"))),
    "zeros in between": lambda: model(
        *replicated(layers.ReLU()), layers.UpSampling2D(), layers.Conv2D(2, 3, padding="same"), *replicated()
    ),
    "odd in between": lambda: model(
        *replicated(layers.ReLU()),
        layers.UpSampling2D(),
        layers.Cropping2D(((0, 1), (0, 0))),
        *replicated(layers.ELU())[1:],
        *replicated(),
    ),
    "an activation that sees other pixels": lambda: model(*replicated(layers.Activation(roll), layers.LeakyReLU())),
    "that activation within": lambda: model(
        layers.UpSampling2D(), ReplicationPadding2D(), layers.Conv2D(3, 3, activation=roll), *replicated()
    ),
    "bilinear": lambda: model(layers.UpSampling2D(interpolation="bilinear"), layers.Conv2D(4, 3, padding="same")),
    "x3": lambda: model(layers.UpSampling2D(3), layers.Conv2D(4, 3, padding="same")),
    "5x5": lambda: model(layers.UpSampling2D(), layers.Conv2D(4, 5, padding="same")),
    "strides": lambda: model(layers.UpSampling2D(), layers.Conv2D(4, 3, 2, padding="same")),
    "dilated": lambda: model(layers.UpSampling2D(), layers.Conv2D(4, 3, dilation_rate=2, padding="same")),
    "no padding": lambda: model(layers.UpSampling2D(), layers.Conv2D(4, 3)),
    "odd, zeros": lambda: model(
        layers.UpSampling2D(), layers.Cropping2D(((0, 1), (0, 0))), layers.Conv2D(4, 3, padding="same")
    ),
    "wide padding": lambda: model(layers.UpSampling2D(), layers.ZeroPadding2D(2), layers.Conv2D(4, 3)),
}


class Padded(layers.Layer):
    """A layer that only looks like replication."""

    def call(self, x: Any) -> Any:
        return ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=1.0)


OWN["padding of another kind"] = lambda: model(layers.UpSampling2D(), Padded(), layers.Conv2D(4, 3))


@pytest.mark.parametrize("case", OWN)
def test_decoders_of_ones_own_are_exported_as_they_are(case: str, tmp_path: Path) -> None:
    decoder = decoder_of(OWN[case]())
    before = decoder.get_weights()
    report = export_decoder(decoder, tmp_path / "d.onnx", "onnx")
    assert report.passed
    assert report.pairs[0].mean_difference < 1e-6
    for one, other in zip(before, decoder.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_outputs_that_are_needed_twice_and_subclassed_decoders(tmp_path: Path) -> None:
    image = keras.Input((4, 4, 3))
    wide = layers.UpSampling2D()(image)
    conv = layers.Conv2D(3, 3, padding="same")(wide)
    normalized = layers.BatchNormalization()(conv)
    twice = decoder_of(keras.Model(image, layers.Add()([normalized, layers.Add()([conv, wide])])))
    for format, name in (("onnx", "d.onnx"), ("tf_saved_model", "1")):
        assert export_decoder(twice, tmp_path / name, format).passed


BLOCKS: dict[str, Callable[[], keras.Model]] = {
    "one row and column": lambda: model(UpsampledConv2D(2), UpsampledConv2D(2, "zero"), shape=(1, 1, 2)),
    "normalized": lambda: model(UpsampledConv2D(4, normalized=True), layers.Activation("tanh"), UpsampledConv2D(2)),
    "zeros in between": lambda: model(
        UpsampledConv2D(4), layers.ReLU(), UpsampledConv2D(2, "zero"), layers.ELU(), UpsampledConv2D(2)
    ),
    "odd in between": lambda: model(
        UpsampledConv2D(4), layers.ReLU(), UpsampledConv2D(3, "edge", (1, 0)), layers.ELU(), UpsampledConv2D(2)
    ),
    "odd, zeros": lambda: model(UpsampledConv2D(4, "zero", (0, 1), normalized=True), UpsampledConv2D(2)),
    "an activation that sees other pixels": lambda: model(
        UpsampledConv2D(4), layers.Activation(roll), UpsampledConv2D(2), layers.LeakyReLU(), UpsampledConv2D(2)
    ),
    "needed twice": lambda: needed_twice(),
}


def needed_twice() -> keras.Model:
    image = keras.Input((4, 4, 3))
    first = UpsampledConv2D(3)(image)
    second = UpsampledConv2D(2)(first)
    return randomized(keras.Model(image, layers.Concatenate()([second, layers.UpSampling2D()(first)])))


@pytest.mark.parametrize("format", ["onnx", "tf_saved_model"])
@pytest.mark.parametrize("case", BLOCKS)
def test_blocks_compute_the_same_when_exported(case: str, format: str, tmp_path: Path) -> None:
    report = export_decoder(decoder_of(BLOCKS[case]()), tmp_path / ("d.onnx" if format == "onnx" else "1"), format)
    assert report.passed
    assert report.pairs[0].mean_difference < 1e-6


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        ("dfc", (64, 64, 3)),
        ("dfc", (33, 47, 1)),
        ("dfc", (28, 28, 1)),
        ("resnet", (28, 28, 1)),
        pytest.param("resnet", (33, 47, 1), marks=pytest.mark.slow),
    ],
)
def test_decoders_of_the_families(network: str, shape: tuple[int, int, int], tmp_path: Path) -> None:
    decoder = randomized(VAE(shape, 6, network=network, network_options={"width": 8}, perceptual=None).decoder)
    assert export_decoder(decoder, tmp_path / "d.onnx", "onnx").passed
    if network == "dfc" or shape == (28, 28, 1):  # zeros around odd sides are computed as written
        assert not {"Resize", "Tile", "BatchNormalization"} & set(operations(tmp_path / "d.onnx"))


def test_edges_are_repeated_once(tmp_path: Path) -> None:
    decoder = randomized(VAE((32, 32, 3), 6, network_options={"width": 8}, perceptual=None).decoder)
    export_decoder(decoder, tmp_path / "d.onnx", "onnx")
    found = operations(tmp_path / "d.onnx")
    assert not {"Mul", "BatchNormalization", "Gather", "Concat", "DepthToSpace"} & set(found)
    # One replication of edges, at the start; one crop, at the end; each layout of pixels is channels last, rows apart,
    # and channels first again, but for the last.
    assert (found["Conv"], found["Pad"], found["Slice"], found["Transpose"]) == (4, 1, 1, 4 * 3 - 1)


class Pixels(layers.Layer):
    """A block whose kernel is none of an upsampled image: its results do not repeat their edges."""

    def build(self, input_shape: Any) -> None:
        self.kernel = self.add_weight((2, 2, input_shape[-1], 4 * 3))

    def call(self, images: Any) -> Any:
        pixels = tf.nn.depth_to_space(tf.nn.conv2d(edge_padded(images), self.kernel, 1, "VALID"), 2)
        return tf.slice(pixels, (0, 1, 1, 0), (-1, 2 * images.shape[1], 2 * images.shape[2], -1))


def test_edges_that_differ_are_kept(tmp_path: Path) -> None:
    decoder = decoder_of(model(Pixels(), layers.LeakyReLU(), UpsampledConv2D(2)))
    report = export_decoder(decoder, tmp_path / "d.onnx", "onnx")
    assert report.pairs[0].mean_difference < 1e-6
    assert operations(tmp_path / "d.onnx")["Pad"] == 2


@pytest.mark.parametrize("network", ["dfc", pytest.param("resnet", marks=pytest.mark.slow)])
def test_the_same_weights_give_the_same_bytes(tmp_path: Path, network: str) -> None:
    """Whatever was made in the process before: Keras and tf2onnx count their names up."""
    files = []
    for number in range(2):
        decoder = randomized(
            VAE((32, 32, 3), 6, network=network, network_options={"width": 8}, perceptual=None).decoder
        )
        export_decoder(decoder, tmp_path / f"{number}.onnx", "onnx")
        files.append((tmp_path / f"{number}.onnx").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("mode", ["constant", "edge"])
def test_padding_keeps_its_mode_past_transposes(mode: str) -> None:
    helper = onnx.helper
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Pad", ["z", "pads"], ["padded"], mode=mode),
        helper.make_node("Transpose", ["padded"], ["turned"], perm=[0, 3, 1, 2]),
        helper.make_node("Neg", ["turned"], ["image"]),
    ]
    pads = onnx.numpy_helper.from_array(np.array([0, 1, 1, 0, 0, 1, 1, 0], np.int64), "pads")
    inputs, outputs = [value("z", 1, ["batch", 3, 4, 2])], [value("image", 1, ["batch", 2, 5, 6])]
    opsets = [helper.make_opsetid("", 18)]
    made = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, [pads]), opset_imports=opsets, ir_version=8)
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 2)).astype(np.float32)
    found = []
    for _ in range(2):
        session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
        found.append(session.run(None, {"z": x})[0])
        onnx_graph.clean(made)
    np.testing.assert_array_equal(*found)
