"""Priors: known densities, codes of known distribution, and that every door to images goes through them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from scipy import stats

from keras_vae import VAE, InputError
from keras_vae.evaluation import learned_prior
from keras_vae.export import latents, runtime
from keras_vae.export.formats import open_artifact
from keras_vae.model import flow_matching, priors
from keras_vae.model.encoding import Encoded
from keras_vae.runs.opening import open_model

Command = Callable[..., Any]
MEAN = np.array([3.0, -1.0, 0.5])
FACTOR = np.array([[2.0, 0.0, 0.0], [0.7, 0.5, 0.0], [-0.3, 0.2, 0.1]])
DEVIATION = 0.2


def array(tensor: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor)


@pytest.fixture(scope="module")
def gaussian_codes() -> Encoded:
    """Posteriors of a linear-Gaussian model: means are N(MEAN, FACTOR FACTOR'), each deviation is DEVIATION."""
    means = MEAN + np.random.default_rng(0).standard_normal((4000, 3)) @ FACTOR.T
    log_var = np.full(means.shape, 2 * np.log(DEVIATION), np.float32)
    return Encoded(means.astype(np.float32), log_var, np.zeros((4000, 0), np.uint8), (), 4000)


@pytest.fixture(scope="module")
def ring() -> tuple[np.ndarray, np.ndarray]:
    """Codes on a ring, of which neither the standard normal nor a Gaussian knows anything."""
    angle = np.random.default_rng(4).uniform(0, 2 * np.pi, 4000)
    mean = 2.0 * np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    return mean, np.full_like(mean, 2 * np.log(0.05))


@pytest.fixture(scope="module")
def fitted(ring: tuple[np.ndarray, np.ndarray]) -> priors.FlowMatchingPrior:
    return flow_matching.fit(*ring, seed=0, steps=300)


@pytest.fixture(scope="module")
def flow(gaussian_codes: Encoded) -> priors.FlowMatchingPrior:
    """Fitted to codes whose density is known."""
    return flow_matching.fit(gaussian_codes.mean, gaussian_codes.log_var, steps=100)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, train_small: Callable[..., Path]) -> Path:
    """A run that ends with a learned prior."""
    out = tmp_path_factory.mktemp("priors") / "run"
    # Of `ppca`, so small and so briefly trained, codes are almost as the standard normal has them.
    return train_small(out, image_size=16, batch_size=8, learning_rate=3e-3, epochs=12, network="dfc")


@pytest.fixture(scope="module")
def small(images: np.ndarray) -> np.ndarray:
    """96 avatars of 16x16."""
    return images[:, ::2, ::2]


@pytest.fixture(scope="module")
def make_vae(make_vae: Callable[..., VAE]) -> Callable[..., VAE]:
    """The same, narrow and of images of 16x16."""
    return lambda: make_vae(image_shape=(16, 16, 3), network_options={"width": 4})


def test_the_standard_normal_is_the_noise_itself() -> None:
    noise = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    prior = priors.StandardNormal(3)
    np.testing.assert_array_equal(array(prior(noise)), noise)
    np.testing.assert_array_equal(array(prior.inverse(noise)), noise)
    np.testing.assert_allclose(array(prior.log_prob(noise)), stats.norm.logpdf(noise).sum(axis=1), rtol=1e-5)


def test_before_it_is_fitted_it_is_the_gaussian_of_the_codes(gaussian_codes: Encoded) -> None:
    prior = priors.gaussian(gaussian_codes.mean, gaussian_codes.log_var)
    covariance = np.cov(gaussian_codes.mean.T.astype(np.float64), bias=True) + DEVIATION**2 * np.eye(3)
    known = stats.multivariate_normal(gaussian_codes.mean.mean(axis=0, dtype=np.float64), covariance)
    noise = np.random.default_rng(1).standard_normal((100, 3)).astype(np.float32)
    z = array(prior(noise))
    np.testing.assert_allclose(array(prior.log_prob(z)), known.logpdf(z), atol=1e-4)
    centre, *ends = array(prior(np.concatenate([np.zeros((1, 3)), np.eye(3)]).astype(np.float32)))
    turned = np.stack(ends) - centre
    np.testing.assert_allclose(z, centre + noise @ turned, atol=1e-4)  # linear in the noise, whose covariance is I
    np.testing.assert_allclose(centre, known.mean, atol=1e-4)
    np.testing.assert_allclose(turned.T @ turned, covariance, atol=1e-3)
    np.testing.assert_allclose(array(prior.inverse(z)), noise, atol=1e-4)
    variances = np.square(array(prior.axes)).sum(axis=0)
    assert list(variances) == sorted(variances, reverse=True)  # the widest first
    assert (
        flow_matching.fit(gaussian_codes.mean[:2], gaussian_codes.log_var[:2]).kind == "learned"
    )  # too few for a flow


def test_the_bound_under_a_learned_prior_is_the_known_one(
    gaussian_codes: Encoded, flow: priors.FlowMatchingPrior
) -> None:
    """The gain over the standard normal is the difference of the KLs of the codes' Gaussian from the two priors."""
    covariance = FACTOR @ FACTOR.T + DEVIATION**2 * np.eye(3)
    _, log_determinant = np.linalg.slogdet(covariance)
    known = 0.5 * (np.trace(covariance) + MEAN @ MEAN - 3 - log_determinant)
    prior = priors.gaussian(gaussian_codes.mean, gaussian_codes.log_var)
    error = 0.3  # of 500 draws
    found = learned_prior.gain(prior, gaussian_codes)
    assert found == pytest.approx(known, abs=3 * error)
    assert learned_prior.gain(flow, gaussian_codes) == pytest.approx(found, abs=0.1)
    assert learned_prior.gain(priors.StandardNormal(3), gaussian_codes) == 0.0


def test_a_flow_draws_where_the_codes_are(fitted: priors.FlowMatchingPrior) -> None:
    z = array(fitted(latents.draw(4000, 2, 0)))
    radii = np.linalg.norm(z, axis=1)
    assert np.abs(radii - 2.0).mean() < 0.15  # a standard normal's are 0.9 off
    assert np.histogram(np.arctan2(*z.T), 8)[0].min() > 300  # all the way round
    inside = array(fitted.log_prob(np.array([[2.0, 0.0], [0.0, -2.0]], np.float32)))
    assert (inside > array(fitted.log_prob(np.zeros((2, 2), np.float32))) + 2.0).all()


@pytest.mark.slow
def test_the_density_of_a_flow_adds_up_to_one(fitted: priors.FlowMatchingPrior) -> None:
    ends = np.linspace(-4, 4, 161, dtype=np.float32)
    grid = np.stack(np.meshgrid(ends, ends), axis=-1).reshape(-1, 2)
    assert np.exp(array(fitted.log_prob(grid))).sum() * (ends[1] - ends[0]) ** 2 == pytest.approx(1.0, abs=0.02)


def test_noise_comes_back_from_latents(flow: priors.FlowMatchingPrior) -> None:
    noise = latents.draw(200, 3, 1)
    # Few steps to latents, more back: the two ways differ a little.
    assert np.abs(array(flow.inverse(flow(noise))) - noise).mean() < 0.05


def test_noise_far_beyond_any_stays_within_reach(flow: priors.FlowMatchingPrior) -> None:
    """The field is bounded, and smooth at zero: latents go no further than the noise and twelve steps of it."""
    noise = np.random.default_rng(0).standard_normal((32, flow.latent_dim)).astype(np.float32)
    noise /= np.sqrt(np.square(noise).mean(axis=1, keepdims=True))
    half = np.full((1, 1), 0.5, np.float32)
    at_the_edge = array(flow.velocity(flow.radius * noise, half))
    for times in (1.0, 10.0, 1e6):
        np.testing.assert_allclose(array(flow.velocity(times * flow.radius * noise, half)), at_the_edge, atol=1e-4)
    assert not np.allclose(array(flow.velocity(0.9 * flow.radius * noise, half)), at_the_edge, rtol=1e-2)
    zeros = tf.Variable(tf.zeros((1, flow.latent_dim)))
    with tf.GradientTape() as tape:
        velocity = flow.velocity(zeros, half)
    assert np.isfinite(array(tape.gradient(velocity, zeros))).all()


def test_the_same_seed_fits_the_same_prior(ring: tuple[np.ndarray, np.ndarray]) -> None:
    one, same, other = (
        array(flow_matching.fit(*ring, seed=seed, steps=20)(latents.draw(9, 2, 0))) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3


def test_codes_that_are_not_finite_are_refused(ring: tuple[np.ndarray, np.ndarray]) -> None:
    mean = ring[0].copy()
    mean[7, 1] = np.nan
    with pytest.raises(InputError, match=r"^the codes of the images are not finite: the model's training diverged"):
        flow_matching.fit(mean, ring[1])


def test_latents_that_all_images_share_do_no_harm() -> None:
    mean = np.zeros((500, 4), np.float32)
    mean[:, 0] = np.random.default_rng(0).standard_normal(500)
    z = array(flow_matching.fit(mean, np.full_like(mean, -40.0), steps=50)(latents.draw(100, 4, 0)))
    assert np.isfinite(z).all()
    assert np.abs(z[:, 1:]).max() < 0.05


def test_a_model_fits_saves_and_keeps_its_prior(
    make_vae: Callable[..., VAE], small: np.ndarray, tmp_path: Path
) -> None:
    vae = make_vae()
    weights, before = len(vae.weights), array(vae.sample(4, seed=0))
    vae.fit_prior(small, steps=20)
    assert (vae.prior.kind, len(vae.weights)) == ("learned", weights)
    drawn = array(vae.sample(4, seed=0))
    assert np.abs(drawn - before).max() > 1e-3
    np.testing.assert_allclose(array(vae.generator()(latents.draw(4, 8, 0))), drawn, atol=1e-5)
    kept = [array(weight) for weight in vae.prior.weights]
    vae.trainable = True
    vae.fit(small, batch_size=32, verbose=0)  # the model's training leaves it alone
    for weight, value in zip(vae.prior.weights, kept, strict=True):
        np.testing.assert_array_equal(array(weight), value)
    vae.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras")
    np.testing.assert_array_equal(array(loaded.sample(4, seed=0)), array(vae.sample(4, seed=0)))
    vae.save_weights(tmp_path / "vae.weights.h5")
    other = make_vae()
    other.load_weights(tmp_path / "vae.weights.h5")
    np.testing.assert_array_equal(array(other.sample(4, seed=0)), array(vae.sample(4, seed=0)))
    make_vae().save_weights(tmp_path / "standard.weights.h5")
    other.load_weights(tmp_path / "standard.weights.h5")
    assert other.prior.kind == "standard"


def test_what_is_no_prior_is_refused(make_vae: Callable[..., VAE]) -> None:
    vae = make_vae()
    with pytest.raises(InputError, match=r"^the prior has 3 latents, and the model 8$"):
        vae.set_prior(priors.StandardNormal(3))
    with pytest.raises(InputError, match=r"^prior='normal': give a prior of keras_vae.priors"):
        vae.set_prior("normal")
    with pytest.raises(InputError, match=r"^temperature="):
        vae.sample(1, temperature=-1.0)
    with pytest.raises(InputError, match=r"^no images to encode"):
        vae.fit_prior(np.zeros((0, 16, 16, 3), np.float32))
    with pytest.raises(InputError, match=r"^fit_prior needs images: "):
        vae.fit_prior(None)
    endless = tf.data.Dataset.from_tensors(np.zeros((2, 16, 16, 3), np.float32)).repeat()
    with pytest.raises(InputError, match=r"^the dataset never ends: leave out \.repeat\(\)$"):
        vae.fit_prior(endless)


def test_a_prior_is_fitted_to_whatever_fit_takes(
    make_vae: Callable[..., VAE], small: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same codes in the same order: their Gaussian, then, is made without XLA, which compiles each fit anew."""
    codes: list[np.ndarray] = []

    def noted(mean: np.ndarray, log_var: np.ndarray, *_: Any) -> priors.FlowMatchingPrior:
        codes.append(np.stack([mean, log_var]))
        return priors.gaussian(mean, log_var)

    monkeypatch.setattr(flow_matching, "fit", noted)
    vae = make_vae()
    labels = np.zeros(len(small))
    drawn = []
    for given in (
        small,
        {"image": small},
        tf.data.Dataset.from_tensor_slices((small, labels)).batch(32),
        tf.data.Dataset.from_tensor_slices({"image": small, "label": labels}).batch(7),
        [small[:50], small[50:]],
    ):
        vae.set_prior(priors.StandardNormal(8))
        vae.fit_prior(given, steps=2)
        drawn.append(array(vae.sample(4, seed=0)))
    assert (len(codes), codes[0].shape) == (5, (2, len(small), 8))
    for found in (codes, drawn):
        for each in found[1:]:
            np.testing.assert_allclose(each, found[0], atol=1e-4)


def test_temperature_shrinks_the_noise(run: Path) -> None:
    vae = open_model(run).whole("testing")
    cold, warm = (array(vae.sample(32, seed=0, temperature=each)) for each in (0.0, 1.0))
    assert np.ptp(cold, axis=0).max() < 1e-6  # all the same
    np.testing.assert_allclose(cold[0], array(vae.generator()(np.zeros((1, 8), np.float32)))[0], atol=1e-5)
    assert warm.std(axis=0).mean() > 0.02


def test_training_ends_with_a_prior_whose_samples_are_nearer(run: Path, small: np.ndarray) -> None:
    config = json.loads((run / "config.json").read_text())
    assert config["prior"] == "learned"
    model = open_model(run)
    assert model.whole("testing").prior.kind == "learned"
    learned, standard = model.sample(64, 0), model.sample(64, 0, standard=True)

    def colours(batch: np.ndarray) -> np.ndarray:
        return np.concatenate([batch.mean(axis=(1, 2)).mean(axis=0), batch.mean(axis=(1, 2)).std(axis=0)])

    off = [np.abs(colours(each) - colours(small)).mean() for each in (learned, standard)]
    assert off[0] < off[1]
    checkpoint = sorted((run / "checkpoints").glob("*.keras"))[-1]
    assert open_model(checkpoint).whole("testing").prior.kind == "learned"  # the Gaussian of the last epoch's codes


@pytest.mark.slow
def test_every_kind_of_model_gives_the_same_images(run: Path, tmp_path: Path, command: Command) -> None:
    assert command("export", run, "--out", tmp_path).status == 0
    assert {path.name for path in tmp_path.iterdir()} == {"1", "decoder.onnx", "generator.onnx"}
    pictures = []
    for number, model in enumerate((run, run / "model.keras", tmp_path / "1", tmp_path / "generator.onnx")):
        picture = tmp_path / f"{number}.png"
        assert command("sample", model, "--count", 4, "--seed", 5, "--out", picture).status == 0
        pictures.append(np.asarray(Image.open(picture), int))
    for picture in pictures[1:]:
        assert np.abs(picture - pictures[0]).max() <= 1
    z = latents.draw(6, 8, 2)
    vae = open_model(run).whole("testing")
    expected = array(vae.generator()(z))
    np.testing.assert_allclose(runtime.Generator(tmp_path / "generator.onnx").generate(z), expected, atol=1e-4)
    served = open_artifact(tmp_path / "1")
    assert served.generate is not None
    np.testing.assert_allclose(served.generate(z), expected, atol=1e-4)
    assert command("verify", run, tmp_path / "1", tmp_path / "decoder.onnx", tmp_path / "generator.onnx").status == 0
    refused = command("sample", tmp_path / "decoder.onnx", "--out", tmp_path / "a.png")
    assert refused.status == 2
    assert f"decoder.onnx is a decoder alone, and knows no prior: give {tmp_path / 'generator.onnx'}" in refused.err
    assert command("sample", tmp_path / "decoder.onnx", "--prior", "standard", "--out", tmp_path / "a.png").status == 0


@pytest.mark.slow
def test_a_generator_of_another_prior_is_found_out(run: Path, tmp_path: Path, command: Command) -> None:
    work = Path(shutil.copytree(run, tmp_path / "run"))
    assert command("export", work).status == 0
    assert command("verify", work).status == 0
    vae = open_model(work).whole("testing")
    vae.prior.mean.assign(vae.prior.mean + 0.05)
    vae.save(work / "model.keras")
    outcome = command("verify", work, "--json")
    assert outcome.status == 1
    pairs = json.loads(outcome.out)["pairs"]
    assert [pair["passed"] for pair in pairs].count(False) == 2  # the generator's file, and the SavedModel's signature


@pytest.mark.slow  # the command exports all in test_deployment.py
@pytest.mark.parametrize("format", [("onnx", "g.onnx"), ("litert", "g.tflite"), ("openvino", "g.xml")])
def test_generators_of_every_format(run: Path, format: tuple[str, str], tmp_path: Path) -> None:
    vae = open_model(run).whole("testing")
    report = vae.export(tmp_path / format[1], format[0], part="generator")
    assert report.passed
    opened = open_artifact(tmp_path / format[1])
    assert (opened.decode, opened.latent_dim, opened.image_shape) == (None, 8, (16, 16, 3))
    assert opened.generate is not None
    for batch in (0, 1, 7):
        noise = latents.draw(max(batch, 1), 8, batch)[:batch]
        found = opened.generate(noise)
        assert found.shape == (batch, 16, 16, 3)
        if batch:
            np.testing.assert_allclose(found, array(vae.generator()(noise)), atol=1e-4)


def test_a_run_without_a_learned_prior(image_folder: Path, tmp_path: Path, command: Command) -> None:
    options = ("--image-size", 16, "--latent-dim", 8, "--batch-size", 16, "--perceptual", "none", "--steps", 4)
    options += ("--network-option", "width=4")
    assert (
        command("train", "--data", image_folder, "--out", tmp_path / "r", *options, "--prior", "standard").status == 0
    )
    assert open_model(tmp_path / "r").whole("testing").prior.kind == "standard"
    outcome = command("train", "--data", image_folder, "--out", tmp_path / "q", *options, "--prior", "flow")
    assert (outcome.status, outcome.err.strip()) == (2, "keras-vae: unknown prior 'flow': choose learned or standard")
    assert not (tmp_path / "q").exists()


def test_walks_go_along_the_prior(run: Path, image_folder: Path, tmp_path: Path, command: Command) -> None:
    """An interpolation's ends are the images' own reconstructions, to the last pixel."""
    paths = sorted(image_folder.glob("*.png"))[:2]
    starts = [word for path in paths for word in ("--image", path)]
    outcome = command("interpolate", run, *starts, "--steps", 5, "--out", tmp_path / "i.png", "--json")
    assert outcome.status == 0, outcome.err
    outcome = command("traverse", run, "--image", paths[0], "--latents", 3, "--out", tmp_path / "t.png", "--json")
    assert json.loads(outcome.out)["latents"] == [0, 1, 2]
    from keras_vae.latents import walks

    model = open_model(run)
    vae = model.whole("testing")
    images = walks.read_images(model, paths)
    z = array(vae.encode(images).mode())
    walk = walks.walk_from(model, z)
    assert walk.along_prior
    way = walk.between(0, 1, 5, "spherical")
    np.testing.assert_allclose(way[[0, -1]], array(vae.decode(z)), atol=1e-4)
    np.testing.assert_allclose(walk.along(0, 1, [float(walk.points[0, 1])])[0], array(vae.decode(z))[0], atol=1e-4)
