"""Known values of the posterior and the likelihoods, where mathematics or SciPy gives them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keras_vae import DiagonalGaussian, InputError
from keras_vae.model.distributions import (
    LIKELIHOODS,
    Bernoulli,
    DiscretizedLogistic,
    Gaussian,
    GaussianCalibrated,
    get_likelihood,
)

parameters = hnp.arrays(np.float32, (3, 5), elements=st.floats(-4, 4, width=32))


@given(mean=parameters, log_var=parameters)
def test_kl_is_the_integral_it_stands_for(mean: np.ndarray, log_var: np.ndarray) -> None:
    # KL(q||p) = H(q, p) - H(q): cross-entropy with the standard normal less the entropy SciPy knows.
    scale = np.exp(0.5 * log_var.astype(np.float64))
    cross_entropy = 0.5 * (np.log(2 * np.pi) + mean.astype(np.float64) ** 2 + scale**2)
    expected = (cross_entropy - scipy.stats.norm(mean, scale).entropy()).sum(-1)
    kl = DiagonalGaussian(mean, log_var).kl().numpy()
    np.testing.assert_allclose(kl, expected, rtol=1e-4, atol=1e-4)
    assert (kl >= -1e-5).all()


def test_kl_of_the_prior_is_zero() -> None:
    assert DiagonalGaussian(np.zeros((2, 7)), np.zeros((2, 7))).kl().numpy().tolist() == [0, 0]


def test_kl_agrees_with_monte_carlo() -> None:
    posterior = DiagonalGaussian(np.array([[0.5, -1.0, 0.2]]), np.array([[-0.7, 0.3, -2.0]]))
    draws = np.stack([posterior.sample(seed).numpy()[0] for seed in range(4000)])
    q = scipy.stats.norm(posterior.mean.numpy()[0], np.exp(0.5 * posterior.log_var.numpy()[0]))
    ratios = (q.logpdf(draws) - scipy.stats.norm.logpdf(draws)).sum(-1)
    error = ratios.std() / np.sqrt(len(ratios))
    assert abs(ratios.mean() - float(posterior.kl()[0])) < 4 * error


def test_samples_have_the_moments_and_follow_the_seed() -> None:
    posterior = DiagonalGaussian(np.full((20_000, 1), 3.0), np.full((20_000, 1), np.log(4.0)))
    draw = posterior.sample(seed=0).numpy()
    assert abs(draw.mean() - 3) < 0.06
    assert abs(draw.std() - 2) < 0.05
    assert (draw == posterior.sample(seed=0).numpy()).all()
    assert (draw != posterior.sample(seed=1).numpy()).any()
    stream = keras.random.SeedGenerator(0)
    assert (posterior.sample(stream).numpy() != posterior.sample(stream).numpy()).any()
    assert (posterior.mode().numpy() == 3).all()


def test_samples_are_differentiable() -> None:
    mean, log_var = tf.Variable([[0.0, 1.0]]), tf.Variable([[0.0, -1.0]])
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(DiagonalGaussian(mean, log_var).sample(0))
    d_mean, d_log_var = tape.gradient(value, [mean, log_var])
    noise = DiagonalGaussian(np.zeros((1, 2)), np.zeros((1, 2))).sample(0).numpy()
    np.testing.assert_allclose(d_mean, [[1, 1]])
    np.testing.assert_allclose(d_log_var, 0.5 * np.exp(0.5 * log_var.numpy()) * noise, rtol=1e-5)


def test_half_precision_parameters_are_reduced_in_float32() -> None:
    half = DiagonalGaussian(np.full((1, 5000), 3, np.float16), np.zeros((1, 5000), np.float16))
    assert half.kl().dtype == "float32"
    assert float(half.kl()[0]) == pytest.approx(0.5 * 9 * 5000)  # beyond what float16 can add up


def test_different_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="same shape"):
        DiagonalGaussian(np.zeros((2, 3)), np.zeros((2, 4)))


@pytest.fixture
def pixels() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.random((4, 6, 5, 3), np.float32), rng.random((4, 6, 5, 3), np.float32)


@pytest.mark.parametrize("variance", [0.01, 0.05, 2.0])
def test_gaussian_log_likelihood_against_scipy(pixels: tuple[np.ndarray, np.ndarray], variance: float) -> None:
    images, decoded = pixels
    expected = scipy.stats.norm(decoded, np.sqrt(variance)).logpdf(images).sum((1, 2, 3))
    np.testing.assert_allclose(Gaussian(variance).log_prob(images, decoded), expected, rtol=1e-5)


def test_bernoulli_log_likelihood_against_scipy(pixels: tuple[np.ndarray, np.ndarray]) -> None:
    images, decoded = np.round(pixels[0]), pixels[1]
    expected = scipy.stats.bernoulli(decoded).logpmf(images).sum((1, 2, 3))
    np.testing.assert_allclose(Bernoulli().log_prob(images, decoded), expected, rtol=1e-4)
    assert np.isfinite(Bernoulli().log_prob(images, images)).all()


def test_log_prob_of_latents_against_scipy() -> None:
    rng = np.random.default_rng(1)
    mean, log_var, z = rng.standard_normal((3, 5, 4))
    expected = scipy.stats.norm(mean, np.exp(0.5 * log_var)).logpdf(z).sum(-1)
    np.testing.assert_allclose(DiagonalGaussian(mean, log_var).log_prob(z), expected, rtol=1e-5)


def test_calibrated_variance_is_the_best_there_is(pixels: tuple[np.ndarray, np.ndarray]) -> None:
    images, decoded = pixels
    best = float(np.square(images - decoded).mean())
    calibrated = GaussianCalibrated().log_prob(images, decoded, training=True)
    np.testing.assert_allclose(calibrated, Gaussian(best).log_prob(images, decoded), rtol=1e-5)
    for variance in (0.9 * best, 1.1 * best):
        assert np.sum(calibrated) > np.sum(Gaussian(variance).log_prob(images, decoded))


def test_calibrated_gradient_is_that_of_the_logarithm_of_the_error(pixels: tuple[np.ndarray, np.ndarray]) -> None:
    """Rybkin et al. 2021, equation 9: with the optimal variance the loss is D/2 log(mean squared error) + constant."""
    images, decoded = pixels[0], tf.Variable(pixels[1])
    with tf.GradientTape(persistent=True) as tape:
        calibrated = -tf.reduce_mean(GaussianCalibrated().log_prob(images, decoded, training=True))
        logarithm = 0.5 * (6 * 5 * 3) * tf.math.log(tf.reduce_mean(tf.square(images - decoded)))
    np.testing.assert_allclose(
        tape.gradient(calibrated, decoded), tape.gradient(logarithm, decoded), rtol=1e-4, atol=1e-6
    )


def test_evaluation_uses_the_variance_that_training_found(pixels: tuple[np.ndarray, np.ndarray]) -> None:
    images, decoded = pixels
    likelihood = GaussianCalibrated()
    for scale in (1.0, 0.5):  # two training batches, of which the second fits better
        likelihood.log_prob(images, images + scale * (decoded - images), training=True)
    error = np.square(images - decoded).mean()
    assert likelihood.variance == pytest.approx((error + error / 4) / 2, rel=1e-5)
    np.testing.assert_allclose(
        likelihood.log_prob(images, decoded), Gaussian(likelihood.variance).log_prob(images, decoded), rtol=1e-5
    )
    before = likelihood.variance
    likelihood.log_prob(images, images)  # evaluation leaves no trace
    assert likelihood.variance == before


def test_calibrated_likelihood_of_a_perfect_reconstruction_is_finite(pixels: tuple[np.ndarray, np.ndarray]) -> None:
    assert np.isfinite(GaussianCalibrated().log_prob(pixels[0], pixels[0], training=True)).all()


@pytest.mark.parametrize("scale", [0.002, 0.05, 0.5])
def test_discretized_logistic_against_scipy(scale: float) -> None:
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (4, 6, 5, 3))
    levels[0, :2] = [[[0], [255], [0], [255], [128]]]
    # Not far from the image: there the differences of SciPy's distribution functions are still exact.
    decoded = np.clip(levels / 255 + 3 * scale * rng.uniform(-1, 1, levels.shape), 0, 1)
    logistic = scipy.stats.logistic(decoded, scale)
    upper = np.where(levels == 255, 1.0, logistic.cdf((levels + 0.5) / 255))
    lower = np.where(levels == 0, 0.0, logistic.cdf((levels - 0.5) / 255))
    expected = np.log(upper - lower).sum((1, 2, 3))
    likelihood = DiscretizedLogistic(scale)
    np.testing.assert_allclose(likelihood.log_prob(levels / 255, decoded), expected, rtol=1e-4)
    assert likelihood.scale == pytest.approx(scale)


@settings(deadline=None, max_examples=25)
@given(st.floats(1e-4, 1.0), st.floats(0.0, 1.0))
def test_discretized_logistic_probabilities_add_up_to_one(scale: float, decoded: float) -> None:
    levels = (np.arange(256) / 255).reshape(256, 1, 1, 1)
    log_prob = DiscretizedLogistic(scale).log_prob(levels, np.full_like(levels, decoded)).numpy()
    assert np.isfinite(log_prob).all()  # also hundreds of scales away, where float32 knows no such probability
    assert scipy.special.logsumexp(log_prob.astype(np.float64)) == pytest.approx(0.0, abs=2e-3)


def test_discretized_logistic_learns_its_scale(pixels: tuple[np.ndarray, np.ndarray]) -> None:
    likelihood = DiscretizedLogistic(0.5)
    rng = np.random.default_rng(0)
    images = np.clip(0.5 + 0.03 * rng.logistic(size=(8, 16, 16, 3)), 0, 1)
    optimizer = keras.optimizers.Adam(0.05)
    for _ in range(150):
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(likelihood.log_prob(images, np.full_like(images, 0.5), training=True))
        optimizer.apply(tape.gradient(loss, likelihood.trainable_weights), likelihood.trainable_weights)
    assert likelihood.scale == pytest.approx(0.03, rel=0.05)


@pytest.mark.parametrize("kind", sorted(LIKELIHOODS))
def test_likelihoods_survive_serialization(kind: str) -> None:
    likelihood = get_likelihood(kind)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(likelihood))
    assert type(again) is type(likelihood)
    assert again.get_config() == likelihood.get_config()


def test_unusable_likelihoods_are_refused() -> None:
    with pytest.raises(InputError, match="gaussian, gaussian-calibrated, bernoulli, discretized-logistic"):
        get_likelihood("poisson")
    for variance in (0, -1, float("nan")):
        with pytest.raises(InputError, match="positive"):
            Gaussian(variance)
        with pytest.raises(InputError, match="positive"):
            DiscretizedLogistic(variance)


@pytest.mark.parametrize("likelihood", [Gaussian(variance=0.03), GaussianCalibrated()], ids=lambda each: each.kind)
def test_the_nats_of_a_gaussian_tell_the_squared_error(likelihood: Gaussian | GaussianCalibrated) -> None:
    rng = np.random.default_rng(0)
    for training in (True, False):  # the second batch has another error than the variance stands for
        images, decoded = rng.uniform(0, 1, (2, 6, 8, 8, 3)).astype(np.float32)
        decoded = images + (0.1 if training else 0.3) * (decoded - images)
        nats = -float(tf.reduce_mean(likelihood.log_prob(images, decoded, training)))
        found = likelihood.mean_squared_error(nats, 8 * 8 * 3, training)
        assert found == pytest.approx(np.square(images - decoded).mean(), rel=1e-3)


def test_the_nats_of_others_do_not() -> None:
    assert Bernoulli().mean_squared_error(100.0, 192) is None
    assert DiscretizedLogistic().mean_squared_error(100.0, 192) is None
