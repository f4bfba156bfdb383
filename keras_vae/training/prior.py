"""The learned prior of a run: how much of the training set it is fitted to, and for how long."""

from __future__ import annotations

import math

from keras_vae import data
from keras_vae.model import priors
from keras_vae.model.vae import VAE
from keras_vae.training.config import TrainingConfig

# Measured on two cores with the default objective and images of 64x64: fitting the prior for a step, or encoding an
# image, takes a tenth of the time of training on so many images. Without a feature network training is faster.
MEASURED_PIXELS = 64 * 64
IMAGES_PER_PRIOR_STEP = 35
PLAIN_IMAGES_PER_PRIOR_STEP = 180
MOST_STEPS = 8000
# Of a conditional model the prior decides of what class an image is: it is fitted for longer, and never for less.
CONDITIONAL = 2
LEAST_CONDITIONAL_STEPS = 1000
IMAGES_PER_CODE = 8
LEAST_CODES = 2000


def fit(vae: VAE, images: data.ImageData, config: TrainingConfig, steps: int) -> None:
    """Fits the prior to codes of training images, in at most about a tenth of the time that training took.

    Of a conditional model a fifth, or half a minute of two cores. How many codes and steps depends on what was
    trained, not on a clock: the same run gives the same prior.

    Args:
        vae: the trained model, whose prior is replaced.
        images: the data of the run.
        config: its configuration.
        steps: training steps that were made.
    """
    seen = steps * config.batch_size
    there_are = images.train_size * (2 if config.flip else 1)
    limit = min(there_are, max(LEAST_CODES, seen // IMAGES_PER_CODE), priors.MOST_CODES)
    per_step = IMAGES_PER_PRIOR_STEP if config.perceptual is not None else PLAIN_IMAGES_PER_PRIOR_STEP
    worth = seen * math.prod(images.image_shape[:2]) / MEASURED_PIXELS
    wanted, least = worth / per_step, 1
    if vae.condition is not None:
        wanted, least = CONDITIONAL * wanted, LEAST_CONDITIONAL_STEPS
    vae.fit_prior(images.first(limit), max(least, min(MOST_STEPS, int(wanted))), config.seed)
