"""The KL's weight over a training: what the schedules set, what the logs show, and what wrong use is told."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vae import VAE, InputError
from keras_vae.model import guards, schedules

MakeVAE = Callable[..., VAE]
SHAPE = (16, 16, 3)


@pytest.fixture(scope="module")
def images(images: np.ndarray) -> np.ndarray:
    """96 avatars of 16x16."""
    return images[:, ::2, ::2]


@pytest.fixture(scope="module")
def make_vae(make_vae: MakeVAE) -> MakeVAE:
    """The same with a layer each way: a schedule is the same whatever the networks, and their graph made quickly."""

    def make(**arguments: Any) -> VAE:
        if "network_options" in arguments:
            return make_vae(**{"image_shape": SHAPE, **arguments})
        keras.utils.set_random_seed(1)
        image, z = keras.Input(SHAPE), keras.Input((8,))
        encoder = keras.Model(image, keras.layers.Dense(16)(keras.layers.Flatten()(image)))
        pixels = keras.layers.Dense(int(np.prod(SHAPE)), "sigmoid")(z)
        return make_vae(
            encoder=encoder, decoder=keras.Model(z, keras.layers.Reshape(SHAPE)(pixels)), image_shape=SHAPE, **arguments
        )

    return make


class Recorder(keras.callbacks.Callback):
    """The weight that each step trained with."""

    def __init__(self) -> None:
        super().__init__()
        self.betas: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.betas.append(self.model.beta)


def betas(vae: VAE, images: np.ndarray, schedule: keras.callbacks.Callback, epochs: int = 2) -> list[float]:
    recorder = Recorder()
    history = vae.fit(images[:48], batch_size=8, epochs=epochs, callbacks=[schedule, recorder], verbose=0).history
    assert history["beta"][-1] == pytest.approx(recorder.betas[-1], rel=1e-6)
    return recorder.betas


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (schedules.LinearWarmup(4), [0, 0.5, 1, 1.5, 2, 2, 2, 2, 2, 2, 2, 2]),
        (schedules.LinearWarmup(4, start=1.0, end=0.0), [1, 0.75, 0.5, 0.25, 0, 0, 0, 0, 0, 0, 0, 0]),
        (schedules.CosineWarmup(4, end=1.0), [(1 - math.cos(math.pi * i / 4)) / 2 for i in range(4)] + [1.0] * 8),
        (schedules.CyclicalAnnealing(8, cycles=2), [0, 1, 2, 2, 0, 1, 2, 2, 2, 2, 2, 2]),
    ],
)
def test_schedules(
    make_vae: MakeVAE, images: np.ndarray, schedule: keras.callbacks.Callback, expected: list[float]
) -> None:
    assert betas(make_vae(beta=2.0), images, schedule) == pytest.approx(expected)


def test_a_schedule_goes_on_where_training_stopped(make_vae: MakeVAE, images: np.ndarray) -> None:
    vae = make_vae(beta=2.0)
    first = betas(vae, images, schedules.LinearWarmup(12), epochs=1)
    second = betas(vae, images, schedules.LinearWarmup(12), epochs=1)
    assert first + second == pytest.approx([2 * step / 12 for step in range(12)])


def test_the_weight_is_the_one_the_loss_has(make_vae: MakeVAE, images: np.ndarray) -> None:
    vae = make_vae(beta=3.0)
    vae.beta = 0.5
    logs = vae.evaluate(images[:16], verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(logs["reconstruction"] + 0.5 * logs["kl"], rel=1e-5)


def test_the_weight_is_saved(make_vae: MakeVAE, tmp_path: Any) -> None:
    vae = make_vae(beta=3.0)
    vae.beta = 0.5
    vae.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras")
    assert (loaded.beta, loaded.initial_beta) == (0.5, 3.0)


@pytest.mark.slow
def test_target_kl_is_reached_from_both_sides(make_vae: MakeVAE, images: np.ndarray) -> None:
    for beta in (0.05, 20.0):
        vae = make_vae(image_shape=(16, 16, 3), beta=beta, network_options={"width": 8})
        target = schedules.TargetKL(12.0, gain=0.05)
        # It swings past the target once, then settles.
        kl = vae.fit(images, batch_size=16, epochs=70, callbacks=[target], verbose=0).history["kl"]
        assert np.mean(kl[-10:]) == pytest.approx(12.0, rel=0.1)


def test_a_target_that_cannot_be_reached(make_vae: MakeVAE, images: np.ndarray) -> None:
    vae = make_vae(free_bits=0.5)
    with pytest.raises(InputError, match="8 latents leave 4 uncharged"):
        vae.fit(images[:16], callbacks=[schedules.TargetKL(4.0)], verbose=0)
    vae = make_vae()
    vae.kl_schedule = schedules.TargetKL(4.0, gain=1.0)
    for kl, bound in ((1e9, 1e6), (0.0, 1e-6)):
        for _ in range(100):
            vae.note_kl(keras.ops.convert_to_tensor(kl))
        assert vae.beta == pytest.approx(bound)


@pytest.mark.slow
def test_a_step_that_is_left_out_changes_no_weight(
    make_vae: MakeVAE, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "steps_between_looks", lambda: 50)
    good, bad = images[:8], np.full_like(images[:8], np.nan)
    found = []
    for batches, expected in (([good, good], nullcontext()), ([good, bad, good], pytest.raises(InputError))):
        for schedule in (schedules.TargetKL(4.0, gain=1.0), schedules.LinearWarmup(7, start=0.5)):
            vae = make_vae()
            with expected:
                vae.fit(tf.data.Dataset.from_tensor_slices(np.stack(batches)), callbacks=[schedule], verbose=0)
            found.append(vae.beta)
    assert found[:2] == pytest.approx(found[2:], rel=1e-5)
    assert found[1] == pytest.approx(0.5 + 0.5 / 7)


def test_a_schedule_of_ones_own(make_vae: MakeVAE, images: np.ndarray) -> None:
    class Halving(schedules.KLSchedule):
        def weight(self, step: Any, end: float) -> Any:
            return end * keras.ops.power(0.5, step)

    class Unfinished(schedules.KLSchedule):
        pass

    wrong: dict[str, Callable[[Any], Any]] = {
        "if": lambda step: 1.0 if step > 3 else 0.0,
        "math": lambda step: math.sqrt(step),
        "NumPy": lambda step: np.minimum(step / 10, 1.0),
        "numpy()": lambda step: step.numpy() / 10,
        "two": lambda step: keras.ops.stack([step, step]),
        "negative": lambda step: -0.1 * keras.ops.cast(step, "float32"),
        "NaN": lambda step: keras.ops.sqrt(10.0 - keras.ops.cast(step, "float32")),
    }

    vae = make_vae()
    assert betas(vae, images, Halving(), epochs=1) == pytest.approx([0.5**step for step in range(6)])
    for name, weight in wrong.items():
        schedule = type(
            "Wrong", (schedules.KLSchedule,), {"weight": lambda self, step, end, weight=weight: weight(step)}
        )
        message = (
            "is .* give a single number" if name in ("two", "negative", "NaN") else "write weight.* with keras.ops"
        )
        with pytest.raises(InputError, match=f"^Wrong: .*{message}"):
            vae.fit(images[:8], callbacks=[schedule()], verbose=0)
    with pytest.raises(InputError, match=r"^Unfinished: write weight"):
        vae.fit(images[:8], callbacks=[Unfinished()], verbose=0)
    beta = vae.beta
    vae.fit(images[:8], verbose=0)  # without a schedule again
    vae.train_on_batch(images[:8])
    assert vae.beta == beta


def test_a_schedule_is_traced_again_only_when_its_settings_differ(make_vae: MakeVAE, images: np.ndarray) -> None:
    vae = make_vae()
    schedule = schedules.LinearWarmup(12)
    assert betas(vae, images, schedule, epochs=1) == pytest.approx([step / 12 for step in range(6)])
    traced = vae.train_function
    assert betas(vae, images, schedules.LinearWarmup(12), epochs=1)[-1] == pytest.approx(11 / 12)
    assert vae.train_function is traced
    schedule.end, schedule.steps = 3.0, 24
    assert betas(vae, images, schedule, epochs=1)[0] == pytest.approx(3 * 12 / 24)


def test_a_step_of_a_callback_leaves_the_schedule_of_fit(make_vae: MakeVAE, images: np.ndarray) -> None:
    vae = make_vae()

    def train_more(batch: int, logs: Any) -> None:
        if batch == 1:
            vae.train_on_batch(images[:8])

    more = keras.callbacks.LambdaCallback(on_train_batch_end=train_more)
    recorder = Recorder()
    vae.fit(images[:48], batch_size=8, callbacks=[schedules.LinearWarmup(6), more, recorder], verbose=0)
    assert recorder.betas == pytest.approx([0, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])  # its step counts, and was the third


def test_free_bits_charge_no_latent_less_than_its_share(make_vae: MakeVAE, images: np.ndarray) -> None:
    vae = make_vae(free_bits=0.5)
    logs = vae.evaluate(images, batch_size=96, verbose=0, return_dict=True)
    per_latent = vae.encode(images).kl_per_latent().numpy().mean(0)
    assert logs["kl"] == pytest.approx(per_latent.sum(), rel=1e-4)
    assert logs["kl_floored"] == pytest.approx(np.maximum(per_latent, 0.5).sum(), rel=1e-4)
    assert logs["loss"] == pytest.approx(logs["reconstruction"] + logs["kl_floored"], rel=1e-5)
    assert logs["elbo"] == pytest.approx(-logs["reconstruction"] - logs["kl"], rel=1e-5)


@pytest.mark.slow
def test_free_bits_keep_latents_alive(make_vae: MakeVAE, images: np.ndarray) -> None:
    """With a KL weighed so high that the posterior would collapse, each latent keeps what it may have for nothing."""
    kl = {}
    for free_bits in (0.0, 0.5):
        larger = {"image_shape": (32, 32, 3), "network_options": {"width": 8}}  # smaller ones find it later
        vae = make_vae(beta=200.0, free_bits=free_bits, likelihood="gaussian", **larger)
        vae.compile(keras.optimizers.Adam(3e-3))
        twice = images.repeat(2, axis=1).repeat(2, axis=2)
        kl[free_bits] = vae.fit(twice, batch_size=16, epochs=25, verbose=0).history["kl"][-1]
    assert kl[0.5] > 0.8 * 0.5 * 8
    assert kl[0.0] < 0.5 * kl[0.5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.LinearWarmup(0), "steps=0"),
        (lambda: schedules.LinearWarmup(5, start=-1.0), "start=-1.0"),
        (lambda: schedules.CosineWarmup(5, end=float("nan")), "end=nan"),
        (lambda: schedules.CyclicalAnnealing(5, cycles=0), "cycles=0"),
        (lambda: schedules.CyclicalAnnealing(5, rising=0.0), "rising=0.0"),
        (lambda: schedules.TargetKL(0.0), "nats=0.0"),
    ],
)
def test_unusable_schedules_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_a_model_without_beta_is_refused() -> None:
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("adam", "mse")
    for schedule in (schedules.LinearWarmup(3), schedules.TargetKL(3.0)):
        with pytest.raises(InputError, match="has none"):
            model.fit(np.zeros((4, 2)), np.zeros((4, 1)), callbacks=[schedule], verbose=0)
