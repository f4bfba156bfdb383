"""Callbacks of a `fit` that does not wait for the device between steps."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from keras_vae.data import image_batches


class CallbackList(keras.callbacks.CallbackList):
    """Hands the figures of a batch on as the tensors that they are.

    Keras's own makes numbers of them, and so waits for the device after each step: a GPU then idles while the host
    prepares the next one.
    """

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        for callback in self.callbacks:
            callback.on_train_batch_end(batch, logs)

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        for callback in self.callbacks:
            callback.on_test_batch_end(batch, logs)


def for_fit(model: keras.Model, options: dict[str, Any], default_batch: int) -> CallbackList:
    """What Keras would make of the callbacks, handing figures on as tensors.

    Args:
        model: that is fitted.
        options: of `fit`, by name.
        default_batch: images in a batch of an array, where `fit` is not told.
    """
    verbose = options.get("verbose", "auto")
    return CallbackList(
        options["callbacks"],
        add_history=True,
        add_progbar=verbose != 0,
        model=model,
        verbose=verbose,
        epochs=options.get("epochs", 1),
        steps=_batches(options, default_batch),
    )


def _batches(options: dict[str, Any], default_batch: int) -> int | None:
    """How many `fit` takes in an epoch, for its progress bar; None where that is not known."""
    if options.get("steps_per_epoch") is not None:
        return options["steps_per_epoch"]
    images = options["x"]
    if isinstance(images, tf.data.Dataset):
        count = int(images.cardinality())
        return count if count >= 0 else None
    images = image_batches.unpack(images) if isinstance(images, dict) else images
    if not hasattr(images, "shape"):
        return None
    held_out = options.get("validation_split", 0.0)
    return math.ceil(int(images.shape[0] * (1.0 - held_out)) / (options.get("batch_size") or default_batch))
