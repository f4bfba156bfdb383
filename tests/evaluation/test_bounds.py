"""The importance-weighted bound against a model whose log p(x) is known exactly, and `keras-vae evaluate`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import scipy.stats

from keras_vae import VAE, InputError
from keras_vae.model import bounds
from keras_vae.model.bounds import importance_weighted_bound
from keras_vae.model.distributions import Gaussian

MakeVAE = Callable[..., VAE]
SHAPE, LATENTS, SIGMA = (3, 2, 1), 2, 0.05  # images well within [0, 1]
VALUES = 6


def linear_gaussian(widen: float) -> tuple[VAE, np.ndarray, Any]:
    """A VAE whose decoder is z -> W z + b, images drawn from it, and their exact distribution N(b, W W' + sigma^2).

    Its encoder is the exact posterior (Bishop 2006, equation 2.116) with a variance `widen` times as large.
    """
    rng = np.random.default_rng(3)
    weights, bias = 0.04 * rng.standard_normal((VALUES, LATENTS)), np.full(VALUES, 0.5)
    covariance = np.linalg.inv(np.eye(LATENTS) + weights.T @ weights / SIGMA**2)
    weights = weights @ np.linalg.eigh(covariance)[1]  # latents turned, so that the posterior is diagonal
    covariance = np.linalg.inv(np.eye(LATENTS) + weights.T @ weights / SIGMA**2)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-12)

    image = keras.Input(SHAPE)
    flat = keras.layers.Flatten()(image)
    mean, log_var = keras.layers.Dense(LATENTS), keras.layers.Dense(LATENTS)
    encoder = keras.Model(image, {"mean": mean(flat), "log_var": log_var(flat)})
    gain = covariance @ weights.T / SIGMA**2
    mean.set_weights([gain.T, -gain @ bias])
    log_var.set_weights([np.zeros((VALUES, LATENTS)), np.log(widen * np.diag(covariance))])
    decode = keras.layers.Dense(VALUES)
    decoder = keras.Sequential([keras.Input((LATENTS,)), decode, keras.layers.Reshape(SHAPE)])
    decode.set_weights([weights.T, bias])

    exact = scipy.stats.multivariate_normal(bias, weights @ weights.T + SIGMA**2 * np.eye(VALUES))
    images = exact.rvs(400, random_state=4).astype(np.float32)
    with pytest.warns(UserWarning, match="whatever the latents"):  # a linear decoder leaves [0, 1] far out
        vae = VAE(encoder=encoder, decoder=decoder, likelihood=Gaussian(SIGMA**2), perceptual=None, seed=0)
    vae.compile()
    return vae, images.reshape(-1, *SHAPE), exact.logpdf(images)


def test_the_exact_posterior_gives_the_exact_likelihood_from_one_draw() -> None:
    vae, images, exact = linear_gaussian(widen=1.0)
    bound = importance_weighted_bound(vae, [images], samples=1)
    np.testing.assert_allclose(bound.per_image, exact, atol=2e-3)
    elbo = vae.evaluate(images, batch_size=400, verbose=0, return_dict=True)["elbo"]
    assert elbo == pytest.approx(exact.mean(), abs=0.15)  # one draw of log p(x | z), with the closed KL: noisy


def test_a_posterior_that_is_off_comes_to_the_exact_likelihood_with_many_draws() -> None:
    vae, images, exact = linear_gaussian(widen=3.0)
    found = {samples: importance_weighted_bound(vae, [images], samples, seed=1) for samples in (1, 10, 5000)}
    assert found[1].mean < found[10].mean < found[5000].mean + 0.01  # never falls with K
    assert found[5000].mean == pytest.approx(exact.mean(), abs=0.01)
    assert found[1].mean < exact.mean() - 0.3
    np.testing.assert_allclose(found[5000].per_image, exact, atol=0.15)
    assert found[5000].standard_error == pytest.approx(exact.std(ddof=1) / 20, rel=0.05)
    assert abs(found[5000].mean - exact.mean()) < 4 * found[5000].sampling_error


@pytest.mark.parametrize("values", [6, 60, 600])
def test_draws_do_not_depend_on_how_they_are_batched(monkeypatch: pytest.MonkeyPatch, values: int) -> None:
    vae, images, _ = linear_gaussian(widen=2.0)
    expected = importance_weighted_bound(vae, [images[:30]], samples=25).per_image
    monkeypatch.setattr(bounds, "DECODED_VALUES", values)
    found = importance_weighted_bound(vae, [images[:7], images[7:30]], samples=25).per_image
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_memory_does_not_grow_with_the_number_of_draws(monkeypatch: pytest.MonkeyPatch, make_vae: MakeVAE) -> None:
    vae = make_vae()
    seen: list[int] = []
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda z: seen.append(z.shape[0]) or decode(z))
    monkeypatch.setattr(bounds, "DECODED_VALUES", 50 * 32 * 32 * 3)
    bound = importance_weighted_bound(vae, [np.zeros((2, 32, 32, 3), np.float32)], samples=5000)
    assert np.isfinite(bound.mean)
    assert all(count is None or count <= 50 for count in seen)


def test_every_form_of_batch_gives_the_same_bound(make_vae: MakeVAE, images: np.ndarray) -> None:
    vae, labels = make_vae(), np.arange(8)
    forms = (images[:8], (images[:8], labels), {"image": images[:8], "label": labels})
    found = {importance_weighted_bound(vae, [batch], samples=3).mean for batch in forms}
    assert len(found) == 1


def test_the_sampling_error_is_the_spread_of_repeated_bounds() -> None:
    vae, images, _ = linear_gaussian(widen=1.3)
    repeated = [importance_weighted_bound(vae, [images[:40]], 50, seed) for seed in range(40)]
    spread = np.std([bound.mean for bound in repeated], ddof=1)
    assert np.median([bound.sampling_error for bound in repeated]) == pytest.approx(spread, rel=0.4)
    assert np.isnan(importance_weighted_bound(vae, [images[:4]], 1).sampling_error)


def test_unusable_requests_are_refused(make_vae: MakeVAE, images: np.ndarray) -> None:
    with pytest.raises(InputError, match="at least 1"):
        importance_weighted_bound(make_vae(), [images], samples=0)
    with pytest.raises(InputError, match="no images"):
        importance_weighted_bound(make_vae(), [])


# The command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a learned scale, features and averaged weights: what an evaluation could get wrong."""
    from keras_vae.training import TrainingConfig, train

    out = tmp_path_factory.mktemp("runs") / "run"
    train(
        TrainingConfig(
            data=str(image_folder),
            out=str(out),
            epochs=2,
            batch_size=5,
            image_size=16,
            latent_dim=4,
            network_options={"width": 4},
            prior="standard",
            perceptual="hed-vgg16",
            likelihood="discretized-logistic",
            ema=0.9,
            precision="float32",
        )
    )
    return out


@pytest.mark.slow
def test_fit_evaluate_and_the_command_find_the_same_figures(
    run_folder: Path, image_folder: Path, command: Callable[..., Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        outcome = command("evaluate", run_folder, "--json")
    assert outcome.status == 0
    figures = json.loads(outcome.out)
    last = json.loads((run_folder / "metrics.jsonl").read_text().splitlines()[-1])
    vae = keras.saving.load_model(run_folder / "model.keras")
    from keras_vae import data

    images = np.concatenate(list(data.load(image_folder, 16, 5).test.as_numpy_iterator()))
    assert len(images) % 5  # the last batch is smaller
    evaluated = vae.evaluate(images, batch_size=5, verbose=0, return_dict=True)
    assert {"elbo", "kl", "reconstruction", "perceptual", "bits_per_dim", "active_units", "loss"} == set(evaluated)
    for name, value in evaluated.items():
        assert figures[name] == pytest.approx(value, rel=1e-5)
        assert last[f"val_{name}"] == pytest.approx(value, rel=1e-4)
    assert figures["images"] == len(images)
    assert figures["bits_per_dim"] == pytest.approx(-figures["elbo"] / (np.log(2) * 16 * 16 * 3), rel=1e-5)


@pytest.mark.slow
def test_importance_samples_on_the_command_line(run_folder: Path, command: Callable[..., Any]) -> None:
    arguments = ("evaluate", run_folder, "--importance-samples", 20, "--limit", 4, "--json")
    first, second = (json.loads(command(*arguments).out) for _ in range(2))
    assert first == second
    assert first["images"] == 4
    assert first["importance_weighted_bound"] > first["elbo"]
    assert first["standard_error"] > 0
    outcome = command("evaluate", run_folder, "--importance-samples", 1, "--limit", 1, "--json")
    unknown = json.loads(outcome.out, parse_constant=pytest.fail)  # JSON has no NaN
    assert unknown["standard_error"] is unknown["sampling_error"] is None


def test_without_the_feature_network_the_rest_is_measured(
    run_folder: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from keras_vae.features import feature_networks

    def absent() -> Path:
        raise InputError("not installed")

    monkeypatch.setattr(feature_networks, "_hed_weights", absent)
    outcome = command("evaluate", run_folder, "--features", "none", "--limit", 20, "--json")
    assert outcome.status == 0
    figures = json.loads(outcome.out)
    assert "elbo" in figures
    assert not {"loss", "perceptual"} & set(figures)
    assert "not installed" in outcome.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--importance-samples", 0), "--importance-samples 0"),
        (("--limit", -1), "--limit -1"),
        (("--data", "/nowhere"), "/nowhere"),
    ],
)
def test_wrong_use_is_one_line(
    run_folder: Path, command: Callable[..., Any], options: tuple[Any, ...], message: str
) -> None:
    outcome = command("evaluate", run_folder, *options)
    assert outcome.status == 2
    assert message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
