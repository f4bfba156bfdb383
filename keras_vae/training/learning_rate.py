"""The learning rate of a run: constant, falling with each epoch, or along half a cosine until the run ends."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import keras

if TYPE_CHECKING:
    from keras_vae.training.clock import Progress
    from keras_vae.training.config import TrainingConfig

LEAST_SHARE = 0.01  # of the learning rate, at the end of the cosine


def at_first(config: TrainingConfig, steps_per_epoch: int) -> Any:
    """What the optimizer starts with: a number, or Keras's schedule for `learning_rate_decay`."""
    if config.learning_rate_decay == 1.0:
        return config.learning_rate
    return keras.optimizers.schedules.ExponentialDecay(
        config.learning_rate, steps_per_epoch, config.learning_rate_decay, staircase=True
    )


class CosineDecay(keras.callbacks.Callback):
    """Lowers the learning rate along half a cosine until the run reaches its limit, be it of steps or of minutes.

    Loshchilov and Hutter 2017 (arXiv 1608.03983), without restarts. A run that is resumed with a later limit follows
    the cosine of that one.

    Args:
        learning_rate: at the beginning; `LEAST_SHARE` of it at the end.
        progress: the run's clock.
    """

    def __init__(self, learning_rate: float, progress: Progress) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.progress = progress

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        falling = 0.5 * (1.0 + math.cos(math.pi * self.progress.share))
        self.model.optimizer.learning_rate = self.learning_rate * max(falling, LEAST_SHARE)
