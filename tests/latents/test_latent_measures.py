"""What latents of real images are like: closed forms, and data of known structure."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from scipy import stats

import keras_vae
from keras_vae import InputError
from keras_vae.evaluation import learned_prior, posterior
from keras_vae.latents import attributes, disentanglement
from keras_vae.model import priors
from keras_vae.model.encoding import Encoded, Reservoir, encode


def encoded(mean: np.ndarray, log_var: np.ndarray | float = -2.0, **labels: np.ndarray) -> Encoded:
    mean = np.asarray(mean, np.float32)
    log_var = np.broadcast_to(np.asarray(log_var, np.float32), mean.shape)
    table = np.stack(list(labels.values()), axis=1) if labels else np.empty((len(mean), 0))
    return Encoded(mean, log_var, table.astype(np.uint8), tuple(labels), len(mean))


def test_a_reservoir_keeps_all_of_few_and_a_fair_share_of_many() -> None:
    few = Reservoir(10)
    few.update(np.arange(4), np.arange(4) * 2)
    np.testing.assert_array_equal(few.columns(), [np.arange(4), np.arange(4) * 2])
    counts = np.zeros(40)
    for seed in range(400):
        many = Reservoir(10, seed)
        for start in range(0, 40, 7):
            many.update(np.arange(start, min(start + 7, 40)))
        (kept,) = many.columns()
        assert len(kept) == len(set(kept)) == 10
        counts[kept] += 1
    assert many.seen == 40
    assert stats.chisquare(counts).pvalue > 1e-4


def test_encoding_gives_the_models_posteriors(images: np.ndarray) -> None:
    keras.utils.set_random_seed(0)
    vae = keras_vae.VAE((32, 32, 3), 8, perceptual=None, network_options={"width": 8})
    labels = (np.arange(96) % 3 == 0).astype(np.uint8)[:, None]
    batches = [{"image": images[start : start + 40], "attributes": labels[start : start + 40]} for start in (0, 40, 80)]
    found = encode(vae, batches, ("third",))
    expected = vae.encode(images)
    np.testing.assert_allclose(found.mean, expected.mean, atol=1e-5)
    np.testing.assert_allclose(found.log_var, expected.log_var, atol=1e-5)
    np.testing.assert_array_equal(found.column("third"), labels[:, 0])
    np.testing.assert_allclose(found.kl_per_latent(), np.mean(expected.kl_per_latent(), axis=0), rtol=1e-4)
    few = encode(vae, batches, limit=20, seed=3)
    assert (len(few), few.seen, few.attributes.shape) == (20, 96, (20, 0))
    assert all(np.abs(found.mean - row).sum(axis=1).min() < 1e-4 for row in few.mean)
    with pytest.raises(InputError, match="no images"):
        encode(vae, [])


def test_active_units() -> None:
    rng = np.random.default_rng(0)
    mean = rng.standard_normal((500, 3)) * [1.0, 0.05, 0.2]
    assert posterior.active_units(encoded(mean)) == 2


def test_the_aggregate_posterior_of_the_prior_is_the_prior() -> None:
    """Encoders that say nothing: every posterior is the prior."""
    found = posterior.aggregate_posterior(encoded(np.zeros((200, 4)), 0.0))
    for name in ("mean_kl", "index_information", "kl_from_prior", "gaussian_kl_from_prior"):
        assert found[name] == pytest.approx(0.0, abs=1e-9)


def test_the_aggregate_posterior_of_posteriors_far_apart() -> None:
    """z tells the image's number: the information is log N, and the rest of the KL is that of the mixture."""
    mean = np.array([[-50.0], [0.0], [50.0], [100.0]])
    found = posterior.aggregate_posterior(encoded(mean, 0.0))
    assert found["index_information"] == pytest.approx(math.log(4), abs=1e-6)
    assert found["kl_from_prior"] == pytest.approx(0.5 * np.square(mean).mean() - math.log(4), rel=1e-6)


def test_the_aggregate_posterior_against_integration() -> None:
    mean, log_var = np.array([[-1.0], [0.5], [2.0]]), np.array([[-1.0], [0.0], [-0.5]])
    grid = np.linspace(-12, 12, 20_001)
    density = np.mean(stats.norm(mean, np.exp(0.5 * log_var)).pdf(grid), axis=0)
    expected = np.trapezoid(density * (np.log(density) - stats.norm.logpdf(grid)), grid)
    found = np.mean(
        [posterior.aggregate_posterior(encoded(mean, log_var), seed)["kl_from_prior"] for seed in range(4000)]
    )
    assert found == pytest.approx(expected, abs=0.03)
    moments = np.trapezoid(density * grid, grid), np.trapezoid(density * grid**2, grid)
    variance = moments[1] - moments[0] ** 2
    gaussian = 0.5 * (variance + moments[0] ** 2 - 1 - math.log(variance))
    assert posterior.gaussian_kl(mean, log_var) == pytest.approx(gaussian, rel=1e-5)
    assert gaussian <= expected


def test_the_closed_form_of_the_kl() -> None:
    """Of N(1, 4): (4 + 1 - 1 - log 4) / 2 nats; the mean over images, latent by latent."""
    found = encoded(np.array([[1.0, 0.0], [1.0, 0.0]]), np.log([4.0, 1.0])).kl_per_latent()
    np.testing.assert_allclose(found, [2.0 - math.log(2.0), 0.0], atol=1e-7)


def test_moments_of_a_mixture_are_those_of_its_draws() -> None:
    mean, log_var = np.array([[-1.0, 2.0], [1.0, 0.0]]), np.log([[0.5, 1.0], [1.5, 3.0]])
    centre, covariance = priors.mixture_moments(mean, log_var)
    np.testing.assert_allclose(centre, [0.0, 1.0])
    np.testing.assert_allclose(covariance, [[1.0 + 1.0, -1.0], [-1.0, 1.0 + 2.0]])
    assert priors.mixture_moments(mean[:, :1], log_var[:, :1])[1].shape == (1, 1)


def test_the_nearest_code_by_its_definition() -> None:
    rng = np.random.default_rng(4)
    codes, latents = rng.standard_normal((30, 3)) * [1.0, 5.0, 0.2], rng.standard_normal((20, 3))
    training = encoded(codes)
    deviations = (latents[:, None] - training.mean) / training.mean.std(axis=0)
    expected = np.median(np.sqrt(np.square(deviations).mean(axis=2)).min(axis=1))
    assert learned_prior.nearest_codes(latents, training) == pytest.approx(expected, rel=1e-6)
    assert learned_prior.nearest_codes(training.mean[:5], training) == pytest.approx(0.0, abs=1e-3)


@pytest.fixture(scope="module")
def labelled() -> tuple[Encoded, Encoded]:
    """Latent 2 is higher by 3 with "easy", 4 and 5 together with "both"; "noise" is of no latent."""
    rng = np.random.default_rng(1)

    def draw(count: int) -> Encoded:
        labels = {name: rng.random(count) < share for name, share in (("easy", 0.5), ("both", 0.2), ("noise", 0.5))}
        mean = rng.standard_normal((count, 6))
        mean[:, 2] += 3.0 * labels["easy"]
        mean[:, 4] += 4.0 * labels["both"]
        mean[:, 5] -= 4.0 * labels["both"]
        return encoded(mean, **labels, never=np.zeros(count))

    return draw(3000), draw(1000)


def test_vectors_point_where_attributes_change(labelled: tuple[Encoded, Encoded]) -> None:
    found = attributes.vectors(labelled[0], {"model": "abc"})
    assert found.names == ("easy", "both", "noise")
    np.testing.assert_allclose(found.direction("easy"), [0, 0, 3, 0, 0, 0], atol=0.15)
    np.testing.assert_allclose(found.direction("both"), [0, 0, 0, 0, 4, -4], atol=0.2)
    np.testing.assert_allclose(found.direction("easy", "linear"), [0, 0, 3, 0, 0, 0], atol=0.25)
    np.testing.assert_allclose(found.direction("both", "linear"), [0, 0, 0, 0, 4, -4], atol=0.4)
    np.testing.assert_allclose(np.diag(found.correlation()), 1.0)


def test_predictions_are_what_the_data_allow(labelled: tuple[Encoded, Encoded]) -> None:
    done: list[str] = []
    found = {each.name: each for each in attributes.predict(*labelled, done.append)}
    assert list(found) == done == ["easy", "both", "noise"]
    # Two unit Gaussians 3 apart overlap in Phi(-1.5) of their mass.
    best = stats.norm.cdf(1.5)
    assert found["easy"].balanced_accuracy == pytest.approx(best, abs=0.025)
    assert found["easy"].auc == pytest.approx(stats.norm.cdf(3 / math.sqrt(2)), abs=0.02)
    assert found["both"].accuracy > 0.98
    assert found["both"].majority == pytest.approx(0.8, abs=0.04)
    assert found["noise"].balanced_accuracy == pytest.approx(0.5, abs=0.06)
    assert found["noise"].auc == pytest.approx(0.5, abs=0.06)
    assert found["both"].with_it + found["both"].without_it == 1000


def test_attributes_of_one_class_are_named(labelled: tuple[Encoded, Encoded]) -> None:
    assert attributes.one_class(labelled[0]) == ("never",)
    only = encoded(np.zeros((20, 2)), never=np.zeros(20), always=np.ones(20))
    for call in (attributes.vectors, lambda each: attributes.predict(each, each)):
        with pytest.raises(InputError, match="none of the 2 attributes has 2 images of both classes"):
            call(only)


def test_correlation_of_labels() -> None:
    same = np.arange(40) % 2
    found = attributes.label_correlation(encoded(np.zeros((40, 2)), a=same, b=1 - same, c=np.ones(40)))
    np.testing.assert_allclose(found[:2, :2], [[1, -1], [-1, 1]])
    assert np.isnan(found[2]).all()


def test_mutual_information_gap_of_known_latents() -> None:
    rng = np.random.default_rng(2)
    factors = rng.integers(0, 4, (4000, 2))
    alone = np.stack([factors[:, 0] + 0.0, factors[:, 1] + 0.0, rng.standard_normal(4000)], axis=1)
    gap = disentanglement.mutual_information_gap(alone, factors, ("a", "b"))
    assert gap.mean == pytest.approx(1.0, abs=0.02)
    twice = np.stack([factors[:, 0], factors[:, 0], factors[:, 1], factors[:, 1]], axis=1).astype(float)
    assert disentanglement.mutual_information_gap(twice, factors, ("a", "b")).mean == pytest.approx(0.0, abs=1e-9)
    none = disentanglement.mutual_information_gap(rng.standard_normal((4000, 5)), factors, ("a", "b"))
    assert none.mean < 0.01


def test_dci_of_known_importances() -> None:
    assert disentanglement.dci_of_importances(np.eye(3), 1.0) == disentanglement.DCI(1.0, 1.0, 1.0)
    even = disentanglement.dci_of_importances(np.ones((4, 3)), 0.5)
    assert (even.disentanglement, even.completeness) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))
    # One factor in two latents, each of which is of it alone: disentangled, and not complete.
    split = disentanglement.dci_of_importances(np.array([[1.0, 0], [1.0, 0], [0, 2.0]]), 1.0)
    assert split.disentanglement == pytest.approx(1.0)
    assert split.completeness == pytest.approx(0.5 * (1 - math.log(2) / math.log(3)) + 0.5)


def test_dci_of_latents_that_are_factors(labelled: tuple[Encoded, Encoded]) -> None:
    rng = np.random.default_rng(3)
    factors, unseen = rng.integers(0, 2, (1500, 2)), rng.integers(0, 2, (500, 2))
    found = disentanglement.dci(factors.astype(float), factors, unseen.astype(float), unseen, ("a", "b"))
    assert min(found.disentanglement, found.completeness, found.informativeness) > 0.98
    turn = np.array([[1.0, 1.0], [1.0, -1.0]])
    turned = disentanglement.dci(factors @ turn, factors, unseen @ turn, unseen, ("a", "b"))
    assert turned.disentanglement < 0.5
    with pytest.raises(InputError, match="need 100 images, not 50"):
        disentanglement.mutual_information_gap(np.zeros((50, 2)), factors[:50], ("a", "b"))
    with pytest.raises(InputError, match="'b' has one value alone"):
        disentanglement.mutual_information_gap(np.zeros((200, 2)), factors[:200] * [1, 0], ("a", "b"))
