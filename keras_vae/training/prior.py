"""The learned prior of a run: how much of the training set it is fitted to, and for how long."""

from __future__ import annotations

import math

from keras_vae import data
from keras_vae.model import flow_matching
from keras_vae.model.vae import VAE
from keras_vae.training.config import TrainingConfig

# Measured on two cores that multiply in bfloat16, with the default objective and images of 64x64: fitting the prior
# for a step takes a fifth of the time of training on so many images, encoding one a tenth. Without a feature network
# training is faster.
MEASURED_PIXELS = 64 * 64
IMAGES_PER_PRIOR_STEP = 12
PLAIN_IMAGES_PER_PRIOR_STEP = 90
# Until then samples gain much from each step (of faces, 220 with 1,800 and 178 with 5,000, benchmarks/NOTES.md): short
# runs spend three times as much of their time on it.
ENOUGH_STEPS = 5000
SHORT_RUNS = 3
# Samples of a prior that is fitted for less are not worth looking at, and it takes ten seconds to half a minute.
LEAST_STEPS = 1000
MOST_STEPS = 20_000
IMAGES_PER_CODE = 2
LEAST_CODES = 2000


def fit(vae: VAE, images: data.ImageData, config: TrainingConfig, steps: int) -> None:
    """Fits the prior to codes of training images, in a fifth of the time that training took, after short runs longer.

    How many codes and steps depends on what was trained, not on a clock: the same run gives the same prior.

    Args:
        vae: the trained model, whose prior is replaced.
        images: the data of the run.
        config: its configuration.
        steps: training steps that were made.
    """
    seen = steps * config.batch_size
    there_are = images.train_size * (2 if config.flip else 1)
    limit = min(there_are, max(LEAST_CODES, seen // IMAGES_PER_CODE), flow_matching.MOST_CODES)
    per_step = IMAGES_PER_PRIOR_STEP if config.perceptual is not None else PLAIN_IMAGES_PER_PRIOR_STEP
    wanted = seen * math.prod(images.image_shape[:2]) / MEASURED_PIXELS / per_step
    wanted = max(wanted, min(ENOUGH_STEPS, SHORT_RUNS * wanted))
    vae.fit_prior(images.first(limit), max(LEAST_STEPS, min(MOST_STEPS, int(wanted))), config.seed)
