"""What people's scripts do with a model of Keras's, and complain of where it fails with a `train_step` of one's own."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vae import VAE, InputError


@pytest.fixture(scope="module")
def x(images: np.ndarray) -> np.ndarray:
    return images[:48, ::2, ::2]


@pytest.fixture(scope="module")
def vae(x: np.ndarray) -> VAE:
    vae = made()
    vae.fit(x, batch_size=16, epochs=2, verbose=0)
    return vae


def made(optimizer: object = None, **options: object) -> VAE:
    keras.utils.set_random_seed(0)
    vae = VAE((16, 16, 3), 4, perceptual=None, network_options={"width": 4}, seed=1)
    vae.compile(optimizer or keras.optimizers.Adam(1e-3), **options)
    return vae


def test_images_as_their_own_labels(vae: VAE, x: np.ndarray) -> None:
    pairs = tf.data.Dataset.from_tensor_slices((x, x)).batch(16)
    expected = vae.evaluate(x, verbose=0, return_dict=True)
    for data in ((x, x), (pairs,)):
        assert vae.evaluate(*data, verbose=0, return_dict=True) == pytest.approx(expected, rel=1e-5)
        validation = data if len(data) == 2 else data[0]
        assert "val_elbo" in vae.fit(*data, validation_data=validation, verbose=0).history
        expected = vae.evaluate(x, verbose=0, return_dict=True)
    found = vae.evaluate(x, verbose=0)
    assert dict(zip(vae.metrics_names, found, strict=True)) == pytest.approx(expected, rel=1e-5)


def test_keras_callbacks(x: np.ndarray, tmp_path: Path) -> None:
    vae = made()
    history = vae.fit(
        x,
        validation_split=0.25,
        epochs=8,
        verbose=0,
        callbacks=[
            keras.callbacks.EarlyStopping("val_loss", min_delta=1e9, patience=2, restore_best_weights=True),
            keras.callbacks.ReduceLROnPlateau("val_loss", min_delta=1e9, patience=0, cooldown=9),
            keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", "val_elbo", mode="max", save_best_only=True),
            keras.callbacks.ModelCheckpoint(tmp_path / "last.weights.h5", save_weights_only=True),
            keras.callbacks.CSVLogger(tmp_path / "log.csv"),
            keras.callbacks.TensorBoard(tmp_path / "logs"),
            keras.callbacks.BackupAndRestore(tmp_path / "backup"),
            keras.callbacks.TerminateOnNaN(),
        ],
    ).history
    assert len(history["val_loss"]) == 3
    assert float(vae.optimizer.learning_rate) == pytest.approx(1e-4)
    assert (tmp_path / "log.csv").read_text().count("\n") == 4
    best = keras.saving.load_model(tmp_path / "best.keras")
    found = best.evaluate(x[36:], verbose=0, return_dict=True)["elbo"]
    assert found == pytest.approx(max(history["val_elbo"]), rel=1e-4)
    again = made()
    again.load_weights(tmp_path / "last.weights.h5")
    assert again.evaluate(x[36:], verbose=0, return_dict=True)["elbo"] == pytest.approx(
        history["val_elbo"][-1], rel=1e-4
    )


def test_copies(vae: VAE, x: np.ndarray, tmp_path: Path) -> None:
    expected = vae.predict(x, verbose=0)
    for model in (copy.deepcopy(vae), pickle.loads(pickle.dumps(vae))):
        np.testing.assert_array_equal(model.predict(x, verbose=0), expected)
    clone = keras.models.clone_model(vae)
    clone.set_weights(vae.get_weights())
    np.testing.assert_array_equal(clone.predict(x, verbose=0), expected)
    for name, network in (("encoder", vae.encoder), ("decoder", vae.decoder)):
        network.save(tmp_path / f"{name}.keras")
    encoder, decoder = (keras.saving.load_model(tmp_path / f"{name}.keras") for name in ("encoder", "decoder"))
    z = encoder.predict(x, verbose=0)["mean"]
    np.testing.assert_allclose(decoder.predict(z, verbose=0), expected, atol=1e-5)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: "rmsprop",
        lambda: keras.optimizers.SGD(1e-2, clipnorm=1.0, momentum=0.9),
        pytest.param(lambda: keras.optimizers.AdamW(1e-3, global_clipnorm=10.0), marks=pytest.mark.slow),
        lambda: keras.optimizers.Adam(3e-3, gradient_accumulation_steps=2),
        pytest.param(
            lambda: keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, 100)), marks=pytest.mark.slow
        ),
    ],
    ids=["by name", "clipped", "weight decay", "accumulated", "schedule"],
)
def test_optimizers(optimizer: Callable[[], object], x: np.ndarray) -> None:
    vae = made(optimizer())
    losses = vae.fit(x, batch_size=8, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert int(vae.optimizer.iterations) in (9, 18)  # an accumulating optimizer counts what it applies


def test_steps_per_execution_and_frozen_parts(x: np.ndarray) -> None:
    one, four = made(), made(steps_per_execution=4)
    for vae in (one, four):
        vae.fit(x, batch_size=8, epochs=2, shuffle=False, verbose=0)
    for first, second in zip(one.weights, four.weights, strict=True):
        np.testing.assert_allclose(np.array(first), np.array(second), atol=1e-5)
    before = one.encoder.get_weights()
    one.encoder.trainable = False
    one.compile(keras.optimizers.Adam(1e-3))
    one.fit(x, verbose=0)
    for first, second in zip(before, one.encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_a_directory_by_keras(vae: VAE, image_folder: Path) -> None:
    """Keras gives 0..255 as floats, and labels; the advice works."""
    options = {"image_size": (16, 16), "batch_size": 8, "verbose": False}
    data = keras.utils.image_dataset_from_directory(image_folder, **options)
    with pytest.raises(InputError, match=r"images range from .* to 255 in batch 1: scale them to \[0, 1\]"):
        vae.fit(data, verbose=0)
    scaled = data.map(lambda images, labels: (images / 255, labels))
    assert np.isfinite(vae.fit(scaled, verbose=0).history["loss"]).all()


@pytest.mark.slow
def test_models_that_are_no_longer_used_are_freed(images: np.ndarray) -> None:
    """With the graphs of their steps: someone trains a hundred models in one process."""
    counts = []
    for _ in range(3):
        vae = VAE((32, 32, 3), 4, perceptual=None, network_options={"width": 4})
        vae.compile()
        vae.fit(images[:8], batch_size=4, verbose=0)
        vae.train_on_batch(images[:4])
        del vae
        gc.collect()
        counts.append(sum(isinstance(each, tf.Graph) for each in gc.get_objects()))
    assert counts[2] == counts[1]


def test_functions_of_a_callback_can_be_differentiated_afterwards(images: np.ndarray) -> None:
    vae = VAE((32, 32, 3), 4, perceptual=None, network_options={"width": 4})
    vae.compile()
    decode = tf.function(vae.decode)
    z = tf.zeros((4, 4))
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: decode(z))
    vae.fit(images[:8], batch_size=4, callbacks=[look], verbose=0)
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = tf.reduce_mean(tf.square(decode(z) - images[:4]))
    assert np.isfinite(tape.gradient(loss, z)).all()


def test_the_objective_of_uint8_images(x: np.ndarray) -> None:
    vae = made()
    levels = np.round(255 * x[:4]).astype(np.uint8)
    noise = tf.zeros((4, vae.latent_dim))
    one, other = (vae.objective(images, noise, False)[0]["loss"] for images in (levels, levels / np.float32(255)))
    np.testing.assert_allclose(one, other, rtol=1e-6)
