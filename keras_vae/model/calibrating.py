"""What an int8 decoder is calibrated on: rows as it meets them when it is used."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_vae.export import latents
from keras_vae.export.conditional import every_kind
from keras_vae.model import conditioning

BATCH = 64


def rows(vae: keras.Model, images: Any) -> tuple[np.ndarray, ...]:
    """Codes of images and as many of the prior, float32 (count, latent_dim); of a conditional model conditions too.

    Args:
        vae: a `keras_vae.VAE`.
        images: an array (count, height, width, channels), or a dataset of batches, which may bring their labels.
    """
    batches = images
    if not isinstance(images, tf.data.Dataset):
        images = np.asarray(images)
        batches = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
    codes: list[Any] = []
    asked: list[Any] = []
    for number, batch in enumerate(batches):
        found = vae.images_of(batch)
        asked.append(conditioning.rows(vae.condition, conditioning.labels_of(batch), len(found)))
        codes.append(vae.encode(found, condition=asked[-1]).sample(number))
    count = sum(map(len, codes))
    drawn = () if vae.condition is None else (every_kind(vae.condition, count),)
    codes.append(vae.prior(latents.draw(count, vae.latent_dim, 0), *drawn))
    return (np.concatenate(codes), *(np.concatenate([*asked, each]) for each in drawn))
