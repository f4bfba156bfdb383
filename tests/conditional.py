"""Small conditional models whose condition makes a difference, for the tests of what runs them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

import keras_vae
from keras_vae import priors

LATENTS = 4
CLASSES = keras_vae.Condition(("T-shirt/top", 'the "größte" bag, 👜', "boot"), exclusive=True)
ATTRIBUTES = keras_vae.Condition(("glasses", "dark_hat"))


def conditional_vae(condition: Any, image_shape: tuple[int, int, int] = (16, 16, 1), seed: int = 5) -> keras_vae.VAE:
    """A model, not trained, of which decoder, encoder and prior depend on the condition: of zeros they would not."""
    keras.utils.set_random_seed(seed)
    options = {"width": 8}
    vae = keras_vae.VAE(image_shape, LATENTS, perceptual=None, seed=seed, condition=condition, network_options=options)
    rng = np.random.default_rng(seed)
    for network in (vae.encoder, vae.decoder):
        for weight in network.weights:  # an untrained one makes images of one grey
            if any(part in weight.path for part in ("moving", "gamma", "beta")):
                weight.assign(rng.uniform(0.5, 1.5, weight.shape))
            elif "_condition/" in weight.path:
                weight.assign(0.5 * rng.standard_normal(weight.shape))
    prior = priors.FlowMatchingPrior(LATENTS, width=16, blocks=1, condition_dim=len(vae.condition))
    for weight in (prior.last, prior.condition):
        weight.assign(0.5 * rng.standard_normal(weight.shape))
    vae.set_prior(prior)
    return vae
