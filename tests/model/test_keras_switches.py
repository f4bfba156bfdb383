"""Keras's own global switches: whatever a user has set, everything works, or says in one line why not."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import keras_vae
from keras_vae import VAE, InputError, PerceptualLoss
from keras_vae.export.formats import open_artifact
from keras_vae.export.runtime import Decoder, Encoder
from keras_vae.features import judges, perceptual
from keras_vae.model.bounds import importance_weighted_bound
from keras_vae.model.encoding import encode
from keras_vae.support.keras_defaults import keras_defaults

pytestmark = pytest.mark.usefixtures("registries")

SETTERS: dict[str, Callable[[], None]] = {
    "mixed_bfloat16": lambda: keras.config.set_dtype_policy("mixed_bfloat16"),
    "mixed_float16": lambda: keras.config.set_dtype_policy("mixed_float16"),
    "float64": lambda: keras.config.set_dtype_policy("float64"),
    "floatx": lambda: keras.config.set_floatx("float64"),
    "channels_first": lambda: keras.config.set_image_data_format("channels_first"),
}
TOGETHER = ("mixed_bfloat16", "floatx", "channels_first")
SHAPE = (16, 16, 3)


def state() -> tuple[str, str, str]:
    return keras.config.dtype_policy().name, keras.config.floatx(), keras.config.image_data_format()


@contextlib.contextmanager
def switched(*names: str) -> Iterator[None]:
    policy, floatx, data_format = state()
    for name in names:
        SETTERS[name]()
    within = state()
    try:
        yield
        assert state() == within  # nothing of ours has changed them
    finally:
        keras.config.set_dtype_policy(policy)
        keras.config.set_floatx(floatx)
        keras.config.set_image_data_format(data_format)


@pytest.fixture(
    params=[name if name != "mixed_float16" else pytest.param(name, marks=pytest.mark.slow) for name in SETTERS]
)
def switch(request: pytest.FixtureRequest) -> Iterator[str]:
    with switched(request.param):
        yield request.param


@pytest.fixture
def all_switches() -> Iterator[None]:
    """Those that go together, at once."""
    with switched(*TOGETHER):
        yield


@pytest.fixture(scope="module")
def small(images: np.ndarray) -> np.ndarray:
    """Images of 16x16."""
    return images[:, ::2, ::2]


def tiny_network(weights_path: Path | None) -> keras.Model:
    image = keras.Input((None, None, 3))
    orthogonal = keras.initializers.Orthogonal(seed=0)
    x = layers.Conv2D(4, 3, activation="relu", kernel_initializer=orthogonal, name="first")(image)
    return keras.Model(image, layers.MaxPooling2D(name="pooled")(x))


def make(**arguments: Any) -> VAE:
    perceptual.NETWORKS["tiny"] = perceptual.Network(
        tiny_network, {"early": "first", "late": "pooled"}, {"vae-123": ("early", "late")}, preprocessing="torch"
    )
    keras.utils.set_random_seed(0)
    options: dict[str, Any] = {"network_options": {"width": 8}, "perceptual": "tiny", **arguments}
    return VAE(SHAPE, 4, seed=0, **options)


def test_a_model_trains_and_comes_back_from_its_file(switch: str, small: np.ndarray, tmp_path: Path) -> None:
    vae = make(**({"perceptual": None} if switch == "mixed_float16" else {}))  # XLA takes long over it
    assert vae.dtype_policy.name == keras.config.dtype_policy().name  # a policy is the user's to choose
    vae.compile(keras.optimizers.Adam(1e-3, use_ema=switch == "floatx"))
    history = vae.fit(small, batch_size=32, epochs=2, verbose=0).history
    assert all(np.isfinite(values).all() for values in history.values())
    assert history["loss"][1] < history["loss"][0]
    figures = vae.evaluate(small[:32], verbose=0, return_dict=True)
    decoded = keras.ops.convert_to_numpy(vae.decode(np.ones((2, 4))))
    assert (decoded.shape, decoded.dtype, vae.predict(small[:3], verbose=0).shape) == (
        (2, *SHAPE),
        "float32",
        (3, *SHAPE),
    )
    vae.save(tmp_path / "vae.keras")
    for names in (("float64",), TOGETHER):
        with switched(*names):
            again = keras.saving.load_model(tmp_path / "vae.keras")
            assert again.dtype_policy.name == vae.dtype_policy.name
            np.testing.assert_array_equal(again.decode(np.ones((2, 4))), decoded)
    assert again.evaluate(small[:32], verbose=0, return_dict=True) == pytest.approx(figures, rel=1e-3)


@pytest.mark.parametrize("names", [("float64",), TOGETHER])
def test_networks_of_ones_own_come_back_from_their_file(
    names: tuple[str, ...], small: np.ndarray, tmp_path: Path
) -> None:
    with switched(*names):
        image, z = keras.Input(SHAPE), keras.Input((4,))
        encoder = keras.Model(image, layers.Dense(8)(layers.Flatten()(image)))
        hidden = layers.Reshape((8, 8, 4))(layers.Dense(256, "relu")(z))
        last = {"data_format": "channels_last", "padding": "same", "activation": "sigmoid"}
        decoder = keras.Model(z, layers.Conv2D(3, 3, **last)(layers.UpSampling2D(data_format="channels_last")(hidden)))
        vae = VAE(encoder=encoder, decoder=decoder, perceptual=None, seed=0)
        vae.compile()
        vae.fit(small, batch_size=32, verbose=0)
        expected = vae.predict(small[:2], verbose=0)
        vae.save(tmp_path / "vae.keras")
        assert vae.export(tmp_path / "decoder.onnx", "onnx").passed
    again = keras.saving.load_model(tmp_path / "vae.keras")
    np.testing.assert_allclose(again.predict(small[:2], verbose=0), expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("switch", ["mixed_bfloat16", "mixed_float16", "float64"], indirect=True)
def test_every_artifact_is_that_of_the_weights(switch: str, small: np.ndarray, tmp_path: Path) -> None:
    vae = make()
    vae.export(tmp_path / "1", encoder=True)
    vae.export(tmp_path / "decoder.onnx", "onnx")
    vae.export(tmp_path / "int8.onnx", "onnx", precision="int8", calibration=small)
    z = np.random.default_rng(0).standard_normal((3, 4), np.float32)
    expected = open_artifact(tmp_path / "1").decode(z)
    np.testing.assert_allclose(Decoder(tmp_path / "decoder.onnx").decode(z), expected, atol=1e-5)
    np.testing.assert_allclose(Decoder(tmp_path / "int8.onnx").decode(z), expected, atol=0.1)
    np.testing.assert_allclose(vae.decode(z), expected, atol=0.02)


def test_a_pretrained_model_is_the_same(tmp_path: Path) -> None:
    expected = keras_vae.from_pretrained("avatars").sample(2, seed=0)
    with switched(*TOGETHER):
        vae = keras_vae.from_pretrained("avatars")
        np.testing.assert_array_equal(vae.sample(2, seed=0), expected)
        assert vae.export(tmp_path / "a.onnx", format="onnx").passed


@pytest.mark.slow
def test_the_other_formats_and_the_command(
    all_switches: None, small: np.ndarray, tmp_path: Path, command: Callable[..., Any], image_folder: Path
) -> None:
    run = tmp_path / "run"
    options = ("--image-size", 16, "--latent-dim", 4, "--steps", 3, "--batch-size", 16, "--network-option", "width=8")
    done = command("train", "--data", image_folder, "--out", run, "--perceptual", "none", *options)
    assert done.status == 0, done
    done = command("export", run, "--format", "all", "--encoder")
    assert done.status == 0, done
    assert Encoder(run / "export" / "encoder.onnx").latent_dim == 4
    for arguments in (("verify", run), ("evaluate", run, "--features", "none", "--importance-samples", 2)):
        done = command(*arguments)
        assert done.status == 0, done


def test_what_judges_a_model(small: np.ndarray) -> None:
    def figures() -> dict[str, Any]:
        vae = make(dtype="float32", likelihood="gaussian")
        bound = importance_weighted_bound(vae, [small[:4]], samples=3)
        encoded = encode(vae, [small])
        judge = judges.load("efficientnet-lite0")
        own = PerceptualLoss(tiny_network(None), ("first", "pooled"), preprocessing="tf")
        return {
            "bound": bound.mean,
            "means": encoded.mean,
            "judged": judge.pooled(small[:2]),
            "own": own(small[:2], small[2:4]),
        }

    expected = figures()
    with switched("mixed_bfloat16", "floatx"):
        with keras_defaults():  # the user's own network, made as such
            own = tiny_network(None)
        found = {
            **figures(),
            "own": PerceptualLoss(own, ("first", "pooled"), preprocessing="tf")(small[:2], small[2:4]),
        }
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5)


def test_a_prior_is_fitted(all_switches: None, small: np.ndarray) -> None:
    vae = make(perceptual=None, dtype="float32")
    vae.fit_prior([small] * 6, steps=2)
    assert vae.prior.kind == "learned"
    assert np.isfinite(vae.sample(3, seed=0)).all()
    assert np.isfinite(vae.prior.log_prob(vae.prior(np.zeros((2, vae.latent_dim), np.float32)))).all()


@pytest.mark.parametrize("policy", ["bfloat16", "float16", "int8_from_float32"])
def test_policies_too_coarse_to_train_are_refused(policy: str) -> None:
    before = keras.config.dtype_policy()
    message = rf"^dtype policy '{policy}': its weights are too coarse to train; give dtype='mixed_bfloat16'"
    with pytest.raises(InputError, match=message):
        make(dtype=policy)
    try:
        keras.config.set_dtype_policy(policy)
        with pytest.raises(InputError, match=message):
            make()
        assert make(dtype="float32").decode(np.ones((1, 4))).dtype == "float32"
    finally:
        keras.config.set_dtype_policy(before)


def test_blocks_that_overlap_in_threads_leave_the_switches_as_they_were() -> None:
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with keras_defaults():
            entered.set()
            leave.wait()

    with switched("floatx", "channels_first"):
        thread = threading.Thread(target=other)
        with keras_defaults("mixed_bfloat16"):
            assert state() == ("mixed_bfloat16", "float32", "channels_last")
            thread.start()
            entered.wait()
        assert keras.config.floatx() == "float32"  # the other's block still holds
        leave.set()
        thread.join()
        assert state()[1:] == ("float64", "channels_first")
