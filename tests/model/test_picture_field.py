"""The part of a prior that convolves the image that codes draw: what it sees, and that priors with it are priors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_vae import VAE
from keras_vae.export import latents, runtime
from keras_vae.model import flow_matching, generative, picture_field, priors

LATENTS = 20


def array(tensor: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor)


@pytest.fixture(scope="module")
def kinds() -> np.ndarray:
    """Sixteen images of a bright square on black, 32x32x3, each with it in another place."""
    images = np.zeros((16, 32, 32, 3), np.float32)
    for number, image in enumerate(images):
        row, column = divmod(number, 4)
        image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 1.0
    return images


@pytest.fixture(scope="module")
def codes(kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes of images of these kinds, and the orthogonal axes that decode them, float32 (20, 3072)."""
    axes, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((3072, LATENTS - 16)))
    axes = np.concatenate([np.linalg.qr(kinds.reshape(16, -1).T)[0], axes], axis=1).T
    turn, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((LATENTS, LATENTS)))
    axes = (turn @ axes).astype(np.float32)
    rng = np.random.default_rng(2)
    shown = kinds.reshape(16, -1)[rng.integers(16, size=4000)] @ axes.T
    return (shown + 0.3 * rng.standard_normal(shown.shape)).astype(np.float32), axes


@pytest.fixture(scope="module")
def fitted(codes: tuple[np.ndarray, np.ndarray]) -> priors.FlowMatchingPrior:
    mean, axes = codes

    def decode(z: np.ndarray) -> np.ndarray:
        return (z @ axes).reshape(-1, 32, 32, 3)

    return flow_matching.fit(mean, np.full_like(mean, -6.0), steps=400, decode=decode)


def test_the_picture_of_a_linear_decoder_is_its_matrix() -> None:
    """Of 64x64 pixels nothing is scaled, and what components leave out here is nothing: only a turn and a scale."""
    rng = np.random.default_rng(0)
    patterns = rng.standard_normal((5, 48))
    matrix = np.einsum("apc,ck->apk", rng.standard_normal((5, 64, 5)), patterns)  # axes, places, pixels of a patch
    pixels = np.zeros((5, 8, 8, 8, 8, 1))
    pixels[:, :, :6, :, :8, 0] = matrix.reshape(5, 8, 8, 6, 8).swapaxes(2, 3)
    pixels = pixels.reshape(5, 64, 64, 1)
    codes = rng.standard_normal((300, 5))
    found = picture_field.patch_map(codes, lambda rows: np.einsum("na,ahwc->nhwc", codes[rows], pixels) + 0.5)
    assert (found.shape, found.dtype) == ((5, 64 * 48), np.float32)
    assert np.square(codes @ found).mean() == pytest.approx(np.square(codes).mean(), rel=0.1)
    flat = pixels.reshape(5, -1)
    known = flat @ flat.T
    known *= np.square(found).sum() / np.trace(known)
    np.testing.assert_allclose(found @ found.T, known, atol=1e-3 * known.max())  # the ridge is 1e-3


def test_the_picture_of_few_codes_is_finite() -> None:
    codes = np.random.default_rng(0).standard_normal((3, 30))
    found = picture_field.patch_map(codes, lambda rows: codes[rows, :1, None, None] * np.ones((1, 20, 28, 3)))
    assert np.isfinite(found).all()


def test_a_flow_with_a_picture_draws_where_the_codes_are(
    fitted: priors.FlowMatchingPrior, kinds: np.ndarray, codes: tuple[np.ndarray, np.ndarray]
) -> None:
    images = kinds.reshape(16, -1)

    def shares(z: np.ndarray) -> tuple[float, np.ndarray]:
        """Distance of what is drawn to the nearest kind, and how often each is."""
        distances = np.linalg.norm((z @ codes[1])[:, None] - images, axis=2)
        return float(distances.min(axis=1).mean()), np.bincount(distances.argmin(axis=1), minlength=16) / len(z)

    noise = latents.draw(2000, LATENTS, 0)
    gaussian = priors.gaussian(codes[0], np.full_like(codes[0], -6.0))
    (far, _), (near, each), (known, _) = (shares(z) for z in (array(gaussian(noise)), array(fitted(noise)), codes[0]))
    assert near < known + 0.3 * (far - known)
    assert each.min() > 0.02  # of 0.0625


def test_the_same_seed_fits_the_same(codes: tuple[np.ndarray, np.ndarray]) -> None:
    mean, axes = codes
    fits = (
        flow_matching.fit(
            mean,
            np.full_like(mean, -6.0),
            seed=7,
            steps=8,
            decode=lambda z: (z @ axes).reshape(-1, 32, 32, 3),
        )
        for _ in range(2)
    )
    one, same = (fit.get_weights() for fit in fits)
    for left, right in zip(one, same, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.slow
def test_the_density_is_estimated_without_bias(
    fitted: priors.FlowMatchingPrior, codes: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = codes[0][:48]
    estimated = array(fitted.log_prob(some))
    monkeypatch.setattr(priors, "PROBES", LATENTS)  # exact
    other = priors.FlowMatchingPrior.from_config(fitted.get_config())
    other.set_weights(fitted.get_weights())
    exact = array(other.log_prob(some))
    error = (estimated - exact).std() / np.sqrt(len(exact))  # each row has directions of its own
    assert 0.0 < error < 0.5
    assert (estimated - exact).mean() == pytest.approx(0.0, abs=4.0 * error)


@pytest.mark.parametrize("condition", [None, pytest.param(3, marks=pytest.mark.slow)])
def test_a_model_of_many_latents_keeps_its_picture(
    condition: int | None, kinds: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generative, "LEAST_PICTURED", LATENTS)
    options: dict[str, Any] = {"perceptual": None, "network_options": {"width": 4}, "condition": condition}
    vae = VAE((32, 32, 3), LATENTS, **options)
    vae.compile()
    images = np.repeat(kinds, 8, axis=0)
    vae.fit_prior(images, steps=6, labels=None if condition is None else np.arange(128) % 3)
    assert vae.prior.picture is not None
    assert np.asarray(vae.prior.picture.last).any()
    drawn = array(vae.sample(4, seed=0, condition=None if condition is None else [0, 1, 2, -1]))
    vae.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras")
    again = loaded.sample(4, seed=0, condition=None if condition is None else [0, 1, 2, -1])
    np.testing.assert_array_equal(array(again), drawn)
    noise = latents.draw(4, LATENTS, 1)
    np.testing.assert_allclose(
        array(loaded.prior(loaded.prior.inverse(loaded.prior(noise)))), loaded.prior(noise), atol=0.05
    )
    report = vae.export(tmp_path / "generator.onnx", "onnx", part="generator")
    assert max(pair.max_difference for pair in report.pairs) < 1e-4
    if condition is None:
        np.testing.assert_allclose(runtime.Generator(tmp_path / "generator.onnx").sample(4, seed=0), drawn, atol=1e-4)


@pytest.mark.parametrize(
    "format", [pytest.param(name, marks=pytest.mark.slow) for name in ("tf_saved_model", "litert", "openvino")]
)
def test_a_picture_is_exported_in_every_format(format: str, fitted: priors.FlowMatchingPrior, tmp_path: Path) -> None:
    """Each export compares itself with Keras, on no rows too."""
    if format == "openvino":
        pytest.importorskip("openvino")
    if format == "litert":
        pytest.importorskip("ai_edge_litert")
    vae = VAE((32, 32, 3), LATENTS, perceptual=None, network_options={"width": 4})
    vae.set_prior(fitted)
    ending = {"tf_saved_model": "1", "litert": "generator.tflite", "openvino": "generator.xml"}[format]
    vae.export(tmp_path / ending, format, part="decoder" if format == "tf_saved_model" else "generator")


def test_images_that_are_all_alike_leave_the_picture_out() -> None:
    mean = np.random.default_rng(0).standard_normal((40, LATENTS)).astype(np.float32)
    prior = flow_matching.fit(
        mean, np.full_like(mean, -6.0), steps=2, decode=lambda z: np.full((len(z), 16, 16, 1), 0.5, np.float32)
    )
    assert prior.picture is None
    assert np.isfinite(array(prior(latents.draw(4, LATENTS, 0)))).all()


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_images_are_enough(count: int, kinds: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generative, "LEAST_PICTURED", LATENTS)
    vae = VAE((32, 32, 3), LATENTS, perceptual=None, network_options={"width": 4})
    vae.fit_prior(kinds[:count], steps=4)
    assert np.isfinite(array(vae.sample(4, seed=0))).all()


def test_priors_without_a_picture_are_read_as_earlier_versions_wrote_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = VAE((16, 16, 3), 4, perceptual=None, network_options={"width": 4})
    vae.compile()
    vae.fit_prior(np.random.default_rng(0).random((64, 16, 16, 3), np.float32), steps=3)
    from keras_vae.model import state

    monkeypatch.setattr(state, "PRIOR_SIZES", state.PRIOR_SIZES[:2])
    vae.save(tmp_path / "vae.keras")
    monkeypatch.undo()
    loaded = keras.saving.load_model(tmp_path / "vae.keras")
    np.testing.assert_array_equal(array(loaded.sample(4, seed=0)), array(vae.sample(4, seed=0)))
