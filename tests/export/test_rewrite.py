"""Rewrites of decoders compute the same, at every border, and fewer multiplications."""

from __future__ import annotations

import collections
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from keras import layers, ops

from keras_vae import VAE
from keras_vae.export import export_decoder, graph
from keras_vae.export.rewrite import rewrite
from keras_vae.model.networks import ReplicationPadding2D

TOLERANCE = 2e-5


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


def kinds(model: keras.Model) -> list[str]:
    return [type(layer).__name__ for layer in model.layers]


def assert_same(one: keras.Model, other: keras.Model) -> None:
    x = np.random.default_rng(1).standard_normal((3, *one.input_shape[1:])).astype(np.float32)
    found, expected = (ops.convert_to_numpy(each(x, training=False)) for each in (other, one))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * np.abs(expected).max(), rtol=0)


def roll(x: Any) -> Any:
    return ops.roll(x, 1, axis=1)


def replicated(*activations: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Upsampling, replication and convolution, again after each activation."""
    stack: list[keras.layers.Layer] = []
    for activation in (*activations, None):
        stack += [layers.UpSampling2D(), ReplicationPadding2D(), layers.Conv2D(4, 3)]
        stack += [activation] if activation is not None else []
    return stack


REWRITTEN: dict[str, Callable[[], keras.Model]] = {
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
}

LEFT_ALONE: dict[str, Callable[[], keras.Model]] = {
    "bilinear": lambda: model(layers.UpSampling2D(interpolation="bilinear"), layers.Conv2D(4, 3, padding="same")),
    "x3": lambda: model(layers.UpSampling2D(3), layers.Conv2D(4, 3, padding="same")),
    "5x5": lambda: model(layers.UpSampling2D(), layers.Conv2D(4, 5, padding="same")),
    "strides": lambda: model(layers.UpSampling2D(), layers.Conv2D(4, 3, 2, padding="same")),
    "dilated": lambda: model(layers.UpSampling2D(), layers.Conv2D(4, 3, dilation_rate=2, padding="same")),
    "no padding": lambda: model(layers.UpSampling2D(), layers.Conv2D(4, 3)),
    "grouped": lambda: model(layers.UpSampling2D(), layers.Conv2D(3, 3, padding="same", groups=3)),
    "odd, zeros": lambda: model(
        layers.UpSampling2D(), layers.Cropping2D(((0, 1), (0, 0))), layers.Conv2D(4, 3, padding="same")
    ),
    "wide padding": lambda: model(layers.UpSampling2D(), layers.ZeroPadding2D(2), layers.Conv2D(4, 3)),
}


@pytest.mark.parametrize("case", REWRITTEN)
def test_upsampling_and_convolution_become_one_at_low_resolution(case: str) -> None:
    original = REWRITTEN[case]()
    before = original.get_weights()
    rewritten = rewrite(original)
    assert "UpSampling2D" not in kinds(rewritten)
    assert "BatchNormalization" not in kinds(rewritten)
    assert "Rescaling" not in kinds(rewritten)
    assert_same(original, rewritten)
    for one, other in zip(before, original.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_what_is_something_else_is_left_alone(case: str) -> None:
    original = LEFT_ALONE[case]()
    rewritten = rewrite(original)
    assert kinds(rewritten) == kinds(original)
    assert_same(original, rewritten)


def test_a_layer_that_only_looks_like_padding_is_left_alone() -> None:
    class Almost(layers.Layer):
        def call(self, x: Any) -> Any:
            return ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=1.0)

    original = model(layers.UpSampling2D(), Almost(), layers.Conv2D(4, 3))
    rewritten = rewrite(original)
    assert "UpSampling2D" in kinds(rewritten)
    assert_same(original, rewritten)


def test_outputs_that_are_needed_twice_stay() -> None:
    image = keras.Input((4, 4, 3))
    wide = layers.UpSampling2D()(image)
    conv = layers.Conv2D(3, 3, padding="same")(wide)
    normalized = layers.BatchNormalization()(conv)
    original = randomized(keras.Model(image, layers.Add()([normalized, layers.Add()([conv, wide])])))
    assert_same(original, rewrite(original))


@pytest.mark.parametrize("network", ["dfc", "resnet"])
@pytest.mark.parametrize("shape", [(64, 64, 3), (33, 47, 1), (28, 28, 1)])
def test_decoders(network: str, shape: tuple[int, int, int]) -> None:
    decoder = randomized(VAE(shape, 6, network=network, network_options={"width": 8}, perceptual=None).decoder)
    rewritten = rewrite(decoder)
    assert_same(decoder, rewritten)
    if network == "dfc":
        assert not {"UpSampling2D", "BatchNormalization", "ReplicationPadding2D"} & set(kinds(rewritten))


def test_dense_layers_are_folded_and_subclassed_models_returned() -> None:
    original = model(layers.Dense(5), layers.BatchNormalization(), shape=(4,))
    assert kinds(rewrite(original)) == ["InputLayer", "Dense"]
    assert_same(original, rewrite(original))

    class Own(keras.Model):
        def call(self, x: Any) -> Any:
            return x

    own = Own()
    assert rewrite(own) is own


def test_the_exported_file_holds_no_upsampling(tmp_path: Path) -> None:
    decoder = randomized(VAE((32, 32, 3), 6, network_options={"width": 8}, perceptual=None).decoder)
    report = export_decoder(decoder, tmp_path / "d.onnx", "onnx")
    assert report.passed
    nodes = onnx.load(tmp_path / "d.onnx").graph.node
    found = collections.Counter(node.op_type for node in nodes)
    assert not {"Resize", "Tile", "BatchNormalization", "Gather", "Concat", "DepthToSpace"} & set(found)
    # One replication of edges, at the start; one crop, at the end; each layout of pixels is channels last, rows apart,
    # and channels first again, but for the last.
    assert (found["Conv"], found["Pad"], found["Slice"], found["Transpose"]) == (4, 1, 1, 4 * 3 - 1)


@pytest.mark.parametrize("case", REWRITTEN)
def test_exported_files_compute_the_same(case: str, tmp_path: Path) -> None:
    """The graph is cleaned too: pads, transposes and layouts."""
    original = REWRITTEN[case]()
    shape = original.input_shape[1:]
    z = keras.Input((3,))
    x = layers.LeakyReLU()(layers.Dense(int(np.prod(shape)))(z))
    decoder = keras.Model(z, layers.Activation("sigmoid")(original(layers.Reshape(shape)(x))))
    report = export_decoder(randomized(decoder), tmp_path / "d.onnx", "onnx")
    assert report.passed
    assert report.pairs[0].mean_difference < 1e-6


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
        graph.clean(made)
    np.testing.assert_array_equal(*found)
