"""What goes wrong in a step, noted on the device: steps do not fail, for XLA drops assertions.

A step whose images, loss or gradient are not to be used leaves the model as it was, and is noted in two small
variables. `fit`, `evaluate` and `predict` read them now and then, and raise what they say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_vae import image_batches, replicas
from keras_vae.errors import NotFiniteError

# Steps in a row that float16's loss scaling may leave out, halving the scale each time, before no scale will help.
OVERFLOWS_AT_MOST = 25


class Watch:
    """The record of what steps found.

    Args:
        terms: names of the loss's terms.

    Attributes:
        images: float32 (5,): batches seen since `begin`, number of the first bad one, 0 for none, and the
            `image_batches.summary` of its images.
        numbers: float32 (3 + terms,): number of the first bad step, 0 for none; gradients in a row that float16
            could not hold; the squared norm of the gradient; the terms' means.
    """

    def __init__(self, terms: Sequence[str]) -> None:
        self.terms = tuple(terms)
        self.images = tf.Variable(tf.zeros(5), trainable=False, name="bad_images")
        self.numbers = tf.Variable(tf.zeros(3 + len(self.terms)), trainable=False, name="bad_step")

    def begin(self) -> None:
        """Forgets what was noted."""
        for record in (self.images, self.numbers):
            record.assign(tf.zeros_like(record))

    def note_images(self, images: Any) -> Any:
        """Whether the whole batch's images may be used; notes the first that may not.

        Args:
            images: float32, those of this replica.
        """
        total, low, high = tf.unstack(replicas.gathered(image_batches.summary(images)), axis=1)
        found = tf.stack([tf.reduce_sum(total), tf.reduce_min(low), tf.reduce_max(high)])
        fine = image_batches.in_range(*tf.unstack(found))
        seen, first = self.images[0] + 1.0, self.images[1]
        news = tf.logical_and(first == 0.0, tf.logical_not(fine))
        noted = tf.concat([[tf.where(news, seen, first)], tf.where(news, found, self.images[2:])], 0)
        self.images.assign(tf.concat([[seen], noted], 0))
        return fine

    def note_numbers(self, step: Any, terms: Mapping[str, Any], gradients: Sequence[Any], scaled: bool) -> Any:
        """Whether terms and gradients are numbers, and then only whether terms are; notes the first that are not.

        Args:
            step: number of this step.
            terms: float32 (batch,) by name.
            gradients: of the loss, or None.
            scaled: whether an overflow of the gradients is float16's loss scaling's to deal with.

        Returns:
            two booleans: whether the step is one to follow, and whether the optimizer is to see it.
        """
        norm = replicas.total(
            tf.add_n([ops.cast(tf.nn.l2_loss(each), "float32") for each in gradients if each is not None])
        )
        means = replicas.mean(ops.stack([terms[name] for name in self.terms], axis=1))
        terms_fine, norm_fine = tf.reduce_all(tf.math.is_finite(means)), tf.math.is_finite(norm)
        fine = tf.logical_and(terms_fine, norm_fine)
        overflows = tf.where(norm_fine, 0.0, self.numbers[1] + 1.0)
        usable = tf.logical_and(terms_fine, overflows <= OVERFLOWS_AT_MOST) if scaled else fine
        first = self.numbers[0]
        news = tf.logical_and(first == 0.0, tf.logical_not(usable))
        found = tf.concat([[norm], means], 0)
        first = tf.where(news, tf.cast(step, tf.float32), first)
        self.numbers.assign(tf.concat([[first, overflows], tf.where(news, found, self.numbers[2:])], 0))
        return fine, usable

    def look(self, model: Any) -> None:
        """Raises what was noted.

        Raises:
            InputError: images cannot be used.
            NotFiniteError: the loss or its gradient was not finite.
        """
        _, batch, total, low, high = map(float, np.array(self.images))
        if batch:
            image_batches.check_summary(total, low, high, where=f" in batch {batch:.0f}")
        step, _, norm, *means = np.array(self.numbers)
        if step:
            raise self._not_finite(model, int(step), float(norm), [float(mean) for mean in means])

    def _not_finite(self, model: Any, step: int, norm: float, means: Sequence[float]) -> NotFiniteError:
        found = dict(zip(self.terms, means, strict=True))
        wrong = [f"{name} is {value}" for name, value in found.items() if not math.isfinite(value)]
        if not wrong:
            wrong = ["the gradient is NaN" if math.isnan(norm) else "the gradient is infinite"]
        policy = model.dtype_policy.name
        other = "" if policy == "float32" else ", or float32"
        rate = float(ops.convert_to_numpy(model.optimizer.learning_rate))
        return NotFiniteError(
            f"step {step}: {', '.join(wrong)} in {policy}; the step was left out: give a lower learning rate "
            f"than {rate:g}{other}"
        )


def steps_between_looks() -> int:
    """Every step is looked at, but on a GPU, where a look waits for all that was asked of it."""
    return 50 if tf.config.list_physical_devices("GPU") else 1


class Looks(keras.callbacks.Callback):
    """Looks at the record while `fit`, `evaluate` or `predict` go on.

    Attributes:
        batches: seen so far, of all kinds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.every = steps_between_looks()
        self.batches = 0
        self._since = 0
        self._tested = 0

    def _begin(self) -> None:
        self.model.watch.begin()
        self._since = self.every - 1  # the first batch is looked at: it shows most faults

    def _batch_end(self) -> None:
        self.batches += 1
        self._since += 1
        if self._since >= self.every:
            self._look()

    def _look(self) -> None:
        self._since = 0
        self.model.watch.look(self.model)

    def _end(self, batches: int) -> None:
        self._look()
        if not batches:
            raise image_batches.empty_dataset()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._begin()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._batch_end()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._end(self.batches)

    def on_test_begin(self, logs: Any = None) -> None:
        self._look()  # at the epoch that is validated
        self._begin()
        self._tested = 0

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self._tested += 1
        self._batch_end()

    def on_test_end(self, logs: Any = None) -> None:
        self._end(self._tested)

    def on_predict_begin(self, logs: Any = None) -> None:
        self._begin()

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        self._batch_end()

    def on_predict_end(self, logs: Any = None) -> None:
        self._end(self.batches)
