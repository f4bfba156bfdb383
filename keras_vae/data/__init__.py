"""Images as tf.data pipelines: `keras_vae.data.load`, `build` for sets of one's own, the `avatars` TFDS builder.

Light to import: the worker processes that draw avatars pass through here and need no TensorFlow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keras_vae.support.lazy import attributes

if TYPE_CHECKING:
    from keras_vae.data.avatars import Avatars, AvatarsConfig
    from keras_vae.data.loading import ImageData, load
    from keras_vae.data.tfds.from_folder import build

__getattr__ = attributes(
    __name__,
    {
        "Avatars": "keras_vae.data.avatars",
        "AvatarsConfig": "keras_vae.data.avatars",
        "ImageData": "keras_vae.data.loading",
        "build": "keras_vae.data.tfds.from_folder",
        "load": "keras_vae.data.loading",
    },
)

__all__ = ["Avatars", "AvatarsConfig", "ImageData", "build", "load"]
