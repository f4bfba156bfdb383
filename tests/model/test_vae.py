"""The VAE as a Keras model: everything a Keras user does with one."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_vae
from keras_vae import OBJECTIVES, VAE, InputError, PerceptualLoss
from keras_vae.data import pipelines
from keras_vae.export.runtime import Generator
from keras_vae.model.distributions import Bernoulli, Gaussian
from keras_vae.model.schedules import LinearWarmup, TargetKL
from keras_vae.support import replicas

MakeVAE = Callable[..., VAE]
METRICS = {"loss", "elbo", "reconstruction", "kl", "active_units", "beta"}
SHAPE = (16, 16, 3)


@pytest.fixture(scope="module")
def images(images: np.ndarray) -> np.ndarray:
    """96 avatars of 16x16."""
    return images[:, ::2, ::2]


@pytest.fixture(scope="module")
def make_vae(make_vae: MakeVAE) -> MakeVAE:
    """The same with narrow networks of images of 16x16: what takes long is their graph, which has fewer layers."""
    return lambda **arguments: make_vae(**{"image_shape": SHAPE, "network_options": {"width": 4}, **arguments})


@pytest.fixture(scope="module")
def make_dense(make_vae: MakeVAE) -> MakeVAE:
    """The same of one layer each way and a normalization, for what the networks are all one to.

    Its graph is made in a third of the time.
    """

    def make(**arguments: object) -> VAE:
        keras.utils.set_random_seed(2)
        image, z = keras.Input(SHAPE), keras.Input((8,))
        encoder = keras.Model(image, keras.layers.Dense(16)(keras.layers.Flatten()(image)))
        x = keras.layers.BatchNormalization()(keras.layers.Dense(int(np.prod(SHAPE)))(z))
        decoder = keras.Model(z, keras.layers.Reshape(SHAPE)(keras.layers.Activation("sigmoid")(x)))
        return make_vae(encoder=encoder, decoder=decoder, network_options=None, **arguments)

    return make


def weights_of(model: keras.Model) -> list[np.ndarray]:
    return [np.array(weight) for weight in model.get_weights()]


def assert_same_weights(first: keras.Model, second: keras.Model) -> None:
    # Adam divides a gradient by its own size: where it is near zero, rounding in its last place moves a weight by up to
    # a step (1e-3). So all but a few weights are the same, and those few no more than a step apart. The last KL,
    # among them, has that many nats.
    one, other = (np.concatenate([weight.ravel() for weight in weights_of(model)]) for model in (first, second))
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)
    assert np.mean(~np.isclose(one, other, rtol=1e-4, atol=1e-4)) < 0.01


# Training -------------------------------------------------------------------------------------


def test_fit_learns(make_vae: MakeVAE, images: np.ndarray) -> None:
    history = make_vae(likelihood=Gaussian(0.05)).fit(images, batch_size=16, epochs=8, verbose=0).history
    assert history["loss"][-1] < 0.6 * history["loss"][0]
    assert set(history) == METRICS
    assert np.isfinite(list(history.values())).all()


def test_the_papers_loss_has_every_term(make_vae: MakeVAE, images: np.ndarray) -> None:
    paper = {**OBJECTIVES["vae-123"], "perceptual_weight": 0.25}
    vae = make_vae(perceptual="hed-vgg16", beta=2.0, **paper)
    vae.compile(keras.optimizers.Adam(3e-3))  # few steps: at a lower rate the loss falls by little more than its noise
    logs = vae.fit(images[:48], batch_size=16, epochs=3, verbose=0).history
    assert set(logs) == METRICS | {"perceptual"}
    assert logs["perceptual"][-1] < logs["perceptual"][0]
    terms = {name: np.array(values) for name, values in logs.items()}
    np.testing.assert_allclose(terms["loss"], 0.25 * terms["perceptual"] + 2 * terms["kl"], rtol=1e-4)
    np.testing.assert_allclose(terms["elbo"], -terms["reconstruction"] - terms["kl"], rtol=1e-4)


def test_the_default_is_pixels_and_features_in_nats(make_vae: MakeVAE, images: np.ndarray) -> None:
    vae = make_vae(perceptual="hed-vgg16")
    assert vae.get_config().items() >= {"pixel_weight": 1.0, "perceptual_weight": "balanced", "beta": 1.0}.items()
    vae.compile(keras.optimizers.Adam(3e-3))  # few steps: at a lower rate the loss falls by little more than its noise
    logs = vae.fit(images[:48], batch_size=16, epochs=4, verbose=0).history
    terms = {name: np.array(values) for name, values in logs.items()}
    np.testing.assert_allclose(terms["loss"], terms["reconstruction"] + terms["perceptual"] + terms["kl"], rtol=1e-4)
    assert logs["loss"][-1] < logs["loss"][0]


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("default", "vae-345") else pytest.param(name, marks=pytest.mark.slow)
        for name in sorted(OBJECTIVES)
    ],
)
def test_every_objective_trains(make_vae: MakeVAE, images: np.ndarray, name: str) -> None:
    vae = make_vae(**{"perceptual": "hed-vgg16", **OBJECTIVES[name]})
    vae.compile(keras.optimizers.Adam(3e-3))  # few steps: at a lower rate the loss falls by little more than its noise
    history = vae.fit(images[:48], batch_size=16, epochs=4, verbose=0).history
    assert np.isfinite(list(history.values())).all()
    assert history["loss"][-1] < history["loss"][0]


def test_loss_without_perceptual_network_is_the_weighted_negative_elbo(make_vae: MakeVAE, images: np.ndarray) -> None:
    logs = make_vae(beta=3.0, likelihood="gaussian").evaluate(images, verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(logs["reconstruction"] + 3 * logs["kl"], rel=1e-5)
    assert "perceptual" not in logs


def test_evaluate_computes_the_elbo_in_nats(make_vae: MakeVAE, images: np.ndarray) -> None:
    """The metrics against the same quantities worked out outside of Keras."""
    vae = make_vae(likelihood="gaussian")
    logs = vae.evaluate(images[:32], batch_size=32, verbose=0, return_dict=True)
    posterior = vae.encode(images[:32])
    z = posterior.sample(
        replicas.NoiseByPlace(1).draw((32, 8))
    )  # the seed and the places in the data that evaluate drew from
    log_prob = Gaussian(0.05).log_prob(images[:32], vae.decode(z)).numpy().mean()
    kl = posterior.kl().numpy().mean()
    assert logs["kl"] == pytest.approx(kl, rel=1e-4)
    assert logs["elbo"] == pytest.approx(log_prob - kl, rel=1e-4)


def test_metrics_are_means_over_images_with_a_smaller_last_batch(make_vae: MakeVAE, images: np.ndarray) -> None:
    vae = make_vae()
    expected = vae.encode(images[:50]).kl().numpy().mean()
    assert vae.evaluate(images[:50], batch_size=32, verbose=0, return_dict=True)["kl"] == pytest.approx(expected, 1e-4)


def test_evaluation_finds_the_same_again_and_as_fit_does(make_vae: MakeVAE, images: np.ndarray) -> None:
    vae = make_vae(likelihood="discretized-logistic", free_bits=0.1)
    history = vae.fit(images[:60], batch_size=16, epochs=2, validation_data=images[60:], verbose=0).history
    first = vae.evaluate(images[60:], batch_size=16, verbose=0, return_dict=True)
    assert vae.evaluate(images[60:], batch_size=16, verbose=0, return_dict=True) == first
    assert {name: history[f"val_{name}"][-1] for name in first} == pytest.approx(first, rel=1e-5)
    bits = -first["elbo"] / (np.log(2) * np.prod(SHAPE))
    assert first["bits_per_dim"] == pytest.approx(bits, rel=1e-5)


def test_active_units_are_the_latents_whose_mean_varies(make_vae: MakeVAE, images: np.ndarray) -> None:
    vae = make_vae()
    kernel, bias = vae.encoder.get_layer("mean").get_weights()
    kernel[:, 5:] = 0.0  # three latents that say the same of every image
    vae.encoder.get_layer("mean").set_weights([100 * kernel, bias + 7])
    found = vae.evaluate(images[:50], batch_size=16, verbose=0, return_dict=True)["active_units"]
    variances = np.asarray(vae.encode(images[:50]).mean).var(0)
    assert found == (variances > 0.01).sum() == 5


def test_averaged_weights_are_evaluated_and_exported(make_vae: MakeVAE, images: np.ndarray, tmp_path: Path) -> None:
    vae = make_vae()
    vae.compile(keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.8))
    untrained = vae.evaluate(images[:8], verbose=0, return_dict=True)["loss"]
    assert np.isfinite(untrained)  # the averages do not exist yet
    for _ in range(5):
        vae.train_on_batch(images[:16])
    own = weights_of(vae)
    with vae.averaged_weights():
        averaged = weights_of(vae)
        expected = vae.sample(2, seed=0).numpy()
        twin = make_vae()
        twin.set_weights(averaged)
    assert any((one != other).any() for one, other in zip(own, averaged, strict=True))
    found = vae.evaluate(images[:16], verbose=0, return_dict=True)
    assert found == pytest.approx(twin.evaluate(images[:16], verbose=0, return_dict=True), rel=1e-5)
    vae.export(tmp_path / "generator.onnx", format="onnx", part="generator")
    np.testing.assert_allclose(Generator(tmp_path / "generator.onnx").sample(2, seed=0), expected, atol=1e-4)
    for before, after in zip(own, weights_of(vae), strict=True):
        np.testing.assert_array_equal(before, after)  # to the last bit


def test_statistics_are_averaged_with_the_weights(make_vae: MakeVAE, images: np.ndarray, tmp_path: Path) -> None:
    """Batch normalization's and the variance that evaluation uses: those of the last steps belong to other weights."""
    vae = make_vae()
    vae.compile(keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.8))
    expected: list[np.ndarray] = []
    for step in range(5):
        vae.train_on_batch(images[16 * step : 16 * step + 16])
        now = [np.array(variable) for variable in vae.averaging.statistics()]
        expected = [0.8 * old + 0.2 * new for old, new in zip(expected, now, strict=True)] if expected else now
    vae.save(tmp_path / "vae.keras")
    for model in (vae, keras.saving.load_model(tmp_path / "vae.keras")):
        with model.averaged_weights():
            found = [np.array(variable) for variable in model.averaging.statistics()]
        assert len(found) == len(expected) > 4
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert any(np.abs(old - new).max() > 1e-3 for old, new in zip(expected, now, strict=True))


def test_averaged_weights_in_fit(make_dense: MakeVAE, images: np.ndarray) -> None:
    """Validation during fit, with Keras's own callback or without, sees what remains afterwards."""
    for callbacks in ([], [keras.callbacks.SwapEMAWeights()]):
        vae = make_dense()
        vae.compile(keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.8))
        history = vae.fit(
            images[:32], batch_size=16, epochs=2, validation_data=images[32:48], callbacks=callbacks, verbose=0
        ).history
        after = vae.evaluate(images[32:48], verbose=0, return_dict=True)
        assert history["val_loss"][-1] == pytest.approx(after["loss"], rel=1e-4)


@pytest.fixture(scope="module")
def of_an_array(make_dense: MakeVAE, images: np.ndarray) -> tuple[VAE, dict[str, list[float]]]:
    """A model trained on an array of floats, and its history: what other forms of the same data are held to."""
    vae = make_dense()
    x = np.round(images[:32] * 255) / np.float32(255)
    return vae, vae.fit(x, batch_size=16, epochs=2, shuffle=False, verbose=0).history


@pytest.mark.parametrize("form", ["uint8", "images", "pairs", "dicts", "dict-array"])
def test_every_form_of_data_trains_the_same(
    make_dense: MakeVAE, images: np.ndarray, of_an_array: tuple[VAE, dict[str, list[float]]], form: str
) -> None:
    x = np.round(images[:32] * 255) / np.float32(255)
    labels = np.arange(32)
    data: dict[str, Callable[[], Any]] = {
        "uint8": lambda: np.round(x * 255).astype(np.uint8),
        "images": lambda: tf.data.Dataset.from_tensor_slices(x).batch(16),
        "pairs": lambda: tf.data.Dataset.from_tensor_slices((x, labels)).batch(16),
        "dicts": lambda: tf.data.Dataset.from_tensor_slices({"image": x, "label": labels}).batch(16),
        "dict-array": lambda: {"image": x},
    }
    vae, (reference, expected) = make_dense(), of_an_array
    arguments = {"batch_size": 16} if form in ("uint8", "dict-array") else {}
    logs = vae.fit(data[form](), epochs=2, shuffle=False, verbose=0, **arguments).history
    assert logs["loss"] == pytest.approx(expected["loss"], rel=2e-3)
    if form != "uint8":  # in a graph, TensorFlow divides by 255 with another last bit than NumPy
        assert_same_weights(vae, reference)
    assert vae.predict(data[form](), verbose=0).shape == (32, *SHAPE)


def test_validation_data_and_split(make_dense: MakeVAE, images: np.ndarray) -> None:
    vae = make_dense()
    for arguments in ({"validation_split": 0.25}, {"validation_data": images[:8]}, {"validation_data": (images[:8],)}):
        history = vae.fit(images[:32], batch_size=8, epochs=1, verbose=0, **arguments).history
        assert {"val_loss", "val_elbo", "val_kl", "val_reconstruction"} <= set(history)


def test_callbacks_schedules_and_steps_per_execution(make_dense: MakeVAE, images: np.ndarray) -> None:
    vae = make_dense()
    vae.compile(keras.optimizers.Adam(1e-3), steps_per_execution=2)
    stopper = keras.callbacks.EarlyStopping("val_loss", patience=0, mode="max")  # the loss falls: stop at once
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    history = vae.fit(images, batch_size=16, epochs=5, validation_split=0.3, callbacks=[stopper, halve], verbose=0)
    assert len(history.epoch) < 5
    assert float(vae.optimizer.learning_rate) == pytest.approx(1e-3 / 2 ** len(history.epoch))


def test_same_seed_same_run(make_dense: MakeVAE, images: np.ndarray) -> None:
    losses = []
    for _ in range(2):
        losses.append(make_dense().fit(images, batch_size=16, epochs=2, verbose=0).history["loss"])
    assert losses[0] == losses[1]
    other = make_dense(seed=2).fit(images, batch_size=16, epochs=2, verbose=0).history["loss"]
    assert other != losses[0]


def test_evaluation_does_not_change_the_training_after_it(make_dense: MakeVAE, images: np.ndarray) -> None:
    one, other = make_dense(), make_dense()
    for vae, evaluates in ((one, True), (other, False)):
        vae.fit(images, batch_size=16, shuffle=False, verbose=0)
        if evaluates:
            vae.evaluate(images, verbose=0)
        vae.fit(images, batch_size=16, shuffle=False, verbose=0)
    assert_same_weights(one, other)


def test_train_on_batch_and_eager(make_vae: MakeVAE, images: np.ndarray) -> None:
    vae = make_vae()
    vae.train_on_batch(images[:8])
    assert int(vae.optimizer.iterations) == 1
    vae.compile(keras.optimizers.Adam(1e-3), run_eagerly=True)
    vae.fit(images[:8], batch_size=8, verbose=0)


# Using a model --------------------------------------------------------------------------------


def test_encode_decode_sample_and_predict(make_vae: MakeVAE, images: np.ndarray) -> None:
    vae = make_vae()
    posterior = vae.encode(images[:4])
    assert posterior.mean.shape == posterior.log_var.shape == (4, 8)
    np.testing.assert_allclose(vae.decode(posterior.mode()), vae.predict(images[:4], verbose=0), atol=1e-5)
    np.testing.assert_array_equal(vae.sample(5, seed=3), vae.sample(5, seed=3))
    assert (vae.sample(5, seed=3).numpy() != vae.sample(5, seed=4).numpy()).any()
    assert vae.sample(5).shape == (5, *SHAPE)


def test_predict_takes_arrays_of_any_number_and_kind(make_vae: MakeVAE, images: np.ndarray) -> None:
    vae = make_vae()
    expected = vae.decode(vae.encode(images[:33]).mode()).numpy()
    for given in (images[:33], images[:33].astype(np.float64), tf.constant(images[:33])):
        np.testing.assert_allclose(vae.predict(given, batch_size=16, verbose=0), expected, atol=1e-5)
    np.testing.assert_allclose(vae.predict(images[:1], verbose=0), expected[:1], atol=1e-5)
    np.testing.assert_allclose(vae.predict(images[:33], 16, 0, 1), expected[:16], atol=1e-5)  # one step
    # Autotuning's thread is waited for, now and then, when an iterator ends.
    assert pipelines.of_array(images, 16).options().autotune.enabled is False


def test_summary_names_encoder_and_decoder(make_vae: MakeVAE) -> None:
    lines: list[str] = []
    make_vae(perceptual="hed-vgg16").summary(print_fn=lines.append)
    text = "\n".join(lines)
    assert "encoder" in text
    assert "decoder" in text
    assert "features" not in text
    assert "unbuilt" not in text


# Saving ---------------------------------------------------------------------------------------


def test_save_before_the_first_call(make_vae: MakeVAE, images: np.ndarray, tmp_path: Path) -> None:
    vae = make_vae()
    vae.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras")
    np.testing.assert_array_equal(vae.sample(2, seed=0), loaded.sample(2, seed=0))


@pytest.mark.parametrize(
    "policy",
    ["float32", *(pytest.param(policy, marks=pytest.mark.slow) for policy in ("mixed_bfloat16", "mixed_float16"))],
)
def test_load_then_fit_goes_on_where_it_stopped(
    make_vae: MakeVAE, images: np.ndarray, tmp_path: Path, policy: str
) -> None:
    vae = make_vae(dtype=policy)
    vae.fit(images[:32], batch_size=16, epochs=2, shuffle=False, verbose=0)
    vae.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras")
    assert int(loaded.optimizer.iterations) == int(vae.optimizer.iterations) == 4
    for one, other in zip(vae.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, other)
    losses = [
        model.fit(images[:32], batch_size=16, epochs=1, shuffle=False, verbose=0).history["loss"][0]
        for model in (vae, loaded)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5 if policy == "float32" else 1e-2)
    if policy == "float32":  # the others round differently from run to run
        assert_same_weights(vae, loaded)


def test_load_weights_into_a_fresh_model(make_vae: MakeVAE, images: np.ndarray, tmp_path: Path) -> None:
    vae = make_vae(perceptual="hed-vgg16")
    vae.fit(images[:16], batch_size=16, verbose=0)
    vae.save_weights(tmp_path / "vae.weights.h5")
    fresh = VAE(SHAPE, 8, perceptual=None, network_options={"width": 4})
    fresh.load_weights(tmp_path / "vae.weights.h5")
    np.testing.assert_array_equal(vae.sample(2, seed=0), fresh.sample(2, seed=0))


def test_config_holds_every_argument(make_vae: MakeVAE) -> None:
    vae = make_vae(
        image_shape=(16, 32, 1),
        latent_dim=3,
        perceptual=PerceptualLoss("vgg16", ["relu1_2"]),
        perceptual_weight=(0.1,),
        pixel_weight=0.5,
        beta=4.0,
        free_bits=0.25,
        likelihood=Bernoulli(),
        network_options={"width": 16},
        dtype="mixed_bfloat16",
        name="mine",
    )
    again = VAE.from_config(vae.get_config())
    assert again.get_config() == vae.get_config()
    assert isinstance(again.likelihood, Bernoulli)
    assert again.perceptual.keras_layers == ("block1_conv2",)
    assert again.compute_dtype == "bfloat16"


def test_perceptual_network_is_neither_saved_nor_needed(
    make_dense: MakeVAE, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, plain = make_dense(perceptual="hed-vgg16", perceptual_weight=0.5), make_dense()
    for model, name in ((vae, "perceptual"), (plain, "plain")):
        model.fit(images[:16], batch_size=16, verbose=0)
        model.save(tmp_path / f"{name}.keras")
    sizes = [(tmp_path / f"{name}.keras").stat().st_size for name in ("perceptual", "plain")]
    assert abs(sizes[0] - sizes[1]) < 10_000
    assert vae.count_params() == plain.count_params()
    with zipfile.ZipFile(tmp_path / "perceptual.keras") as file:
        assert b"block1_conv1" not in file.read("config.json")

    def refuse(*_: Any) -> None:
        raise AssertionError("the perceptual network was loaded")

    monkeypatch.setattr(PerceptualLoss, "load", refuse)
    loaded = keras.saving.load_model(tmp_path / "perceptual.keras")
    loaded.sample(2)
    loaded.predict(images[:2], verbose=0)
    assert loaded.export(tmp_path / "decoder.onnx", format="onnx").passed


@pytest.mark.parametrize(
    "order",
    [
        "import keras, keras_vae",
        "import keras_vae.features.perceptual, keras",
        pytest.param("import keras_vae, keras", marks=pytest.mark.slow),
        pytest.param("import keras_vae.model.distributions, keras", marks=pytest.mark.slow),
    ],
)
def test_a_fresh_process_loads_the_model(make_vae: MakeVAE, tmp_path: Path, order: str) -> None:
    make_vae().save(tmp_path / "vae.keras")
    script = f"{order}; print(type(keras.saving.load_model({str(tmp_path / 'vae.keras')!r})).__name__)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "VAE"


def test_every_class_in_files_is_known_to_keras_before_it_is_imported() -> None:
    registered = {name for name in keras.saving.get_custom_objects() if name.startswith("keras_vae>")}
    assert registered == {f"keras_vae>{name}" for name in keras_vae._IN_FILES}


def test_import_is_quick_and_silent() -> None:
    script = "import sys, keras_vae; assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == result.stderr == ""


# Wrong use ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_shape": (12, 50, 3)}, "16 pixels a side and more"),
        ({"image_shape": (64, 64)}, "height, width, channels"),
        ({"latent_dim": 0}, "whole number from 1 on"),
        ({"network": "unet"}, "choose one of dfc"),
        ({"perceptual": "alexnet"}, "hed-vgg16"),
        ({"perceptual": "vgg19", "perceptual_layers": "vae-678"}, "vae-123"),
        ({"perceptual_weight": -0.5}, "at least 0"),
        ({"beta": float("nan")}, "at least 0"),
        ({"beta": "1"}, "at least 0"),
        ({"latent_dim": 2.5}, "whole number"),
        ({"image_shape": 64}, "height, width, channels"),
        ({"likelihood": 3}, "unknown likelihood 3"),
        ({"perceptual": 3}, "PerceptualLoss"),
        ({"likelihood": "poisson"}, "gaussian"),
        ({"free_bits": -1}, "free_bits=-1"),
        ({"pixel_weight": float("inf")}, "pixel_weight=inf"),
        ({"network_options": {"depth": 3}}, "no option 'depth'"),
    ],
)
def test_wrong_arguments_are_refused(make_vae: MakeVAE, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        make_vae(**arguments)
    assert "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def unchanged(make_dense: MakeVAE) -> VAE:
    """A model for all that is refused, and leaves it as it was."""
    return make_dense()


def test_wrong_images_are_refused(unchanged: VAE, images: np.ndarray) -> None:
    vae = unchanged
    with pytest.raises(InputError, match="scale them to"):
        vae.fit(images * 255, verbose=0)
    with pytest.raises(InputError, match="scale them to"):
        vae.fit({"image": images - 0.5}, verbose=0)
    with pytest.raises(InputError, match=r"takes \(batch, 16, 16, 3\)"):
        vae.encode(images[:, :8])
    with pytest.raises(InputError, match=r"takes \(batch, 16, 16, 3\)"):
        vae.fit(images[..., :1], verbose=0)
    with pytest.raises(InputError, match="name the images 'image'"):
        vae.fit({"picture": images}, verbose=0)
    with pytest.raises(InputError, match=r"decodes \(batch, 8\)"):
        vae.decode(np.zeros((2, 9)))


@pytest.mark.parametrize("form", ["array", "validation", "dataset", "encode", "predict", "evaluate dataset"])
def test_images_in_another_range_are_refused_everywhere(unchanged: VAE, images: np.ndarray, form: str) -> None:
    vae, wrong = unchanged, images * 255
    dataset = tf.data.Dataset.from_tensor_slices(wrong).batch(16)
    attempts = {
        "array": lambda: vae.evaluate(wrong, verbose=0),
        "validation": lambda: vae.fit(images, validation_data=(wrong, wrong), verbose=0),
        "dataset": lambda: vae.fit(dataset, verbose=0),
        "encode": lambda: vae.encode(wrong),
        "predict": lambda: vae.predict(wrong, verbose=0),
        "evaluate dataset": lambda: vae.evaluate(dataset, verbose=0),
    }
    before = [*weights_of(vae.encoder), *weights_of(vae.decoder)]
    with pytest.raises(InputError, match=r"scale them to \[0, 1\]"):
        attempts[form]()
    for one, other in zip(before, [*weights_of(vae.encoder), *weights_of(vae.decoder)], strict=True):
        np.testing.assert_array_equal(one, other)


def test_data_that_cannot_be_used_is_refused(unchanged: VAE, images: np.ndarray, tmp_path: Path) -> None:
    vae = unchanged
    dataset = tf.data.Dataset.from_tensor_slices
    for attempt, message in [
        (lambda: vae.fit(images, sample_weight=np.ones(96)), "leave 'sample_weight' out"),
        (lambda: vae.fit(images, class_weight={0: 1.0}), "leave 'class_weight' out"),
        (lambda: vae.fit(dataset((images, images, np.ones(96))).batch(8)), "sample weights"),
        (lambda: vae.fit(dataset(images)), r"without its batch: .*\.batch\(64\)"),
        (lambda: vae.fit(images[:0]), "has no image in it"),
        (lambda: vae.fit(np.array(["a", "b"])), "images are of type <U1: give floats"),
        (lambda: vae.evaluate(images[0]), r"shape \(16, 16, 3\): an image without its batch"),
        (lambda: vae.predict(images[0]), r"shape \(16, 16, 3\): an image without its batch"),
        (lambda: vae.predict(np.zeros((0, *SHAPE), np.uint8)), "has no image in it"),
        (lambda: vae.fit(), "fit needs images"),
        (lambda: vae.evaluate(None), "evaluate needs images"),
        (lambda: vae.sample(0), "count=0"),
        (lambda: vae.save(tmp_path / "model.h5"), r"ends in .keras"),
        (lambda: vae.fit(images, callbacks=[LinearWarmup(4), TargetKL(50)]), "LinearWarmup and TargetKL both set beta"),
    ]:
        with pytest.raises(InputError, match=message):
            attempt()
    assert not list(tmp_path.iterdir())


def test_a_diverged_decoder_is_not_exported(make_vae: MakeVAE, tmp_path: Path) -> None:
    vae = make_vae()
    vae.decoder.set_weights([np.full_like(weight, np.nan) for weight in vae.decoder.get_weights()])
    with pytest.raises(InputError, match="training diverged"):
        vae.export(tmp_path / "decoder.onnx", format="onnx")
    assert not list(tmp_path.iterdir())


def test_a_loss_of_ones_own_is_refused(make_vae: MakeVAE) -> None:
    with pytest.raises(InputError, match="brings its own"):
        make_vae().compile("adam", loss="mse")


def test_another_backend_is_named(tmp_path: Path) -> None:
    (tmp_path / "keras.json").write_text('{"backend": "torch"}')
    for variable, value in (("KERAS_BACKEND", "jax"), ("KERAS_HOME", str(tmp_path))):
        result = subprocess.run(
            [sys.executable, "-c", "import keras_vae; keras_vae.VAE"],
            env={variable: value, "PATH": "", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert "set it to tensorflow" in result.stderr.splitlines()[-1]
