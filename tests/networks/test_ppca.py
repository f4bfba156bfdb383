"""The network that begins as probabilistic PCA: what `adapt` sets is what the mathematics says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vae import VAE, InputError, networks
from keras_vae.networks import ppca

LATENTS = 6


def drawn(count: int, shape: tuple[int, int, int] = (16, 16, 3), seed: int = 0) -> np.ndarray:
    """Images of a linear model: a grey centre, `LATENTS` directions of different widths, and noise."""
    rng = np.random.default_rng(seed)
    axes = np.random.default_rng(7).standard_normal((LATENTS, *shape))
    widths = np.linspace(0.06, 0.02, LATENTS)[:, None, None, None]
    codes = rng.standard_normal((count, LATENTS))
    images = 0.5 + np.tensordot(codes, widths * axes, 1) + 0.02 * rng.standard_normal((count, *shape))
    return np.clip(images, 0.0, 1.0).astype(np.float32)


def adapted(shape: tuple[int, int, int] = (16, 16, 3), latent_dim: int = LATENTS, count: int = 400) -> Any:
    encoder, decoder = networks.build("ppca", shape, latent_dim, "float32", {"width": 8})
    images = drawn(count, shape)
    ppca.adapt(encoder, decoder, [images])
    return encoder, decoder, images


def test_principal_axes_are_the_covariance_s() -> None:
    rng = np.random.default_rng(0)
    samples = (rng.standard_normal((300, 40)) * np.geomspace(3.0, 0.01, 40)).astype(np.float32)
    samples -= samples.mean(axis=0)
    expected, axes = np.linalg.eigh(samples.T.astype(np.float64) @ samples / 300)
    found, columns = ppca.principal_axes(samples, 5)
    np.testing.assert_allclose(found, expected[::-1][:5], rtol=1e-4)
    np.testing.assert_allclose(np.abs((columns * axes[:, ::-1][:, :5]).sum(axis=0)), 1.0, rtol=1e-4)


def test_it_begins_as_probabilistic_pca() -> None:
    """Mean, variance and image of Tipping and Bishop's equations 7 to 9, from NumPy's eigenvalues."""
    encoder, decoder, images = adapted()
    pixels = images.reshape(len(images), -1).astype(np.float64)
    centre = pixels.mean(axis=0)
    values, axes = np.linalg.eigh((pixels - centre).T @ (pixels - centre) / len(pixels))
    kept, axes = values[::-1][:LATENTS], axes[:, ::-1][:, :LATENTS]
    noise = values[::-1][LATENTS:].sum() / (pixels.shape[1] - LATENTS)

    new = drawn(20, seed=1)
    found = {name: np.asarray(value) for name, value in encoder(new).items()}
    weights = axes * np.sqrt(kept - noise)
    mean = (new.reshape(20, -1) - centre) @ weights / kept
    signs = np.sign((found["mean"] * mean).sum(axis=0))
    np.testing.assert_allclose(found["mean"], mean * signs, atol=5e-3)
    np.testing.assert_allclose(found["log_var"], np.broadcast_to(np.log(noise / kept), (20, LATENTS)), atol=2e-3)
    expected = np.clip(centre + mean @ weights.T, ppca.MARGIN, 1.0 - ppca.MARGIN)
    np.testing.assert_allclose(np.asarray(decoder(found["mean"])).reshape(20, -1), expected, atol=1e-3)
    # Over all images, mean and variance of the codes are those of a standard normal.
    codes = {name: np.asarray(value, np.float64) for name, value in encoder(images).items()}
    np.testing.assert_allclose(codes["mean"].mean(axis=0), 0.0, atol=1e-3)
    second = codes["mean"].var(axis=0) + np.exp(codes["log_var"]).mean(axis=0)
    np.testing.assert_allclose(second, 1.0, atol=1e-2)


@pytest.mark.parametrize(
    "shape", [(100, 70, 1), (128, 128, 3), (130, 194, 3)], ids=lambda shape: "x".join(map(str, shape))
)
def test_large_images_begin_with_their_small_versions(shape: tuple[int, int, int]) -> None:
    """Smooth ones with themselves, to within what a bilinear enlargement loses; not a pixel beside."""
    rng = np.random.default_rng(0)
    images = np.asarray(tf.image.resize(rng.uniform(0.2, 0.8, (40, 5, 5, shape[2])), shape[:2], "bicubic"))
    images = np.clip(images, 0.05, 0.95).astype(np.float32)
    encoder, decoder = networks.build("ppca", shape, 39, "float32", {"width": 8})
    ppca.adapt(encoder, decoder, [images[:25], images[25:]])
    assert max(encoder.get_layer("pixels").input.shape[1:3]) <= ppca.SIDE
    made = np.asarray(decoder(encoder(images)["mean"]))
    inside = np.s_[:, 8:-8, 8:-8]
    found = np.abs(made - images)[inside].mean()
    shifted = np.abs(np.roll(images, 1, axis=2) - images)[inside].mean()
    assert found < 0.35 * shifted, (found, shifted)


def test_fewer_images_than_latents() -> None:
    """Latents that the images say nothing about are the standard normal, and change no image."""
    encoder, decoder, images = adapted(latent_dim=24, count=10)
    posterior = {name: np.asarray(value) for name, value in encoder(images).items()}
    assert np.isfinite(posterior["mean"]).all()
    assert np.isfinite(posterior["log_var"]).all()
    np.testing.assert_allclose(posterior["mean"][:, 10:], 0.0)
    np.testing.assert_allclose(posterior["log_var"][:, 10:], 0.0, atol=1e-6)
    assert np.isfinite(np.asarray(decoder(posterior["mean"]))).all()


def small_vae(**options: Any) -> VAE:
    vae = VAE((16, 16, 3), LATENTS, network="ppca", network_options={"width": 8}, perceptual=None, seed=0, **options)
    vae.compile(keras.optimizers.Adam(1e-3))
    return vae


def test_fit_adapts_once(tmp_path: Path) -> None:
    vae, images = small_vae(), drawn(64)
    assert vae.needs_adapting
    vae.fit(images, batch_size=32, epochs=1, verbose=0)
    assert not vae.needs_adapting
    linear = vae.decoder.get_layer("linear_image").get_weights()
    vae.fit(1.0 - images, batch_size=32, epochs=1, verbose=0)
    for before, after in zip(linear, vae.decoder.get_layer("linear_image").get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    vae.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras")
    assert not loaded.needs_adapting
    np.testing.assert_array_equal(loaded.predict(images, verbose=0), vae.predict(images, verbose=0))


def test_training_leaves_the_linear_path_alone_whatever_is_trainable() -> None:
    vae = small_vae()
    vae.trainable = False
    vae.trainable = True
    frozen = {"linear_mean/kernel", "linear_mean/bias", "linear_image/kernel", "linear_image/bias"}
    assert not frozen & {weight.path for weight in vae.trainable_weights}


def test_adapting_to_a_dataset_of_labelled_uint8_images() -> None:
    vae, images = small_vae(), (255 * drawn(50)).astype(np.uint8)
    labelled = tf.data.Dataset.from_tensor_slices((images, np.zeros(50))).batch(20)
    vae.adapt(labelled, limit=30)
    other = small_vae()
    other.adapt(tf.data.Dataset.from_tensor_slices(images[:30]).batch(30))
    np.testing.assert_allclose(vae.predict(images, verbose=0), other.predict(images, verbose=0), atol=1e-5)


def test_validation_images_are_not_adapted_to() -> None:
    images = drawn(64)
    vae, other = small_vae(), small_vae()
    vae.fit(images, validation_split=0.25, batch_size=16, verbose=0)
    other.adapt(images[:48])
    for found, expected in zip(
        *(each.decoder.get_layer("linear_image").get_weights() for each in (vae, other)), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_endless_dataset_is_adapted_to_by_its_beginning() -> None:
    vae = small_vae()
    vae.fit(tf.data.Dataset.from_tensor_slices(drawn(32)).batch(16).repeat(), steps_per_epoch=2, verbose=0)
    assert not vae.needs_adapting


def test_images_that_are_all_alike() -> None:
    vae = small_vae()
    vae.adapt(np.full((20, 16, 16, 3), 0.25, np.float32))
    assert not vae.needs_adapting
    np.testing.assert_allclose(vae.sample(3, seed=0), 0.25, atol=0.02)


def test_averaged_weights_leave_what_was_given_alone() -> None:
    vae, images = small_vae(), drawn(48)
    vae.compile(keras.optimizers.Adam(1e-3, use_ema=True, ema_momentum=0.9))
    vae.fit(images, batch_size=16, verbose=0)
    given = vae.decoder.get_layer("linear_image").kernel
    assert id(given) not in {id(variable) for variable, _ in vae.averages()}
    assert vae.evaluate(images, verbose=0, return_dict=True)["elbo"] > 0


def test_wrong_uses() -> None:
    with pytest.raises(InputError, match="'dfc' has nothing to adapt"):
        VAE((16, 16, 3), 4, perceptual=None).adapt(drawn(4))
    vae = small_vae()
    with pytest.raises(InputError, match=r"call vae\.adapt\(images\)"):
        vae.fit((batch[None] for batch in drawn(4)), steps_per_epoch=2, verbose=0)
    with pytest.raises(InputError, match="hold NaN"):
        vae.adapt(np.full((3, 16, 16, 3), np.nan, np.float32))
    with pytest.raises(InputError, match="shape"):
        vae.adapt(np.zeros((3, 8, 8, 3), np.float32))
    assert vae.needs_adapting
    with pytest.raises(InputError, match=r"call vae\.adapt\(images\) first"):
        vae.train_on_batch(drawn(4))
    with pytest.raises(InputError, match="array, a dataset or another iterable"):
        vae.adapt(5)
    with pytest.raises(InputError, match="limit"):
        vae.adapt(drawn(4), limit=0)
    vae.fit(drawn(32), batch_size=16, verbose=0)
    with pytest.raises(InputError, match="adapt a new one"):
        vae.adapt(drawn(4))
