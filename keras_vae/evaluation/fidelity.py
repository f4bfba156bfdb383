"""Measures that compare reconstructions with their originals."""

from __future__ import annotations

import numpy as np

# Luma weights of ITU-R BT.601, the grey that image libraries make.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def laplacian_variance(images: np.ndarray) -> np.ndarray:
    """Variance of each image's Laplacian: the usual measure of focus (Pech-Pacheco et al. 2000).

    Args:
        images: float (batch, height, width, 1 or 3) in [0, 1].

    Returns:
        float32, shape (batch,). Larger is sharper; only ratios between pictures of the same things mean something.
    """
    grey = images @ LUMA if images.shape[-1] == 3 else images[..., 0]
    centre = grey[:, 1:-1, 1:-1]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return np.var(around - 4.0 * centre, axis=(1, 2), dtype=np.float32)


def sharpness_ratio(originals: np.ndarray, reconstructions: np.ndarray) -> float:
    """Mean Laplacian variance of the reconstructions over that of the originals; 1 is as sharp as they are.

    NaN where the originals have no edges at all.
    """
    own = float(laplacian_variance(originals).mean())
    return float(laplacian_variance(reconstructions).mean()) / own if own else float("nan")


def psnr(originals: np.ndarray, reconstructions: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, from the mean squared error over all pixels of images in [0, 1]."""
    error = float(np.mean(np.square(originals - reconstructions), dtype=np.float64))
    return float("inf") if error == 0 else -10.0 * float(np.log10(error))
