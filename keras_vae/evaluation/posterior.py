"""How the latents of real images are distributed: which carry information, and how far they are from the prior."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import logsumexp

from keras_vae.model.encoding import Encoded
from keras_vae.model.metrics import ACTIVE_VARIANCE
from keras_vae.model.priors import mixture_moments
from keras_vae.support.errors import InputError

LOG_TWO_PI = math.log(2.0 * math.pi)
ROWS = 512  # draws at a time
IMAGES = 10_000  # at most; the mixture of their posteriors stands for the aggregate posterior


def active_units(encoded: Encoded) -> int:
    """Latents whose posterior mean varies over the images by more than 0.01 (Burda et al. 2016, section 5.2)."""
    return int((encoded.mean.var(axis=0, dtype=np.float64) > ACTIVE_VARIANCE).sum())


def aggregate_posterior(encoded: Encoded, seed: int = 0) -> dict[str, float]:
    """How far the mixture of all images' posteriors, q(z), is from the prior. All figures are in nats.

    The mean KL of the posteriors is the sum of two terms (Hoffman and Johnson 2016, "ELBO surgery", equation 6): the
    information in z about which image it came from, and the KL of q(z) from the prior. The second one spoils samples:
    they come from latents that the decoder has not seen.

    Args:
        encoded: at least 2 images; at most 10,000 are used.
        seed: of one draw from each posterior.

    Returns:
        `mean_kl`: the mean KL of the posteriors.
        `index_information`: the mutual information of z and the image's index, estimated from the draws. It cannot
        exceed `log_images`, the logarithm of the number of images; if it is close to that, it is an underestimate.
        `kl_from_prior`: the KL of q(z), the difference of these two; an overestimate if the information is an
        underestimate.
        `gaussian_kl_from_prior`: the same of the Gaussian with the mean and covariance of q(z), in closed form. It
        misses what is not Gaussian, and so is at most the KL of q(z).
        `images`: how many were used.

    Raises:
        InputError: fewer than 2 images.
    """
    encoded = encoded.first(IMAGES)
    count = len(encoded)
    if count < 2:
        raise InputError(f"the aggregate posterior needs 2 images, not {count}")
    mean = encoded.mean.astype(np.float64)
    log_var = encoded.log_var.astype(np.float64)
    z = encoded.draws(seed).astype(np.float64)
    information = math.log(count)
    for start in range(0, count, ROWS):
        log_densities = _log_densities(z[start : start + ROWS], mean, log_var)
        own = np.diagonal(log_densities, start)  # under the posterior that it was drawn from
        information += float((own - logsumexp(log_densities, axis=1)).sum()) / count
    kl = float(encoded.kl_per_latent().sum())
    return {
        "mean_kl": kl,
        "index_information": information,
        "log_images": math.log(count),
        "kl_from_prior": kl - information,
        "gaussian_kl_from_prior": gaussian_kl(mean, log_var),
        "images": float(count),
    }


def gaussian_kl(mean: np.ndarray, log_var: np.ndarray) -> float:
    """KL from the standard normal of the Gaussian with the moments of a mixture of diagonal Gaussians, in nats.

    Args:
        mean, log_var: of the mixture's components, float (images, latent_dim).
    """
    centre, covariance = mixture_moments(mean, log_var)
    _, log_determinant = np.linalg.slogdet(covariance)
    return float(0.5 * (np.trace(covariance) + centre @ centre - len(centre) - log_determinant))


def _log_densities(z: np.ndarray, mean: np.ndarray, log_var: np.ndarray) -> np.ndarray:
    """log N(z_i; mean_n, var_n), float64 (rows, images): as matrix products, the square multiplied out."""
    precision = np.exp(-log_var)
    squares = np.square(z) @ precision.T - 2.0 * z @ (mean * precision).T + (np.square(mean) * precision).sum(axis=1)
    return -0.5 * (squares + (log_var + LOG_TWO_PI).sum(axis=1))
