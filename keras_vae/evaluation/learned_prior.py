"""What a learned prior is worth: the bound under it, and whether it draws training images' codes from memory."""

from __future__ import annotations

import numpy as np
from keras import ops

from keras_vae.model.encoding import Encoded
from keras_vae.model.priors import Prior, StandardNormal

DENSITY_IMAGES = 500  # whose codes' density is taken: half a minute on two cores for 100 latents
ROWS = 100  # of a batch, for each of which the field's whole Jacobian is held
COMPARED = 1_000  # codes and samples whose nearest training code is looked for


def gain(prior: Prior, encoded: Encoded, seed: int = 0) -> float:
    """Nats per image by which the ELBO is higher under a prior than under the standard normal.

    The ELBO is E[log p(x | z) + log p(z) - log q(z | x)]: the prior changes its second term alone.

    Args:
        prior: of the latents.
        encoded: posteriors of held-out images; the first 500 are used.
        seed: of one draw from each posterior.
    """
    z = encoded.draws(seed)[:DENSITY_IMAGES]
    standard = StandardNormal(encoded.latent_dim)
    parts = [z[start : start + ROWS] for start in range(0, len(z), ROWS)]
    differences = [ops.convert_to_numpy(prior.log_prob(part) - standard.log_prob(part)) for part in parts]
    return float(np.concatenate(differences).mean(dtype=np.float64))


def nearest_codes(latents: np.ndarray, training: Encoded) -> float:
    """Median distance of latents to the nearest training image's code.

    In deviations s_i of the training codes m, the mean over latents: sqrt(mean_i (z_i - m_i)^2 / s_i^2).

    Args:
        latents: float (count, latent_dim): samples, or other images' codes; the first 1,000 are used.
        training: posteriors of training images.
    """
    scale = np.maximum(training.mean.std(axis=0), 1e-6)
    codes = training.mean / scale
    rows = latents[:COMPARED] / scale
    squares = np.square(rows).sum(axis=1)[:, None] - 2.0 * rows @ codes.T + np.square(codes).sum(axis=1)
    return float(np.median(np.sqrt(np.maximum(squares.min(axis=1), 0.0) / codes.shape[1])))
