"""Which precision is picked, and that each one trains."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest

from keras_vae import VAE, InputError, data, precision

MakeVAE = Callable[..., VAE]
POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")


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


@pytest.mark.parametrize("policy", POLICIES)
def test_every_precision_trains_without_nan(make_vae: MakeVAE, images: np.ndarray, policy: str) -> None:
    vae = make_vae(dtype=policy, perceptual="hed-vgg16")
    history = vae.fit(images, batch_size=32, epochs=4, verbose=0).history
    assert np.isfinite(list(history.values())).all()
    assert history["loss"][-1] < history["loss"][0]
    assert all(np.isfinite(weight).all() for weight in vae.get_weights())
    assert {weight.dtype for weight in vae.weights if "seed" not in weight.path} == {"float32"}
    assert np.isfinite(vae.sample(4, seed=0)).all()


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


@pytest.mark.slow
def test_500_steps_end_within_3_percent_of_float32() -> None:
    """On the real thing: avatars at 64x64, vae-123. Batches of 16 keep it to minutes on a CPU."""
    images = data.load("avatars", 64, batch_size=16, seed=0)
    losses = {}
    for policy in POLICIES:
        keras.utils.set_random_seed(0)
        vae = VAE((64, 64, 3), 100, perceptual="hed-vgg16", seed=0, dtype=policy)
        vae.compile()
        history = vae.fit(images.train.repeat(), steps_per_epoch=100, epochs=5, shuffle=False, verbose=2).history
        assert np.isfinite(list(history.values())).all()
        losses[policy] = history["loss"][-1]
    print(losses)
    for policy in POLICIES[1:]:
        assert losses[policy] == pytest.approx(losses["float32"], rel=0.03)
