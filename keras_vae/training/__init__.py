"""A training run: its settings, its loop, where it runs, and when it ends."""

from keras_vae.training.config import KL_SCHEDULES, TrainingConfig, continued
from keras_vae.training.run import next_commands, train

__all__ = ["KL_SCHEDULES", "TrainingConfig", "continued", "next_commands", "train"]
