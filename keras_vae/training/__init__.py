"""A training run: its options, its loop, its devices, and when it ends.

The options are declared without TensorFlow, which is imported with the first name that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keras_vae.support.lazy import attributes
from keras_vae.training.config import TrainingConfig, continued

if TYPE_CHECKING:
    from keras_vae.model.schedules import KL_SCHEDULES
    from keras_vae.training import callbacks
    from keras_vae.training.run import next_commands, train

__getattr__ = attributes(
    __name__,
    {
        "KL_SCHEDULES": "keras_vae.model.schedules",
        "next_commands": "keras_vae.training.run",
        "train": "keras_vae.training.run",
        "callbacks": "keras_vae.training.callbacks",
    },
)

__all__ = ["KL_SCHEDULES", "TrainingConfig", "callbacks", "continued", "next_commands", "train"]
