"""What an image may be is one rule, wherever images come in; datasets are taken as Keras takes them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as some

from keras_vae import VAE, InputError, data
from keras_vae.data import image_batches
from keras_vae.model import encoding
from keras_vae.support import replicas

Dataset = tf.data.Dataset


@pytest.fixture(scope="module")
def grey(images: np.ndarray) -> np.ndarray:
    """Float32 (96, 16, 16, 1), from 0 to 1."""
    grey = np.ascontiguousarray(images[:, ::2, ::2, :1])
    return (grey - grey.min()) / (grey.max() - grey.min())


@pytest.fixture(scope="module")
def vae() -> VAE:
    keras.utils.set_random_seed(0)
    vae = VAE((16, 16, 1), 4, perceptual=None, network_options={"width": 4}, seed=1)
    vae.compile(keras.optimizers.Adam(1e-3))
    return vae


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


# The rule -----------------------------------------------------------------------------------------

AS_GIVEN: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "float32": lambda x: x,
    "float64": lambda x: x.astype(np.float64),
    "float16": lambda x: x.astype(np.float16),
    "bfloat16": lambda x: x.astype(ml_dtypes.bfloat16),
    "uint8": lambda x: np.round(255 * x).astype(np.uint8),
    "bool": lambda x: x > 0.5,
    "int64": lambda x: (x > 0.5).astype(np.int64),
}


@pytest.mark.parametrize(
    "kind",
    [each if each == "uint8" else pytest.param(each, marks=pytest.mark.slow) for each in AS_GIVEN],
)
def test_every_type_is_taken_everywhere_alike(vae: VAE, grey: np.ndarray, kind: str) -> None:
    x = AS_GIVEN[kind](grey[:32])
    as_float = x / np.float32(255) if kind == "uint8" else x.astype(np.float32)
    expected = np.asarray(vae(as_float))
    for given_ in (x, tf.constant(x), Dataset.from_tensor_slices(x).batch(8)):
        np.testing.assert_allclose(vae.predict(given_, verbose=0), expected, atol=1e-5)
        vae.evaluate(given_, verbose=0)
        vae.fit(given_, epochs=0, verbose=0)
    np.testing.assert_allclose(vae.encode(x).mean, vae.encode(as_float).mean, atol=1e-6)
    vae.train_on_batch(x)
    keras.utils.set_random_seed(0)  # the weights have moved: back to those of the fixture
    vae.set_weights(VAE((16, 16, 1), 4, perceptual=None, network_options={"width": 4}).get_weights())


WRONG: list[tuple[Callable[[np.ndarray], np.ndarray], str]] = [
    (lambda x: 255 * x, r"images range from 0 to 255: scale them to [0, 1], or pass 0..255 images as uint8"),
    (lambda x: 2 * x - 1, "images range from -1 to 1: scale them to [0, 1], as (images + 1) / 2 does"),
    (lambda x: (255 * x).astype(np.int32), "range from 0 to 255: scale them"),
    (lambda x: np.where(np.arange(96)[:, None, None, None] > 90, np.nan, x), "5 of 96 images hold NaN or infinite"),
    (lambda x: np.where(np.arange(96)[:, None, None, None] > 90, np.inf, x), "first image 91: leave them out"),
    (lambda x: x.astype(complex), "images are of type complex128: give floats in [0, 1], or 0..255 as uint8"),
    (lambda x: x.astype(str), "images are of type <U"),
    (lambda x: x.astype(object), "images are of type object"),
    (lambda x: x[..., 0], "(96, 16, 16): the channel is missing: give (batch, 16, 16, 1), as images[..., None] is"),
    (lambda x: (255 * x[..., 0]).astype(np.uint8), "the channel is missing"),
    (lambda x: x[0], "(16, 16, 1): an image without its batch"),
    (lambda x: x[:0], "an array of shape (0, 16, 16, 1) has no image in it"),
    (lambda x: np.repeat(x, 3, -1), "(96, 16, 16, 3): this model takes (batch, 16, 16, 1)"),
    (lambda x: x[:, :8], "(96, 8, 16, 1): this model takes (batch, 16, 16, 1)"),
    (lambda x: x[0, 0, 0, 0:1], "(1): give (batch, 16, 16, 1)"),
]


@pytest.mark.parametrize(("spoil", "message"), WRONG, ids=[message[:30] for _, message in WRONG])
def test_wrong_images_get_the_same_words_everywhere(
    vae: VAE, grey: np.ndarray, spoil: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    x = spoil(grey)
    said = {
        refused(lambda: vae.fit(x, verbose=0)),
        refused(lambda: vae.fit({"image": x}, verbose=0)),
        refused(lambda: vae.fit(grey, validation_data=x, verbose=0)).removeprefix("validation_data: "),
        refused(lambda: vae.fit(grey, validation_data=(x, x), verbose=0)).removeprefix("validation_data: "),
        refused(lambda: vae.evaluate(x, verbose=0)),
        refused(lambda: vae.predict(x, verbose=0)),
        refused(lambda: vae.encode(x)),
        refused(lambda: vae.train_on_batch(x)),
    }
    assert len(said) == 1
    assert message in said.pop()


@pytest.mark.parametrize("index", [0, 1, 3, 4, 5, 6, 11])
def test_load_has_the_same_words_but_takes_grey_without_its_channel(grey: np.ndarray, index: int) -> None:
    spoil, _ = WRONG[index]
    x = spoil(grey)
    with pytest.raises(InputError) as expected:
        image_batches.check(x)
    assert str(expected.value) in refused(lambda: data.load(x, batch_size=8))


def test_load_takes_every_type_alike(grey: np.ndarray) -> None:
    binary = (grey > 0.5).astype(np.float32)
    expected = next(iter(data.load(binary, batch_size=8, seed=1).train))
    for kind in ("float64", "bfloat16", "bool", "int64", "uint8"):
        x = AS_GIVEN[kind](binary)
        np.testing.assert_array_equal(next(iter(data.load(x, batch_size=8, seed=1).train)), expected)


@settings(deadline=None, max_examples=40)
@given(
    values=some.lists(some.floats(0, 1, width=32), min_size=4, max_size=4),
    wrong=some.one_of(
        some.none(), some.floats(1.01, 1e30), some.floats(-1e30, -0.01), some.sampled_from([np.nan, np.inf, -np.inf])
    ),
    place=some.integers(0, 3),
)
def test_every_value_is_looked_at(values: list[float], wrong: float | None, place: int) -> None:
    x = np.array(values, np.float64).reshape(1, 2, 2, 1)
    if wrong is None:
        image_batches.check(x)
        assert image_batches.in_range(*tf.unstack(image_batches.summary(tf.constant(x, tf.float32))))
        return
    x.flat[place] = wrong
    for each in (x, x.astype(np.float32), tf.constant(x, tf.float32)):
        with pytest.raises(InputError):
            image_batches.check(each)
    assert not image_batches.in_range(*tf.unstack(image_batches.summary(tf.constant(x, tf.float32))))


# Datasets -----------------------------------------------------------------------------------------


def png_files(grey: np.ndarray) -> Dataset:
    """Read in a map: their shape is not known before, not even how many axes they have."""
    files = [tf.io.encode_png(np.round(255 * image).astype(np.uint8)).numpy() for image in grey]
    return Dataset.from_tensor_slices(files).map(tf.io.decode_png)


def from_python(*batches: np.ndarray) -> Dataset:
    """Batches that a Python function gives: TensorFlow knows nothing of them."""
    return Dataset.range(len(batches)).map(
        lambda number: tf.numpy_function(lambda index: batches[index], [number], tf.float32)
    )


def test_load_of_files_that_are_decoded_in_a_map(grey: np.ndarray) -> None:
    loaded = data.load(png_files(grey), image_size=16, batch_size=8)
    assert loaded.image_shape == (16, 16, 1)
    assert loaded.train_size + loaded.test_size == 96
    broken = Dataset.from_tensor_slices([b"no image"]).map(tf.io.decode_png)
    assert "fails at its first image" in refused(lambda: data.load(broken, batch_size=8))
    assert "is empty" in refused(lambda: data.load(png_files(grey).take(0), batch_size=8))


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_datasets_without_static_shapes(grey: np.ndarray, jit_compile: bool) -> None:
    vae = VAE((16, 16, 1), 4, perceptual=None, network_options={"width": 4}, seed=1)
    vae.compile(keras.optimizers.Adam(1e-4), jit_compile=jit_compile)
    png = png_files(grey[:32])
    expected = vae.evaluate(np.round(255 * grey[:32]).astype(np.uint8), batch_size=8, verbose=0, return_dict=True)
    for dataset in (
        png.batch(8),
        Dataset.zip((png, Dataset.range(32))).batch(8),
        png.map(lambda image: {"image": image, "label": 3}).batch(8),
    ):
        found = vae.evaluate(dataset, verbose=0, return_dict=True)
        assert found == pytest.approx(expected, rel=1e-5)
    assert vae.predict(png.batch(8), verbose=0).shape == (32, 16, 16, 1)
    fours = from_python(grey[:8], grey[8:16])
    history = vae.fit(fours, epochs=2, validation_data=png.batch(8), verbose=0).history
    assert len(history["val_loss"]) == 2
    # A size that is known only when it is there, and one that is known before, are named alike, and after a `fit` too.
    for wrong in (from_python(grey[:8], grey[:8, :8]), Dataset.from_tensor_slices(grey[:16, :8]).batch(8)):
        said = refused(lambda wrong=wrong: vae.fit(wrong, verbose=0))
        assert "8, 16, 1): this model takes (batch, 16, 16, 1)" in said
    assert "in batch 2" in refused(lambda: vae.fit(from_python(grey[:8], 255 * grey[:8]), verbose=0))


def test_datasets_without_end_or_beginning(vae: VAE, grey: np.ndarray) -> None:
    endless = Dataset.from_tensor_slices(grey).batch(8).repeat()
    none = Dataset.from_tensor_slices(grey[:0]).batch(8)
    nobody_knows = endless.take(3).filter(lambda batch: tf.reduce_sum(batch) < 0)
    assert "give steps_per_epoch=..., or leave out .repeat()" in refused(lambda: vae.fit(endless, verbose=0))
    assert "give validation_steps=..." in refused(lambda: vae.fit(grey, validation_data=endless, verbose=0))
    assert "give steps=..." in refused(lambda: vae.evaluate(endless, verbose=0))
    assert "give steps=..." in refused(lambda: vae.predict(endless, verbose=0))
    assert vae.fit(endless, steps_per_epoch=1, validation_data=endless, validation_steps=1, verbose=0).history
    assert vae.evaluate(endless, steps=1, verbose=0)
    assert len(vae.predict(endless, steps=1, verbose=0)) == 8
    for empty in (none, nobody_knows):
        for call in (
            lambda empty=empty: vae.fit(empty, verbose=0),
            lambda empty=empty: vae.fit(grey, validation_data=empty, verbose=0),
            lambda empty=empty: vae.fit(empty, validation_data=grey, verbose=0),
            lambda empty=empty: vae.evaluate(empty, verbose=0),
            lambda empty=empty: vae.predict(empty, verbose=0),
        ):
            assert "the dataset is empty" in refused(call)


class Batches(keras.utils.PyDataset):
    def __init__(self, images: np.ndarray) -> None:
        super().__init__()
        self.images = images

    def __len__(self) -> int:
        return len(self.images) // 8

    def __getitem__(self, index: int) -> np.ndarray:
        return self.images[8 * index : 8 * index + 8]


def test_what_else_keras_takes(vae: VAE, grey: np.ndarray) -> None:
    def generator(images: np.ndarray) -> Iterator[Any]:
        for start in range(0, len(images), 8):
            yield (images[start : start + 8],)

    vae.fit(Batches(grey[:32]), verbose=0)
    vae.fit(generator(grey[:32]), verbose=0)
    assert "in batch 2" in refused(
        lambda: vae.fit(Batches(np.concatenate([grey[:8], -grey[:24]])), shuffle=False, verbose=0)
    )
    assert "this model takes" in refused(lambda: vae.fit(generator(grey[:32, :8]), verbose=0))
    assert "must yield tuples" in refused(lambda: vae.fit((each for each in [grey[:8]]), verbose=0))
    for images in (list(grey[:8]), tf.Variable(grey[:8]), {"image": list(grey[:8])}):
        vae.evaluate(images, verbose=0)
        vae.fit(images, epochs=0, verbose=0)
        np.testing.assert_allclose(vae.encode(images).mean, vae.encode(grey[:8]).mean, atol=1e-6)
    vae.fit(grey[:8], validation_data=[grey[:8], None], verbose=0)
    for wrong in ([grey[0], grey[0, :8]], tf.RaggedTensor.from_row_lengths([1.0], [1]), np.float32(1)):
        for call in (vae.fit, vae.encode, vae.predict):
            refused(lambda call=call, wrong=wrong: call(wrong))
    assert "range from" in refused(lambda: vae(255 * grey))
    assert "takes images and labels apart" in refused(lambda: vae.fit((grey, grey), verbose=0))
    assert "different shapes" in refused(lambda: vae.encode([grey[0], grey[0, :8]]))
    with pytest.raises(InputError, match=r"images range from .* to 255: scale them"):
        encoding.encode(vae, [255 * grey[:8]])
    assert "images come as an array" in refused(lambda: vae.fit("photos", verbose=0))
    ragged = Dataset.from_tensor_slices(tf.ragged.stack([tf.constant(each) for each in grey[:8]])).batch(4)
    assert "RaggedTensors: give tensors of one size" in refused(lambda: vae.fit(ragged, verbose=0))
    assert "of type <dtype: 'string'>" in refused(lambda: vae.fit(Dataset.from_tensors([["a"]]), verbose=0))


# Before `compile`, and refusals ----------------------------------------------------------------


def test_fit_and_evaluate_before_compile(grey: np.ndarray) -> None:
    vae = VAE((16, 16, 1), 4, perceptual=None, network_options={"width": 4})
    for call in (vae.fit, vae.evaluate, vae.train_on_batch):
        assert "call vae.compile() first" in refused(lambda call=call: call(grey))
    assert vae.predict(grey, verbose=0).shape == grey.shape


def test_a_refused_compile_changes_nothing(vae: VAE, grey: np.ndarray, tmp_path: Any) -> None:
    other = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    taken = keras.optimizers.Adam()
    taken.build(other.trainable_variables)
    before, optimizer = vae.get_compile_config(), vae.optimizer
    for call, message in [
        (lambda: vae.compile("adam", loss="mse"), "brings its own loss"),
        (lambda: vae.compile("adamant"), "unknown optimizer 'adamant'"),
        (lambda: vae.compile(3), "unknown optimizer 3"),
        (lambda: vae.compile("adam", jit="yes"), "compile takes no jit"),
        (lambda: vae.compile("adam", jit_compile="sometimes"), "give True, False or 'auto'"),
        (lambda: vae.compile(taken), "of another model or before some were frozen"),
        (lambda: vae.compile({"a": 1}), "unknown optimizer"),
        *(
            (lambda count=count: vae.compile("adam", steps_per_execution=count), "whole number")
            for count in (0, -1, "a")
        ),
    ]:
        assert message in refused(call)
        assert vae.optimizer is optimizer
        assert vae.get_compile_config() == before
    half = VAE((16, 16, 1), 4, perceptual=None, network_options={"width": 4}, dtype="mixed_float16")
    half.compile("adam")
    scale = half.get_compile_config()
    assert "float16 on a CPU" in refused(lambda: half.compile("sgd", jit_compile=False))
    assert "float16 on a CPU" in refused(lambda: half.compile("sgd", run_eagerly=True))
    assert half.get_compile_config() == scale
    for index, model in enumerate((vae, half)):
        model.save(tmp_path / f"{index}.keras")
        assert keras.saving.load_model(tmp_path / f"{index}.keras").optimizer.name == model.optimizer.name


def test_refused_weights_change_nothing(vae: VAE, grey: np.ndarray, tmp_path: Any) -> None:
    larger = VAE((16, 16, 1), 5, perceptual=None, network_options={"width": 4})
    larger.save_weights(tmp_path / "larger.weights.h5")
    vae.save_weights(tmp_path / "own.weights.h5")
    (tmp_path / "cut.weights.h5").write_bytes((tmp_path / "own.weights.h5").read_bytes()[:3000])
    vae.train_on_batch(grey[:8])
    before = [np.array(each) for each in (*vae.variables, *vae.optimizer.variables)]
    for name in ("larger", "cut", "absent"):
        assert "the model is as it was" in refused(lambda name=name: vae.load_weights(tmp_path / f"{name}.weights.h5"))
        for one, now in zip(before, (*vae.variables, *vae.optimizer.variables), strict=True):
            np.testing.assert_array_equal(one, np.array(now))
    vae.load_weights(tmp_path / "own.weights.h5")


def test_weights_of_a_model_that_does_not_average_begin_the_averages(grey: np.ndarray, tmp_path: Any) -> None:
    models = []
    for ema in (False, True):
        model = VAE((16, 16, 1), 4, perceptual=None, network_options={"width": 4}, seed=1)
        model.compile(keras.optimizers.Adam(1e-3, use_ema=ema))
        models.append(model)
    plain, averaging = models
    plain.fit(grey[:32], verbose=0)
    plain.save_weights(tmp_path / "plain.weights.h5")
    averaging.load_weights(tmp_path / "plain.weights.h5")
    np.testing.assert_array_equal(averaging.predict(grey[:4], verbose=0), plain.predict(grey[:4], verbose=0))
    for variable, average in averaging.averaging.statistics_pairs():
        np.testing.assert_array_equal(np.array(variable), np.array(average))


def test_a_model_with_nothing_to_train(grey: np.ndarray) -> None:
    model = VAE((16, 16, 1), 4, perceptual="none", network_options={"width": 4})
    model.trainable = False
    model.compile("adam")
    assert "no weight is trainable" in refused(lambda: model.fit(grey, verbose=0))


# Evaluation's noise -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"likelihood": "gaussian"},
        pytest.param({"likelihood": "bernoulli", "dtype": "mixed_bfloat16"}, marks=pytest.mark.slow),
        pytest.param({"likelihood": "gaussian", "jit_compile": True}, marks=pytest.mark.slow),
    ],
    ids=["float32", "bfloat16", "XLA"],
)
def test_evaluation_does_not_depend_on_the_batch(grey: np.ndarray, options: dict[str, Any]) -> None:
    options = dict(options)
    compiled = {"jit_compile": options.pop("jit_compile")} if "jit_compile" in options else {}
    keras.utils.set_random_seed(0)
    vae = VAE((16, 16, 1), 4, perceptual=None, network_options={"width": 4}, seed=1, **options)
    vae.compile(keras.optimizers.Adam(1e-2), **compiled)
    vae.fit(grey, batch_size=32, epochs=3, verbose=0)
    tolerance = 1e-3 if options.get("dtype") else 1e-5
    x = np.concatenate([grey, grey[:5]])  # 101 of them
    found = [vae.evaluate(x, batch_size=size, verbose=0, return_dict=True) for size in (1, 7, 32, 101)]
    for each in found[1:]:
        assert each == pytest.approx(found[0], rel=tolerance)
    if not compiled:
        odd = Dataset.from_tensor_slices(x).batch(10)
        history = vae.fit(grey, epochs=1, initial_epoch=0, validation_data=odd, verbose=0).history
        again = vae.evaluate(x, batch_size=64, verbose=0, return_dict=True)
        assert {name: history[f"val_{name}"][-1] for name in again} == pytest.approx(again, rel=tolerance)


def test_noise_by_place_is_standard_normal_and_the_same_everywhere() -> None:
    stats = pytest.importorskip("scipy.stats")
    whole = replicas.NoiseByPlace(7).draw((20_000, 10)).numpy()
    assert np.isfinite(whole).all()
    assert stats.kstest(whole.ravel(), "norm").pvalue > 0.01
    assert np.abs(np.corrcoef(whole.T) - np.eye(10)).max() < 0.03
    assert abs(np.corrcoef(whole[:-1].ravel(), whole[1:].ravel())[0, 1]) < 0.01  # neighbours in the data
    assert not np.array_equal(whole[:5], replicas.NoiseByPlace(8).draw((5, 10)).numpy())
    for jit_compile in (False, True):
        noise = replicas.NoiseByPlace(7)
        draw = tf.function(noise.draw, jit_compile=jit_compile)
        parts = [draw((rows, 10)).numpy() for rows in (1, 7, 64, 3)]
        np.testing.assert_allclose(np.concatenate(parts), whole[:75], rtol=1e-5, atol=1e-6)
        noise.begin()
        np.testing.assert_array_equal(draw((1, 10)).numpy(), parts[0])


def test_a_seed_gives_the_same_noise_in_another_process() -> None:
    script = "from keras_vae.support import replicas; print(replicas.NoiseByPlace(3).draw((2, 3)).numpy().tolist())"
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    np.testing.assert_array_equal(eval(done.stdout), replicas.NoiseByPlace(3).draw((2, 3)).numpy().astype(float))
