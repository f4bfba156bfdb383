"""A step that is not to be followed leaves the model as it was, bit for bit, and is reported, under XLA too."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_vae import VAE, InputError
from keras_vae.model import guards
from keras_vae.support.errors import NotFiniteError

SHAPE = (8, 8, 3)
MODES: dict[str, dict[str, Any]] = {
    "float32": {},
    "eager": {"run_eagerly": True},
    "bfloat16": {"dtype": "mixed_bfloat16"},
    "float32 XLA": {"jit_compile": True},
    "bfloat16 XLA": {"dtype": "mixed_bfloat16", "jit_compile": True},
    "float16": {"dtype": "mixed_float16"},
}


@pytest.fixture
def batch(images: np.ndarray) -> np.ndarray:
    """8 avatars of 8x8, from 0 to 1."""
    batch = images[:8, ::4, ::4]
    return (batch - batch.min()) / (batch.max() - batch.min())


def small(dtype: str = "float32", ema: bool = True, **options: Any) -> VAE:
    """A model with all that a step moves: weights, moments, moving statistics, a calibrated variance, averages."""
    keras.utils.set_random_seed(0)
    image = keras.Input(SHAPE)
    x = layers.BatchNormalization(dtype=dtype)(layers.Conv2D(4, 3, 2, dtype=dtype)(image))
    encoder = keras.Model(image, layers.Dense(8, dtype="float32")(layers.Flatten(dtype=dtype)(x)))
    z = keras.Input((4,))
    x = layers.BatchNormalization(dtype=dtype)(layers.Dense(192, dtype=dtype)(z))
    decoder = keras.Model(z, layers.Reshape(SHAPE)(layers.Activation("sigmoid", dtype="float32")(x)))
    vae = VAE(SHAPE, 4, perceptual=None, encoder=encoder, decoder=decoder, seed=0, dtype=dtype)
    vae.compile(keras.optimizers.Adam(1e-3, use_ema=ema), **options)
    return vae


def state(vae: VAE) -> dict[str, np.ndarray]:
    """Weights, statistics, the optimizer's variables, averages."""
    named = [*vae.weights, *vae.optimizer.variables, *vae.likelihood.weights]
    found = {f"{index} {each.path}": np.array(each) for index, each in enumerate(named)}
    averages = vae.averaging.variables
    return found | {f"average {index}": np.array(each) for index, each in enumerate(averages)}


def dataset(*batches: np.ndarray) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(np.stack(batches))


def with_nan(batch: np.ndarray) -> np.ndarray:
    batch = batch.copy()
    batch[3, 2, 1, 0] = np.nan
    return batch


def nothing_but_nan(batch: np.ndarray) -> np.ndarray:
    return np.full_like(batch, np.nan)


FAULTS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "a NaN pixel": (with_nan, "^images hold NaN or infinite values in batch 1: leave those images out$"),
    "nothing but NaN": (nothing_but_nan, "^images hold NaN or infinite values in batch 1: leave those images out$"),
    "0..255": (lambda x: 255 * x, r"^images range from 0 to 255 in batch 1: scale them to \[0, 1\], or pass"),
    "-1..1": (lambda x: 2 * x - 1, r"^images range from -1 to 1 in batch 1: .*\(images \+ 1\) / 2"),
}


@pytest.mark.parametrize(
    "mode",
    [pytest.param(mode, marks=pytest.mark.slow) if mode in ("bfloat16", "float32 XLA") else mode for mode in MODES],
)
def test_a_bad_step_leaves_everything_as_it_was(mode: str, batch: np.ndarray) -> None:
    vae = small(**MODES[mode])
    vae.fit(dataset(batch, batch), epochs=2, verbose=0)
    before = state(vae)
    assert len(before) > 40
    for name, (spoil, message) in FAULTS.items():
        for method in (vae.fit, vae.evaluate, vae.predict):
            with pytest.raises(InputError, match=message if mode != "eager" else "images"):
                method(dataset(spoil(batch)), verbose=0)
        with pytest.raises(InputError, match=message.replace("batch 1", "batch 2") if mode != "eager" else "images"):
            vae.evaluate(dataset(batch, spoil(batch)), verbose=0)
        for (path, one), other in zip(before.items(), state(vae).values(), strict=True):
            np.testing.assert_array_equal(one, other, err_msg=f"{name}: {path}")
    vae.beta_variable.assign(np.nan)
    with pytest.raises(NotFiniteError, match=r"^step 5: loss is nan in \w+; the step was left out: give a lower"):
        vae.fit(dataset(batch), verbose=0)
    vae.beta_variable.assign(1.0)
    for (path, one), other in zip(before.items(), state(vae).values(), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=path)
    history = vae.fit(dataset(batch), verbose=0).history  # and it goes on
    assert np.isfinite(history["loss"]).all()
    assert any((one != other).any() for one, other in zip(before.values(), state(vae).values(), strict=True))


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_where_looks_are_rare_a_bad_step_among_good_ones_is_reported(
    monkeypatch: pytest.MonkeyPatch, batch: np.ndarray, jit_compile: bool
) -> None:
    """As on a GPU, where a look waits for the device."""
    monkeypatch.setattr(guards, "steps_between_looks", lambda: 50)
    vae = small(jit_compile=jit_compile)
    with pytest.raises(InputError, match=r"NaN or infinite values in batch 2: "):
        vae.fit(dataset(batch, with_nan(batch), batch, batch), epochs=3, verbose=0)
    assert int(vae.optimizer.iterations) == 3  # the rest of the epoch
    assert all(np.isfinite(each).all() for each in state(vae).values())
    many = [batch] * 120
    many[57] = 255 * batch
    with pytest.raises(InputError, match=r"range from 0 to 255 in batch 58: "):
        vae.fit(dataset(*many), verbose=0)
    assert 3 + 57 <= int(vae.optimizer.iterations) < 3 + 57 + 50
    with pytest.raises(InputError, match="in batch 2"):
        vae.fit(dataset(batch), validation_data=dataset(batch, -batch, batch), verbose=0)
    with pytest.raises(InputError, match="in batch 3"):
        vae.predict(dataset(batch, batch, -batch, batch), verbose=0)


def test_where_looks_are_rare_figures_of_a_batch_stay_on_the_device(
    monkeypatch: pytest.MonkeyPatch, batch: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    """Keras makes numbers of them after each step, and waits for a GPU so often."""
    found: list[Any] = []
    note = keras.callbacks.LambdaCallback(on_train_batch_end=lambda number, logs: found.append(logs["loss"]))
    histories = []
    for steps in (1, 50):
        monkeypatch.setattr(guards, "steps_between_looks", lambda steps=steps: steps)
        histories.append(small().fit(dataset(batch, batch), epochs=2, validation_data=dataset(batch), callbacks=note))
        assert "2/2" in capsys.readouterr().out  # the bar knows how many there are
    numbers, tensors = found[:4], found[4:]
    assert all(isinstance(each, float) for each in numbers)
    assert all(tf.is_tensor(each) for each in tensors)
    assert [float(each) for each in tensors] == pytest.approx(numbers)
    one, other = (each.history for each in histories)
    assert one.keys() == other.keys()
    assert all(other[name] == pytest.approx(one[name]) for name in one)
    history = small().fit(batch, batch_size=2, validation_split=0.25, verbose=2).history
    assert "3/3" in capsys.readouterr().out
    assert isinstance(history["val_loss"][0], float)


def test_an_epochs_figures_are_not_written_down_where_a_step_was_left_out(batch: np.ndarray) -> None:
    written: list[Any] = []
    vae = small()
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: written.append(logs))
    for callbacks in ([note], keras.callbacks.CallbackList([note], model=vae)):
        with pytest.raises(InputError):
            vae.fit(dataset(with_nan(batch)), callbacks=callbacks, verbose=0)
        assert not written
    assert len(callbacks.callbacks) == 1  # ours is gone from the user's list


def test_steps_of_ones_own_loop(batch: np.ndarray) -> None:
    vae = small()
    before = state(vae)
    for method in (vae.train_on_batch, vae.test_on_batch, vae.predict_on_batch):
        with pytest.raises(InputError, match="1 of 8 images hold NaN or infinite values, first image 3"):
            method(with_nan(batch))
    for one, other in zip(before.values(), state(vae).values(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.isfinite(vae.train_on_batch(batch)).all()
    assert vae.predict_on_batch(batch).shape == (8, *SHAPE)


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_with_a_bad_batch_is_the_one_without(
    monkeypatch: pytest.MonkeyPatch, batch: np.ndarray, jit_compile: bool
) -> None:
    """Whatever a forward pass moves is as it was, noise and the kernel of SpectralNormalization too."""
    monkeypatch.setattr(guards, "steps_between_looks", lambda: 50)
    runs = []
    for batches in ([batch, batch[::-1], batch], [batch, with_nan(batch), batch[::-1], -batch, batch]):
        keras.utils.set_random_seed(0)
        image, z = keras.Input(SHAPE), keras.Input((4,))
        x = layers.Dropout(0.3, seed=1)(layers.Flatten()(image))
        encoder = keras.Model(image, layers.SpectralNormalization(layers.Dense(8))(x))
        x = layers.BatchNormalization()(layers.Dense(192)(z))
        decoder = keras.Model(z, layers.Reshape(SHAPE)(layers.Activation("sigmoid")(x)))
        vae = VAE(SHAPE, 4, perceptual=None, encoder=encoder, decoder=decoder, seed=0)
        vae.compile(keras.optimizers.Adam(1e-2), jit_compile=jit_compile)
        with nullcontext() if len(batches) == 3 else pytest.raises(InputError, match="in batch 2"):
            vae.fit(dataset(*batches), verbose=0)
        variables = [*vae.variables, *vae.optimizer.variables, vae.train_noise.state]
        metrics = {id(each) for metric in vae.metrics for each in metric.variables}
        runs.append([(each.path, np.array(each)) for each in variables if id(each) not in metrics])
    for (path, one), (_, other) in zip(*runs, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=path)


def test_a_loss_that_a_layer_adds_counts_too(batch: np.ndarray) -> None:
    class Adds(layers.Layer):
        def call(self, x: Any) -> Any:
            self.add_loss(keras.ops.stop_gradient(keras.ops.log(-keras.ops.mean(keras.ops.square(x)))))
            return x

    image, z = keras.Input(SHAPE), keras.Input((4,))
    encoder = keras.Model(image, layers.Dense(8)(Adds()(layers.Flatten()(image))))
    decoder = keras.Model(z, layers.Reshape(SHAPE)(layers.Dense(192, "sigmoid")(z)))
    vae = VAE(SHAPE, 4, perceptual=None, encoder=encoder, decoder=decoder)
    vae.compile("adam")
    before = state(vae)
    with pytest.raises(NotFiniteError, match="step 1: a loss that a layer added is not finite"):
        vae.fit(dataset(batch), verbose=0)
    for one, other in zip(before.values(), state(vae).values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_refused_validation_names_itself_and_leaves_averaged_weights_alone(batch: np.ndarray) -> None:
    vae = small()
    vae.fit(dataset(batch, batch), epochs=3, verbose=0)
    before = state(vae)
    swap = keras.callbacks.SwapEMAWeights()
    with pytest.raises(InputError, match=r"^images hold NaN"):
        vae.evaluate(dataset(with_nan(batch)), callbacks=[swap], verbose=0)
    for (path, one), other in zip(before.items(), state(vae).values(), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=path)
    for wrong in (dataset(batch, with_nan(batch)), with_nan(batch), (with_nan(batch), None)):
        with pytest.raises(InputError, match=r"^validation_data: .* NaN"):
            vae.fit(dataset(batch), validation_data=wrong, verbose=0)
    with pytest.raises(InputError, match=r"^images hold NaN"):
        vae.fit(dataset(with_nan(batch)), validation_data=batch, verbose=0)


def test_a_batch_without_an_image_is_named(batch: np.ndarray) -> None:
    vae = small()
    spec = tf.TensorSpec((None, *SHAPE))
    for method in (vae.fit, vae.evaluate, vae.predict):
        uneven = tf.data.Dataset.from_generator(lambda: iter([batch, batch[:0], batch]), output_signature=spec)
        with pytest.raises(InputError, match="there is no image in batch 2: leave out batches that are empty"):
            method(uneven, verbose=0)


class Overflows(layers.Layer):
    """The identity, whose gradient no number holds."""

    def call(self, x: Any) -> Any:
        return x + 0.0 * keras.ops.sqrt(keras.ops.cast(x - keras.ops.stop_gradient(x), "float32"))


def test_gradients_that_no_scale_helps_are_reported_over_short_epochs_too(batch: np.ndarray) -> None:
    z = keras.Input((4,))
    x = layers.Dense(192, dtype="mixed_float16")(Overflows(dtype="float32")(z))
    decoder = keras.Model(z, layers.Reshape(SHAPE)(layers.Activation("sigmoid", dtype="float32")(x)))
    image = keras.Input(SHAPE)
    encoder = keras.Model(image, layers.Dense(8, dtype="float32")(layers.Flatten()(image)))
    vae = VAE(SHAPE, 4, perceptual=None, encoder=encoder, decoder=decoder, dtype="mixed_float16")
    vae.compile("adam")
    weights = [np.array(each) for each in vae.weights]
    refused = pytest.raises(NotFiniteError, match=r"the gradient is (NaN|infinite) in mixed_float16")
    with refused:
        vae.fit(dataset(*[batch] * 5), epochs=8, validation_data=dataset(batch), verbose=0)
    vae.compile("adam")
    for _ in range(25):
        vae.train_on_batch(batch)  # a scale may have to be lowered so often
    with refused:
        vae.train_on_batch(batch)
    assert int(vae.optimizer.iterations) == 0
    for one, other in zip(weights, vae.weights, strict=True):
        np.testing.assert_array_equal(one, np.array(other))


def test_predict_within_fit_does_not_make_it_forget(monkeypatch: pytest.MonkeyPatch, batch: np.ndarray) -> None:
    monkeypatch.setattr(guards, "steps_between_looks", lambda: 50)
    vae = small()
    peek = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch_number, logs: vae.predict(batch, verbose=0))
    with pytest.raises(InputError, match="in batch 3"):
        vae.fit(dataset(batch, batch, with_nan(batch), batch), callbacks=[peek], verbose=0)


def test_looks_count_steps_not_executions(monkeypatch: pytest.MonkeyPatch, batch: np.ndarray) -> None:
    monkeypatch.setattr(guards, "steps_between_looks", lambda: 50)
    vae = small(steps_per_execution=20)
    with pytest.raises(InputError, match="in batch 25"):
        vae.fit(dataset(*[batch] * 24, with_nan(batch), *[batch] * 200), verbose=0)
    assert int(vae.optimizer.iterations) < 100


def test_steps_per_execution(batch: np.ndarray) -> None:
    vae = small(steps_per_execution=4)
    with pytest.raises(InputError, match="in batch 3"):
        vae.fit(dataset(*[batch] * 2, with_nan(batch), *[batch] * 5), verbose=0)
    assert all(np.isfinite(each).all() for each in state(vae).values())
    assert int(vae.optimizer.iterations) == 3
