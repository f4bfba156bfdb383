"""How the latents of real images lie: which carry anything, and how far they are from the prior."""

from __future__ import annotations

import math

import numpy as np

from keras_vae.model.encoding import Encoded
from keras_vae.model.metrics import ACTIVE_VARIANCE
from keras_vae.support.errors import InputError

LOG_TWO_PI = math.log(2.0 * math.pi)
ROWS = 512  # draws at a time
IMAGES = 10_000  # whose mixture the aggregate posterior is taken to be


def active_units(encoded: Encoded) -> int:
    """Latents whose posterior mean varies over the images by more than 0.01 (Burda et al. 2016, section 5.2)."""
    return int((encoded.mean.var(axis=0, dtype=np.float64) > ACTIVE_VARIANCE).sum())


def aggregate_posterior(encoded: Encoded, seed: int = 0) -> dict[str, float]:
    """How far the mixture of all images' posteriors, q(z), is from the prior; all in nats.

    The mean KL of the posteriors is the information that z has about which image it is of, and the KL of q(z) from the
    prior (Hoffman and Johnson 2016, "ELBO surgery", equation 6). What samples from the prior suffer from is the latter:
    the decoder has not seen latents there.

    Args:
        encoded: at least 2 images; 10,000 at most are used.
        seed: of one draw from each posterior.

    Returns:
        `index_information`: the mutual information of z and the image's number, by these draws. It cannot exceed log of
        the number of images, `log_images`, and where it comes near, more images would make it larger.
        `kl_from_prior`: of q(z), what is left of the mean KL; it is too large where the former is too small.
        `gaussian_kl_from_prior`: of the Gaussian with the mean and covariance of q(z), in closed form. It misses what
        is not Gaussian, and so is at most the KL of q(z) itself.

    Raises:
        InputError: fewer than 2 images.
    """
    count = min(len(encoded), IMAGES)
    if count < 2:
        raise InputError(f"the aggregate posterior needs 2 images, not {count}")
    mean = encoded.mean[:count].astype(np.float64)
    log_var = encoded.log_var[:count].astype(np.float64)
    z = encoded.draws(seed)[:count].astype(np.float64)
    log_conditional = -0.5 * (np.square(z - mean) * np.exp(-log_var) + log_var + LOG_TWO_PI).sum(axis=1)
    log_marginal = np.concatenate(
        [_log_mixture(z[start : start + ROWS], mean, log_var) for start in range(0, count, ROWS)]
    )
    information = float((log_conditional - log_marginal).mean())
    kl = float(0.5 * (np.exp(log_var) + np.square(mean) - 1.0 - log_var).sum(axis=1).mean())
    return {
        "mean_kl": kl,
        "index_information": information,
        "log_images": math.log(count),
        "kl_from_prior": kl - information,
        "gaussian_kl_from_prior": gaussian_kl(mean, log_var),
        "images": float(count),
    }


def gaussian_kl(mean: np.ndarray, log_var: np.ndarray) -> float:
    """KL from the standard normal of the Gaussian with the moments of a mixture of diagonal ones, nats.

    Args:
        mean, log_var: float (images, latent_dim).
    """
    centre = mean.mean(axis=0)
    covariance = np.cov(mean, rowvar=False, bias=True).reshape(len(centre), -1) + np.diag(np.exp(log_var).mean(axis=0))
    _, log_determinant = np.linalg.slogdet(covariance)
    return float(0.5 * (np.trace(covariance) + centre @ centre - len(centre) - log_determinant))


def _log_mixture(z: np.ndarray, mean: np.ndarray, log_var: np.ndarray) -> np.ndarray:
    """log 1/N sum_n N(z; mean_n, var_n) of each row: by matrix products, for the square opens into three terms."""
    precision = np.exp(-log_var)
    squares = np.square(z) @ precision.T - 2.0 * z @ (mean * precision).T + (np.square(mean) * precision).sum(axis=1)
    log_densities = -0.5 * (squares + (log_var + LOG_TWO_PI).sum(axis=1))
    highest = log_densities.max(axis=1, keepdims=True)
    return highest[:, 0] + np.log(np.exp(log_densities - highest).mean(axis=1))
