"""References are computed in true float32, on a machine whose card would round them to TF32 too."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from browser import few_draws

from keras_vae import VAE, export
from keras_vae.export import encoder as encoders
from keras_vae.export.formats import FORMATS
from keras_vae.features import judges
from keras_vae.support.true_float32 import true_float32

ENABLED = tf.config.experimental.tensor_float_32_execution_enabled
ROUNDED = 2.0**13  # float32 keeps 23 bits behind the first one, TF32 10


def to_tf32(values: Any) -> Any:
    """Rounds to ten bits by adding and taking away a multiple (Veltkamp's splitting)."""
    large = values * (ROUNDED + 1.0)
    return large - (large - values)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products and convolutions that Keras computes are rounded as a card does it, while TensorFlow's switch is on."""

    def rounding(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(one: Any, other: Any, *args: Any, **kwargs: Any) -> Any:
            if tf.executing_eagerly() and ENABLED():  # what is traced is the artifact's, which runs elsewhere
                one, other = (to_tf32(tf.convert_to_tensor(each)) for each in (one, other))
            return function(one, other, *args, **kwargs)

        return run

    monkeypatch.setattr(tf.nn, "convolution", rounding(tf.nn.convolution))
    monkeypatch.setattr(tf, "matmul", rounding(tf.matmul))


@pytest.fixture(scope="module")
def vae() -> VAE:
    """Not trained, and of images as different as those of a trained one."""
    keras.utils.set_random_seed(0)
    vae = VAE((32, 32, 3), 8, perceptual=None, seed=0)
    rng = np.random.default_rng(0)
    for weight in (*vae.encoder.weights, *vae.decoder.weights):
        if any(part in weight.path for part in ("moving", "gamma", "beta")):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    kernel = vae.decoder.get_layer("conv4").kernel
    kernel.assign(6 * kernel)
    return vae


def off_by_a_thousandth(writer: Callable[..., None]) -> Callable[..., None]:
    """Writes a network with one weight changed by 0.001."""

    def write(network: keras.Model, *rest: Any, **options: Any) -> None:
        wrong = keras.models.clone_model(network)
        wrong.set_weights(network.get_weights())
        bias = next(weight for weight in reversed(wrong.weights) if weight.path.endswith("bias"))
        bias.assign(bias + 0.001)
        writer(wrong, *rest, **options)

    return write


def test_the_card_of_these_tests_rounds_as_one_does(card: None, vae: VAE) -> None:
    assert ENABLED()
    z = np.random.default_rng(0).standard_normal((64, 8), np.float32)
    plain, decoder = keras.ops.convert_to_numpy(vae.decoder(z)), vae.decoder
    with true_float32():
        exact = keras.ops.convert_to_numpy(decoder(z))
    assert 1e-4 < np.abs(plain - exact).max() < 1e-2  # 0.0008 on an H100
    np.testing.assert_array_equal(to_tf32(tf.constant([1.0 + 2**-10, 1.0 + 2**-12])), [1.0 + 2**-10, 1.0])


@pytest.mark.parametrize(("format", "name"), [("tf_saved_model", "1"), ("onnx", "decoder.onnx")])
@few_draws()
def test_a_right_artifact_is_written_and_a_wrong_one_is_not(
    card: None, vae: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, name: str
) -> None:
    assert vae.export(tmp_path / name, format, encoder=FORMATS[format].holds_all).passed
    assert ENABLED()  # as it was
    wrong = dataclasses.replace(FORMATS[format], writer=off_by_a_thousandth(FORMATS[format].write))
    monkeypatch.setitem(FORMATS, format, wrong)
    with pytest.raises(export.VerificationError, match="differs from Keras"):
        vae.export(tmp_path / f"wrong-{name}", format)
    assert ENABLED()


def test_a_right_encoder_is_written_and_a_wrong_one_is_not(
    card: None, vae: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders.export_encoder(vae.encoder, tmp_path / "encoder.onnx")
    monkeypatch.setattr(encoders, "_write", off_by_a_thousandth(encoders._write))
    with pytest.raises(export.VerificationError, match="differs from Keras"):
        encoders.export_encoder(vae.encoder, tmp_path / "wrong.onnx")


@pytest.mark.slow
def test_the_command_passes_right_artifacts_and_finds_a_wrong_one(
    card: None, vae: VAE, tmp_path: Path, command: Callable[..., Any]
) -> None:
    vae.save(tmp_path / "model.keras")
    for format, name in (("tf_saved_model", "1"), ("onnx", "decoder.onnx")):
        vae.export(tmp_path / name, format)
        off_by_a_thousandth(FORMATS[format].write)(vae.decoder, tmp_path / f"wrong-{name}", {})
    right = command("verify", tmp_path / "model.keras", tmp_path / "1", tmp_path / "decoder.onnx")
    assert right.status == 0, right
    for name in ("wrong-1", "wrong-decoder.onnx"):
        wrong = command("verify", tmp_path / "model.keras", tmp_path / name, "--json")
        assert wrong.status != 0
        assert not json.loads(wrong.out)["passed"]


def test_figures_are_measured_without_rounding(
    vae: VAE, image_folder: Path, tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    enabled = []

    def run(images: Any) -> tuple[Any, list[Any]]:
        enabled.append(ENABLED())
        return tf.reduce_mean(images, (1, 2)), [images]

    network = judges.Judge("noted", "noted", 3, run)
    monkeypatch.setitem(judges.JUDGES, "noted", lambda path: network)
    vae.save(tmp_path / "model.keras")
    outcome = command("evaluate", tmp_path / "model.keras", "--data", image_folder, "--features", "noted")
    assert outcome.status == 0, outcome
    assert enabled
    assert not any(enabled)
    assert ENABLED()


def test_blocks_that_overlap_leave_the_switch_as_it_was() -> None:
    first, second = true_float32(device=None), true_float32(device=None)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not ENABLED()
    second.__exit__(None, None, None)
    assert ENABLED()


# A second device stands for the card: what a user's scope puts there has to come back to the first.
ELSEWHERE = """
import pathlib, sys
import tensorflow as tf
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
tf.debugging.set_log_device_placement(True)
import keras
from keras_vae.export import artifact
from keras_vae.export.formats import open_artifact
layers = keras.layers
decoder = keras.Sequential([
    keras.Input((4,)), layers.Dense(48), layers.Reshape((4, 4, 3)), layers.Conv2D(3, 3, padding="same"),
    layers.Activation("sigmoid"),
])
path = pathlib.Path(sys.argv[1])
artifact.export_decoder(decoder, path, "tf_saved_model")
with tf.device("CPU:1"):
    z = tf.random.stateless_normal((3, 4), (0, 0)).numpy()
    for name, run in (("Keras", artifact.keras_runner(decoder)), ("SavedModel", open_artifact(path).decode)):
        print("now", name, file=sys.stderr, flush=True)
        run(z)
"""


def test_references_are_computed_on_the_cpu_whatever_the_scope(tmp_path: Path) -> None:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0"}
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "1")]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    _, *parts = result.stderr.split("\nnow ")
    assert len(parts) == 2
    for part in parts:
        lines = [line for line in part.splitlines() if "device:CPU:" in line]
        placed = [line for line in lines if "Conv2D" in line or "MatMul" in line]
        assert any("Conv2D" in line for line in placed), part
        assert any("MatMul" in line for line in placed), part
        assert not any("device:CPU:1" in line for line in placed), part


@few_draws()
def test_what_a_saved_model_computes_beforehand_is_true_float32(vae: VAE, tmp_path: Path) -> None:
    """Kernels that are folded once and kept: a card that rounds them would leave its mark in the file."""
    seen: list[bool] = []
    wrapped = tf.compat.v1.wrap_function

    def watched(*args: Any, **kwargs: Any) -> Any:
        function = wrapped(*args, **kwargs)
        prune = function.prune

        def pruned(*parts: Any) -> Callable[[], Any]:
            compute = prune(*parts)
            return lambda: seen.append(ENABLED()) or compute()

        function.prune = pruned
        return function

    assert ENABLED()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.compat.v1, "wrap_function", watched)
        assert vae.export(tmp_path / "1").passed
    assert seen
    assert not any(seen)
