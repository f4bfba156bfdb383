"""Known values of the posterior and the likelihoods, where mathematics or SciPy gives them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keras_vae import DiagonalGaussian, InputError
from keras_vae.distributions import Bernoulli, Gaussian, get_likelihood

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


def test_unusable_likelihoods_are_refused() -> None:
    with pytest.raises(InputError, match="gaussian, bernoulli"):
        get_likelihood("poisson")
    for variance in (0, -1, float("nan")):
        with pytest.raises(InputError, match="positive"):
            Gaussian(variance)
