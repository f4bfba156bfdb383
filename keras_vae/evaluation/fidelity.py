"""Measures that compare reconstructions with their originals."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from keras_vae.support.errors import InputError
from keras_vae.support.pictures import LUMA

SSIM_WINDOW = 11
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, section 3.2


def laplacian_variance(images: np.ndarray) -> np.ndarray:
    """Variance of each image's Laplacian: the usual measure of focus (Pech-Pacheco et al. 2000).

    Args:
        images: float (batch, height, width, 1 or 3) in [0, 1].

    Returns:
        float32, shape (batch,). Larger is sharper; only ratios between pictures of the same things are meaningful.
    """
    grey = images @ LUMA if images.shape[-1] == 3 else images[..., 0]
    centre = grey[:, 1:-1, 1:-1]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return np.var(around - 4.0 * centre, axis=(1, 2), dtype=np.float32)


def sharpness_ratio(originals: np.ndarray, reconstructions: np.ndarray) -> float:
    """Mean Laplacian variance of the reconstructions over that of the originals; 1 is equally sharp.

    NaN if the originals have no edges at all.
    """
    own = float(laplacian_variance(originals).mean())
    return float(laplacian_variance(reconstructions).mean()) / own if own else math.nan


def psnr(originals: np.ndarray, reconstructions: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, from the mean squared error over all pixels of images in [0, 1]."""
    return decibels(float(np.mean(np.square(originals - reconstructions), dtype=np.float64)))


def decibels(mean_squared_error: float) -> float:
    """The peak signal-to-noise ratio of a mean squared error of values in [0, 1], in dB."""
    return -10.0 * math.log10(mean_squared_error) if mean_squared_error > 0 else math.inf


def mean_squared_error(originals: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """Mean squared error of each image over all its values in [0, 1]: float64, shape (batch,)."""
    return np.asarray(np.mean(np.square(originals - reconstructions), axis=(1, 2, 3), dtype=np.float64))


def ssim(originals: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """Structural similarity of each image (Wang et al. 2004), with Gaussian weights of 1.5 pixels in windows of 11.

    Args:
        originals, reconstructions: float (batch, height, width, channels) in [0, 1]; at least 11 pixels a side.

    Returns:
        float32, shape (batch,), averaged over channels; 1 means equal.

    Raises:
        InputError: smaller images.
    """
    _check_sides(originals)
    return tf.image.ssim(_float32(originals), _float32(reconstructions), max_val=1.0).numpy()


def ms_ssim(originals: np.ndarray, reconstructions: np.ndarray) -> tuple[np.ndarray, int]:
    """Multi-scale structural similarity of each image (Wang et al. 2003).

    Its five scales need images of 161 pixels a side. Smaller ones get as many scales as a window of 11 fits into, with
    the first of the five weights, scaled to add up to 1.

    Args:
        originals, reconstructions: as for `ssim`.

    Returns:
        float32, shape (batch,), and the number of scales.

    Raises:
        InputError: smaller images.
    """
    _check_sides(originals)
    side = min(originals.shape[1:3])
    scales = min(len(MS_SSIM_WEIGHTS), 1 + math.floor(math.log2((side - 1) / (SSIM_WINDOW - 1))))
    weights = np.array(MS_SSIM_WEIGHTS[:scales])
    weights /= weights.sum()
    pair = _float32(originals), _float32(reconstructions)
    return tf.image.ssim_multiscale(*pair, max_val=1.0, power_factors=list(weights)).numpy(), scales


def _float32(images: np.ndarray) -> tf.Tensor:
    return tf.convert_to_tensor(images, tf.float32)


def _check_sides(images: np.ndarray) -> None:
    if min(images.shape[1:3]) < SSIM_WINDOW:
        raise InputError(f"structural similarity looks through windows of {SSIM_WINDOW} pixels: images are smaller")
