"""What a learned prior is worth: the bound under it, and whether it has memorized the codes of training images."""

from __future__ import annotations

import math

import numpy as np
from keras import ops
from sklearn.metrics import pairwise_distances_argmin_min

from keras_vae.model.encoding import Encoded
from keras_vae.model.priors import Prior, StandardNormal

DENSITY_IMAGES = 500  # at most, for the density of codes, in which the field's divergence is computed again and again
ROWS = 100  # of a batch, because the field's derivatives in several directions of each are in memory
COMPARED = 1_000  # the most latents whose nearest training code is searched for


def gain(prior: Prior, encoded: Encoded, seed: int = 0) -> float:
    """By how many nats per image the ELBO is higher under a prior than under the standard normal.

    The ELBO is E[log p(x | z) + log p(z) - log q(z | x)]: the prior changes only the second term.

    Args:
        prior: of the latents.
        encoded: posteriors of held-out images; the first 500 are used.
        seed: of one draw from each posterior.
    """
    z = encoded.first(DENSITY_IMAGES).draws(seed)
    standard = StandardNormal(encoded.latent_dim)
    parts = [z[start : start + ROWS] for start in range(0, len(z), ROWS)]
    differences = [ops.convert_to_numpy(prior.log_prob(part) - standard.log_prob(part)) for part in parts]
    return float(np.concatenate(differences).mean(dtype=np.float64))


def nearest_codes(latents: np.ndarray, training: Encoded) -> float:
    """Median distance of latents to the nearest code of a training image.

    In units of the training codes' standard deviations s_i, averaged over latents: sqrt(mean_i (z_i - m_i)^2 / s_i^2).

    Args:
        latents: float (count, latent_dim): samples, or other images' codes; the first 1,000 are used.
        training: posteriors of training images.
    """
    scale = np.maximum(training.mean.std(axis=0), 1e-6)
    _, lengths = pairwise_distances_argmin_min(latents[:COMPARED] / scale, training.mean / scale)
    return float(np.median(lengths) / math.sqrt(training.latent_dim))
