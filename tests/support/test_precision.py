"""Which precision is picked, and that each one trains."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vae import OBJECTIVES, VAE, InputError, data
from keras_vae.support import precision

MakeVAE = Callable[..., VAE]
POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")


@pytest.fixture(scope="module")
def small(images: np.ndarray) -> np.ndarray:
    """96 avatars of 16x16."""
    return images[:, ::2, ::2]


@pytest.mark.parametrize(
    ("gpu", "flags", "expected"),
    [
        (("H200", (9, 0)), set(), "mixed_bfloat16"),
        (("A100", (8, 0)), set(), "mixed_bfloat16"),
        (("T4", (7, 5)), {"amx_bf16"}, "mixed_float16"),
        (("P100", (6, 0)), {"amx_bf16"}, "float32"),
        (None, {"sse", "amx_bf16"}, "mixed_bfloat16"),
        (None, {"avx512_bf16"}, "mixed_bfloat16"),
        (None, {"avx2", "avx512f"}, "float32"),
        (None, set(), "float32"),
    ],
)
def test_auto_picks_what_the_hardware_multiplies_in(
    monkeypatch: pytest.MonkeyPatch, gpu: tuple[str, tuple[int, int]] | None, flags: set[str], expected: str
) -> None:
    monkeypatch.setattr(precision, "_gpu_compute_capability", lambda: gpu)
    monkeypatch.setattr(precision, "_cpu_flags", lambda: frozenset(flags))
    policy, reason = precision.choose("auto")
    assert policy == expected
    assert (gpu[0] if gpu else "no GPU") in reason


def test_an_asked_for_precision_is_kept_and_an_unknown_one_refused() -> None:
    assert precision.choose("mixed_float16")[0] == "mixed_float16"
    with pytest.raises(InputError, match="mixed_bfloat16"):
        precision.choose("float8")


# Float32 is what all the other tests train in.
@pytest.mark.parametrize("policy", [pytest.param("float32", marks=pytest.mark.slow), *POLICIES[1:]])
def test_every_precision_trains_without_nan(make_vae: MakeVAE, small: np.ndarray, policy: str) -> None:
    vae = make_vae(image_shape=(16, 16, 3), network_options={"width": 8}, dtype=policy, perceptual="hed-vgg16")
    history = vae.fit(small, batch_size=16, epochs=4, verbose=0).history
    assert np.isfinite(list(history.values())).all()
    assert history["loss"][-1] < history["loss"][0]
    assert all(np.isfinite(weight).all() for weight in vae.get_weights())
    assert {weight.dtype for weight in vae.weights if "seed" not in weight.path} == {"float32"}
    assert np.isfinite(vae.sample(4, seed=0)).all()


@pytest.mark.slow
def test_float16_scales_its_loss_and_recovers_from_an_overflow(make_vae: MakeVAE, images: np.ndarray) -> None:
    vae = make_vae(dtype="mixed_float16")
    assert isinstance(vae.optimizer, keras.optimizers.LossScaleOptimizer)
    vae.optimizer.build(vae.trainable_variables)
    vae.optimizer.dynamic_scale.assign(3e38)  # every gradient overflows until it has come down
    before = [np.array(weight) for weight in vae.trainable_weights]
    vae.fit(images[:16], batch_size=16, verbose=0)
    assert float(vae.optimizer.dynamic_scale) < 3e38
    for old, new in zip(before, vae.trainable_weights, strict=True):
        np.testing.assert_array_equal(old, new)  # the overflowing step was left out
    vae.optimizer.dynamic_scale.assign(1.0)
    vae.fit(images[:16], batch_size=16, verbose=0)
    assert any((old != np.array(new)).any() for old, new in zip(before, vae.trainable_weights, strict=True))


@pytest.mark.skipif(precision._gpu_compute_capability() is not None, reason="about CPUs")
def test_float16_on_a_cpu_is_compiled(make_vae: MakeVAE) -> None:
    assert make_vae(dtype="mixed_float16").jit_compile
    assert not make_vae(dtype="mixed_bfloat16").jit_compile
    with pytest.raises(InputError, match="compiled by XLA"):
        make_vae(dtype="mixed_float16").compile("adam", jit_compile=False)


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("default", "mixed_bfloat16"),
        *(
            pytest.param(name, policy, marks=pytest.mark.slow)
            for name, policy in (
                ("plain", "mixed_bfloat16"),
                ("vae-123", "mixed_bfloat16"),
                ("vae-123-calibrated", "mixed_bfloat16"),
                ("default", "mixed_float16"),
                ("plain", "mixed_float16"),
                ("vae-123", "mixed_float16"),
                ("vae-123-calibrated", "mixed_float16"),
            )
        ),
    ],
)
def test_gradients_point_where_those_of_float32_do(
    make_vae: MakeVAE, images: np.ndarray, policy: str, name: str
) -> None:
    """Cosine similarity of at least 0.99 for every variable."""
    compare_gradients(make_vae, images, policy, {"perceptual": "hed-vgg16", **OBJECTIVES[name]})


@pytest.mark.slow
def test_float16_bears_the_small_gradients_of_large_images(make_vae: MakeVAE, images: np.ndarray) -> None:
    """The paper's features are averaged over pixels and the batch: 256x256 in batches of 64 count 128 times less."""
    small = {**OBJECTIVES["vae-123"], "perceptual": "hed-vgg16", "perceptual_weight": 0.5 / 128, "beta": 1 / 128}
    large = VAE((256, 256, 3), 8, perceptual="hed-vgg16", dtype="mixed_float16", **OBJECTIVES["vae-123"])
    large.compile()
    compare_gradients(make_vae, images, "mixed_float16", small, large.optimizer.initial_scale)


def compare_gradients(
    make_vae: MakeVAE, images: np.ndarray, policy: str, arguments: dict[str, Any], scale: float | None = None
) -> None:
    reference, mixed = make_vae(**arguments), make_vae(dtype=policy, **arguments)
    reference.fit(images, batch_size=32, epochs=2, verbose=0)  # past the first steps, where gradients are all noise
    mixed.set_weights(reference.get_weights())
    # Compiled by XLA both or neither: it draws other noise from the same seed.
    compiled = policy == "mixed_float16"
    scale = scale or getattr(mixed.optimizer, "initial_scale", 1.0)
    both = [gradients(vae, images[:32], compiled, scale) for vae in (reference, mixed)]
    for weight, expected, found in zip(mixed.trainable_weights, *both, strict=True):
        cosine = found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)
        assert cosine >= 0.99, (weight.path, cosine)


def gradients(vae: VAE, images: np.ndarray, compiled: bool, scale: float) -> list[np.ndarray]:
    """The gradient of the loss with respect to each trainable variable."""
    vae.load_perceptual()

    @tf.function(jit_compile=compiled)
    def compute() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            terms, _ = vae.objective(tf.constant(images), vae.test_noise, training=True)
            loss = scale * tf.reduce_mean(terms["loss"])
        return tape.gradient(loss, vae.trainable_weights)

    return [gradient.numpy().ravel().astype(np.float64) for gradient in compute()]


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_1000_steps_of_saturated_images_stay_finite(make_vae: MakeVAE, images: np.ndarray, policy: str) -> None:
    """All black, all white, checkerboards; and a posterior thrown to both ends of its range every hundred steps."""
    board = np.indices((32, 32)).sum(0)[..., None] % 2 * np.ones(3)
    blocks = np.kron(np.indices((4, 4)).sum(0) % 2, np.ones((8, 8)))[..., None] * np.ones(3)
    kinds = np.stack([np.zeros((32, 32, 3)), np.ones((32, 32, 3)), board, 1 - board, blocks, 1 - blocks])
    saturated = np.concatenate([kinds, kinds, images[:4]]).astype(np.float32)
    vae = make_vae(dtype=policy, perceptual="hed-vgg16")
    head = vae.encoder.get_layer("raw_log_var")
    for hundred in range(10):
        kernel, bias = head.get_weights()
        head.set_weights([kernel, np.full_like(bias, (-1e4, 1e4)[hundred % 2])])
        history = vae.fit(np.tile(saturated, (100, 1, 1, 1)), batch_size=16, shuffle=False, verbose=0).history
        assert np.isfinite(list(history.values())).all(), (hundred, history)
        assert all(np.isfinite(weight).all() for weight in vae.get_weights())
    assert int(vae.optimizer.iterations) >= 900  # under float16 some steps are left out
    assert np.isfinite(vae.sample(8, seed=0)).all()


@pytest.mark.slow
def test_500_steps_end_within_3_percent_of_float32() -> None:
    """On the real thing: avatars at 64x64, vae-123. Batches of 16 keep it to minutes on a CPU."""
    images = data.load("avatars", 64, batch_size=16, seed=0)
    losses = {}
    for policy in POLICIES:
        keras.utils.set_random_seed(0)
        vae = VAE((64, 64, 3), 100, perceptual="hed-vgg16", seed=0, dtype=policy, **OBJECTIVES["vae-123"])
        vae.compile()
        history = vae.fit(images.train.repeat(), steps_per_epoch=100, epochs=5, shuffle=False, verbose=2).history
        assert np.isfinite(list(history.values())).all()
        losses[policy] = history["loss"][-1]
    print(losses)
    for policy in POLICIES[1:]:
        assert losses[policy] == pytest.approx(losses["float32"], rel=0.03)


def test_xla_is_off_where_bits_are_to_be_the_same() -> None:
    """TensorFlow's switch cannot be turned back: in a process of its own."""
    script = """
import tensorflow as tf
from keras_vae import VAE, InputError
tf.config.experimental.enable_op_determinism()
vae = VAE((16, 16, 3), 4, perceptual=None, network_options={"width": 4})
vae.compile(jit_compile=True)
print(vae.jit_compile, vae.xla.why)
try:
    VAE((16, 16, 3), 4, perceptual=None, network_options={"width": 4}, dtype="mixed_float16").compile()
except InputError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [
        "False off (TensorFlow computes deterministically)",
        "float16 on a CPU needs XLA, which compiles nothing while TensorFlow computes deterministically: use "
        "mixed_bfloat16 or float32",
    ]
