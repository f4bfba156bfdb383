"""Measures of reconstructions, against libraries that compute the same, and known values."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from keras_vae import InputError
from keras_vae.evaluation import fidelity


@pytest.fixture(scope="module")
def pair(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    noise = np.random.default_rng(0).normal(0, 0.1, images[:8].shape)
    return images[:8], np.clip(images[:8] + noise, 0, 1).astype(np.float32)


def test_mse_and_psnr_are_scikit_images(pair: tuple[np.ndarray, np.ndarray]) -> None:
    expected = [mean_squared_error(*each) for each in zip(*pair, strict=True)]
    np.testing.assert_allclose(fidelity.mean_squared_error(*pair), expected, rtol=1e-5)
    assert fidelity.psnr(*pair) == pytest.approx(peak_signal_noise_ratio(*pair, data_range=1.0), rel=1e-5)


def test_ssim_is_scikit_images(pair: tuple[np.ndarray, np.ndarray]) -> None:
    expected = [
        structural_similarity(
            one, other, channel_axis=2, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for one, other in zip(*pair, strict=True)
    ]
    np.testing.assert_allclose(fidelity.ssim(*pair), expected, atol=1e-4)


MS_SSIM_OF_TORCHMETRICS = {3: 0.9581, 5: 0.91172}


@pytest.mark.parametrize(("side", "scales"), [(11, 1), (20, 1), (21, 2), (32, 2), (41, 3), (64, 3), (161, 5), (176, 5)])
def test_ms_ssim_takes_as_many_scales_as_fit(side: int, scales: int) -> None:
    images = np.random.default_rng(0).random((2, side, side, 3)).astype(np.float32)
    found, used = fidelity.ms_ssim(images, images)
    assert used == scales
    np.testing.assert_allclose(found, 1.0, atol=1e-5)


@pytest.mark.parametrize(("side", "scales"), [(64, 3), (176, 5)])
def test_ms_ssim_is_torchmetrics(side: int, scales: int) -> None:
    """torchmetrics 1.9 itself where it is installed (extra bench); else what it found for these images."""
    rng = np.random.default_rng(1)
    rows, columns = np.mgrid[:side, :side] / side
    one = np.stack([np.sin(9 * rows + number) * np.cos(7 * columns) for number in range(3)], axis=-1)[None] * 0.4 + 0.5
    other = np.clip(one + rng.normal(0, 0.05, one.shape), 0, 1)
    one, other = one.astype(np.float32), other.astype(np.float32)
    known = MS_SSIM_OF_TORCHMETRICS[scales]
    with contextlib.suppress(ImportError):
        known = torchmetrics_ms_ssim(one, other, scales)
    found, used = fidelity.ms_ssim(one, other)
    assert used == scales
    assert found[0] == pytest.approx(known, abs=2e-3)


def torchmetrics_ms_ssim(one: np.ndarray, other: np.ndarray, scales: int) -> float:
    import torch
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    weights = np.array(fidelity.MS_SSIM_WEIGHTS[:scales])
    pair = [torch.from_numpy(each).permute(0, 3, 1, 2) for each in (other, one)]
    betas = tuple(weights / weights.sum())
    return float(multiscale_structural_similarity_index_measure(*pair, data_range=1.0, betas=betas))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), noise=st.floats(0, 0.5))
def test_similarities_fall_with_noise_and_stay_in_range(seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    images = rng.random((2, 24, 24, 1)).astype(np.float32)
    other = np.clip(images + noise * rng.standard_normal(images.shape), 0, 1).astype(np.float32)
    for value in (fidelity.ssim(images, other), fidelity.ms_ssim(images, other)[0]):
        assert ((value >= -1) & (value <= 1 + 1e-5)).all()
        assert noise > 0.01 or (value > 0.9).all()


def test_small_images_are_refused() -> None:
    images = np.zeros((2, 10, 24, 1), np.float32)
    for call in (fidelity.ssim, fidelity.ms_ssim):
        with pytest.raises(InputError, match="windows of 11 pixels"):
            call(images, images)
