"""Muon: Keras's step for matrices, the same for kernels seen as matrices, Adam's for the rest."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vae import VAE, InputError, optimizers
from keras_vae.model.optimizers import Muon
from keras_vae.training import config


def stepped(optimizer: keras.optimizers.Optimizer, shape: tuple[int, ...], steps: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((steps + 1, int(np.prod(shape)))).astype(np.float32)
    variable = keras.Variable(values[0].reshape(shape))
    for gradient in values[1:]:
        optimizer.apply([tf.constant(gradient.reshape(shape))], [variable])
    return np.array(variable)


def test_a_matrix_is_keras_s() -> None:
    keras_own = keras.optimizers.Muon(0.02, weight_decay=None, adam_weight_decay=None)
    for shape in ((8, 20), (20, 8)):
        np.testing.assert_allclose(stepped(Muon(0.02), shape), stepped(keras_own, shape), rtol=1e-3, atol=1e-5)
        keras_own = keras.optimizers.Muon(0.02, weight_decay=None, adam_weight_decay=None)


def test_a_kernel_is_the_matrix_of_its_windows() -> None:
    kernel, matrix = stepped(Muon(0.02), (3, 3, 4, 8)), stepped(Muon(0.02), (36, 8))
    np.testing.assert_allclose(kernel.reshape(36, 8), matrix, atol=1e-6)


@pytest.mark.parametrize("shape", [(8,), (), (4, 4, 3, 8), (3, 3, 8, 1)])
def test_the_rest_is_adam_s(shape: tuple[int, ...]) -> None:
    np.testing.assert_allclose(stepped(Muon(0.02), shape), stepped(keras.optimizers.Adam(0.02), shape), atol=1e-6)


def test_keras_s_exclusions_and_scale_hold() -> None:
    dense = keras.layers.Dense(8, name="project")
    dense.build((None, 20))
    assert Muon(exclude_layers=["project"])._should_use_adamw(dense.kernel)
    assert not Muon(exclude_layers=["other"])._should_use_adamw(dense.kernel)
    for rate in (None, 0.2):
        own, theirs = (kind(0.02, rms_rate=rate, weight_decay=None) for kind in (Muon, keras.optimizers.Muon))
        np.testing.assert_allclose(own.lr_adjust(tf.ones((8, 20))), theirs.lr_adjust(tf.ones((8, 20))), rtol=1e-6)


def test_wrong_dtype_is_refused_before_any_step() -> None:
    with pytest.raises(InputError, match="float32, bfloat16, float16"):
        Muon(dtype="mixed_bfloat16")


def test_names_of_optimizers_are_those_of_the_command_line() -> None:
    assert tuple(optimizers.OPTIMIZERS) == config.OPTIMIZERS
    vae = VAE((16, 16, 3), 4, perceptual=None, network_options={"width": 8})
    for name in ("muon", "Muon"):
        vae.compile(name)
        assert isinstance(vae.optimizer, Muon)


def test_the_update_s_singular_values_are_alike() -> None:
    """However unlike the gradient's are: from 1 to a thousandth, to within the iteration's 0.7 to 1.2."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((32, 32)))[0] for _ in range(2))
    gradient = (left * np.geomspace(1.0, 1e-3, 32)) @ right
    for dtype, least in (("float32", 0.6), ("bfloat16", 0.4)):
        made = np.asarray(
            Muon(dtype=dtype, ns_steps=10).zeropower_via_newtonschulz5(tf.constant(gradient, "float32"), 10)
        )
        singular = np.linalg.svd(made, compute_uv=False)
        assert least < singular.min() <= singular.max() < 1.3, (dtype, singular)


def test_it_comes_back_with_a_model(tmp_path: object) -> None:
    vae = VAE((16, 16, 3), 4, perceptual=None, network_options={"width": 8}, seed=0)
    vae.compile(Muon(1e-3, dtype="bfloat16", use_ema=True))
    vae.fit(np.random.default_rng(0).random((32, 16, 16, 3), np.float32), batch_size=16, verbose=0)
    path = f"{tmp_path}/vae.keras"
    vae.save(path)
    optimizer = keras.saving.load_model(path).optimizer
    assert isinstance(optimizer, Muon)
    assert optimizer.get_config() == vae.optimizer.get_config()
    for found, expected in zip(optimizer.variables, vae.optimizer.variables, strict=True):
        np.testing.assert_array_equal(found, expected)
