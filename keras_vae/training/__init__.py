"""A training run: its options, its loop, its devices, and when it ends.

The options are declared without TensorFlow, which is imported with the first name that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from keras_vae.training.config import TrainingConfig, continued

if TYPE_CHECKING:
    from keras_vae.model.schedules import KL_SCHEDULES
    from keras_vae.training import callbacks
    from keras_vae.training.run import next_commands, train

_HOMES = {
    "KL_SCHEDULES": "keras_vae.model.schedules",
    "next_commands": "keras_vae.training.run",
    "train": "keras_vae.training.run",
}

__all__ = ["KL_SCHEDULES", "TrainingConfig", "callbacks", "continued", "next_commands", "train"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "callbacks":
        return importlib.import_module("keras_vae.training.callbacks")
    raise AttributeError(f"module 'keras_vae.training' has no attribute {name!r}")
