"""Each precision, under XLA or not, through all that a model is for: fit, evaluate, predict, save, load, export."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vae import VAE
from keras_vae.export.formats import open_artifact

MODES = [
    ("float32", False),
    pytest.param("float32", True, marks=pytest.mark.slow),
    ("mixed_bfloat16", False),
    pytest.param("mixed_bfloat16", True, marks=pytest.mark.slow),
    # A CPU computes it through XLA alone, which takes long to compile; `test_precision.py` trains in it.
    pytest.param("mixed_float16", True, marks=pytest.mark.slow),
]
# Of images in [0, 1] that a model in each precision makes.
ROUNDING = {"float32": 1e-5, "mixed_bfloat16": 2e-2, "mixed_float16": 2e-3}


@pytest.mark.parametrize(("policy", "jit_compile"), MODES)
def test_a_model_in_every_mode(policy: str, jit_compile: bool, images: np.ndarray, tmp_path: Path) -> None:
    x = images[:32, ::2, ::2]
    keras.utils.set_random_seed(0)
    vae = VAE((16, 16, 3), 4, perceptual=None, network_options={"width": 4}, seed=0, dtype=policy)
    vae.compile(keras.optimizers.Adam(1e-3), jit_compile=jit_compile)
    data = tf.data.Dataset.from_tensor_slices(x).batch(8)
    history = vae.fit(data, epochs=3, validation_data=data, verbose=0).history
    assert np.isfinite(list(history.values())).all()
    assert history["loss"][-1] < history["loss"][0]

    figures = vae.evaluate(data, verbose=0, return_dict=True)
    assert figures == pytest.approx({name: history[f"val_{name}"][-1] for name in figures}, rel=1e-5)
    made = vae.predict(data, verbose=0)
    assert made.dtype == np.float32
    assert made.min() >= 0
    assert made.max() <= 1
    np.testing.assert_allclose(made, vae(x), atol=ROUNDING[policy])

    vae.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras")
    assert loaded.dtype_policy.name == policy
    assert loaded.jit_compile == jit_compile
    np.testing.assert_array_equal(loaded.encode(x).mean, vae.encode(x).mean)
    for one, other in zip(loaded.optimizer.variables, vae.optimizer.variables, strict=True):
        np.testing.assert_array_equal(np.array(one), np.array(other))

    z = np.random.default_rng(0).standard_normal((5, 4), np.float32)
    assert loaded.export(tmp_path / "decoder.onnx", format="onnx").passed
    assert loaded.export(tmp_path / "1").passed
    decoded = [open_artifact(tmp_path / name).decode(z) for name in ("decoder.onnx", "1")]
    np.testing.assert_allclose(decoded[0], decoded[1], atol=1e-5)
    np.testing.assert_allclose(decoded[0], vae.decode(z), atol=ROUNDING[policy])
