"""Images as tf.data pipelines: `keras_vae.data.load`, `build` for sets of one's own, the `avatars` TFDS builder.

Light to import: the worker processes that draw avatars pass through here and need no TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_vae.data.avatars import Avatars, AvatarsConfig
    from keras_vae.data.loading import ImageData, load
    from keras_vae.data.tfds.from_folder import build

_HOMES = {
    "Avatars": "keras_vae.data.avatars",
    "AvatarsConfig": "keras_vae.data.avatars",
    "ImageData": "keras_vae.data.loading",
    "build": "keras_vae.data.tfds.from_folder",
    "load": "keras_vae.data.loading",
}

__all__ = ["Avatars", "AvatarsConfig", "ImageData", "build", "load"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'keras_vae.data' has no attribute {name!r}")
