"""Records on the device what goes wrong in a step. A step cannot fail by itself: XLA drops assertions.

A step with unusable images, loss or gradient leaves the model as it was, and is recorded in two small variables.
`fit`, `evaluate` and `predict` read them now and then, and raise what they say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_vae.data import image_batches
from keras_vae.support import replicas
from keras_vae.support.errors import InputError, NotFiniteError

# Consecutive steps that float16's loss scaling may skip, halving the scale each time, before no scale will help.
OVERFLOWS_AT_MOST = 25


class Watch:
    """The record of what steps found.

    Args:
        terms: names of the loss's terms.

    Attributes:
        images: float32 (6,): batches seen since `begin`, number of the first bad one, 0 for none, the
            `image_batches.summary` of its images, and whether it was its labels that were bad.
        numbers: float32 (2 + terms,): number of the first bad step, 0 for none; the squared norm of its gradient; its
            terms' means.
        overflows: float32 (): consecutive steps, across calls, whose gradients overflowed float16.
    """

    def __init__(self, terms: Sequence[str]) -> None:
        self.terms = tuple(terms)
        self.images = tf.Variable(tf.zeros(6), trainable=False, name="bad_images")
        self.numbers = tf.Variable(tf.zeros(2 + len(self.terms)), trainable=False, name="bad_step")
        self.overflows = tf.Variable(0.0, trainable=False, name="overflows")

    def begin(self) -> None:
        """Forgets what was recorded of images and steps."""
        for record in (self.images, self.numbers):
            record.assign(tf.zeros_like(record))

    @contextmanager
    def anew(self) -> Iterator[None]:
        """A block with a fresh record. The previous one is restored afterwards, for a `predict` called inside `fit`."""
        before = [np.array(record) for record in (self.images, self.numbers)]
        self.begin()
        try:
            yield
        finally:
            for record, value in zip((self.images, self.numbers), before, strict=True):
                record.assign(value)

    def note(self, images: Any, condition: Any) -> Any:
        """Whether the images of the whole batch and their conditions are usable; records the first batch that is not.

        Args:
            images: those of this replica.
            condition: theirs, float32 (batch, names), not finite where labels are wrong, or None.
        """
        if replicas.count() > 1:
            images = replicas.at_least_one(images)  # others may have some
        wrong = 0.0 if condition is None else tf.cast(tf.reduce_any(~tf.math.is_finite(condition)), tf.float32)
        summary = tf.concat([image_batches.summary(images), [wrong]], 0)
        total, low, high, wrong = tf.unstack(replicas.gathered(summary), axis=1)
        found = tf.stack([tf.reduce_sum(total), tf.reduce_min(low), tf.reduce_max(high), tf.reduce_max(wrong)])
        fine = tf.logical_and(image_batches.in_range(*tf.unstack(found[:3])), found[3] == 0.0)
        seen, first = self.images[0] + 1.0, self.images[1]
        news = tf.logical_and(first == 0.0, tf.logical_not(fine))
        noted = tf.concat([[tf.where(news, seen, first)], tf.where(news, found, self.images[2:])], 0)
        self.images.assign(tf.concat([[seen], noted], 0))
        return fine

    def note_numbers(
        self,
        step: Any,
        images_fine: Any,
        means: Any,
        loss: Any,
        gradients: Sequence[Any],
        scaled: bool,
    ) -> tuple[Any, Any]:
        """Whether to apply a step: its terms, loss and gradients are finite. Records the first that is not usable.

        Args:
            step: number of this step.
            images_fine: whether its images are usable; if not, `note` has recorded that.
            means: of the terms over the whole batch, float32 (terms,).
            loss: float32 (), this replica's share, with what layers added.
            gradients: of the loss, or None.
            scaled: whether float16's loss scaling deals with gradients that overflow.

        Returns:
            two booleans, whether to apply the step, and whether the optimizer is to see it; they differ only under loss
            scaling.
        """
        norm = replicas.total(
            tf.add_n([ops.cast(tf.nn.l2_loss(each), "float32") for each in gradients if each is not None])
        )
        loss_fine = tf.reduce_all(tf.math.is_finite(tf.concat([[replicas.total(loss)], means], 0)))
        norm_fine = tf.math.is_finite(norm)
        fine = usable = tf.logical_and(loss_fine, norm_fine)
        if scaled:
            overflows = tf.where(norm_fine, 0.0, self.overflows + 1.0)
            self.overflows.assign(tf.where(images_fine, overflows, self.overflows))
            usable = tf.logical_and(loss_fine, overflows <= OVERFLOWS_AT_MOST)
        news = tf.logical_and(self.numbers[0] == 0.0, tf.logical_and(images_fine, tf.logical_not(usable)))
        found = tf.concat([[tf.cast(step, tf.float32), norm], means], 0)
        self.numbers.assign(tf.where(news, found, self.numbers))
        return tf.logical_and(images_fine, fine), tf.logical_and(images_fine, usable)

    def look(self, model: Any) -> None:
        """Raises what was recorded.

        Raises:
            InputError: images cannot be used.
            NotFiniteError: the loss or its gradient was not finite.
        """
        _, batch, total, low, high, wrong = map(float, np.array(self.images))
        if wrong:
            raise InputError(
                f"labels in batch {batch:.0f} are no classes, not finite, or not one for each image: give numbers from "
                f"0 to {len(model.condition) - 1}, or -1 where it is not known"
                if model.condition.exclusive
                else f"labels in batch {batch:.0f} hold NaN or infinity, or are not one row for each image: give 0 "
                "where an attribute is not known"
            )
        if batch:
            image_batches.check_summary(total, low, high, where=f" in batch {batch:.0f}")
        step, norm, *means = np.array(self.numbers)
        if step:
            raise self._not_finite(model, int(step), float(norm), [float(mean) for mean in means])

    def _not_finite(self, model: Any, step: int, norm: float, means: Sequence[float]) -> NotFiniteError:
        found = dict(zip(self.terms, means, strict=True))
        wrong = [f"{name} is {value}" for name, value in found.items() if not math.isfinite(value)]
        if not wrong and math.isfinite(norm):
            wrong = ["a loss that a layer added is not finite"]
        elif not wrong:
            wrong = ["the gradient is NaN" if math.isnan(norm) else "the gradient is infinite"]
        policy = model.dtype_policy.name
        other = "" if policy == "float32" else ", or float32"
        rate = float(ops.convert_to_numpy(model.optimizer.learning_rate))
        return NotFiniteError(
            f"step {step}: {', '.join(wrong)} in {policy}; the step was left out: give a lower learning rate "
            f"than {rate:g}{other}"
        )


def take_step(model: Any, images_fine: Any, gradients: list[Any], means: Any, loss: Any, before: list[Any]) -> None:
    """Applies a step if all of it is finite; otherwise leaves the whole model unchanged.

    Args:
        model: a `keras_vae.VAE`; its weights, statistics, noise, averages and optimizer change, or none of them does.
        images_fine: whether the batch's images are usable, as `Watch.note` found.
        gradients: of the trainable weights, scaled where the optimizer scales.
        means: of the objective's terms over the whole batch, float32 (terms,).
        loss: whose gradients they are, unscaled, float32 ().
        before: values of `model._moved_without_gradient()` before the forward pass, which has assigned them.
    """
    optimizer = model.optimizer
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    step = optimizer.iterations + 1
    fine, usable = model.watch.note_numbers(step, images_fine, means, loss, gradients, scales)

    def apply(gradients: list[Any], *_: Any) -> None:
        optimizer.apply(gradients, model.trainable_weights)

    def follow(gradients: list[Any], means: Any, before: list[Any]) -> None:
        if not scales:
            apply(gradients)
        model.averaging.update()
        model.note_kl(means[model.watch.terms.index("kl")])

    def leave(gradients: list[Any], means: Any, before: list[Any]) -> None:
        for variable, value in zip(model._moved_without_gradient(), before, strict=True):
            variable.assign(value)

    if scales:
        # The optimizer must see gradients that overflow, to lower its scale. It looks at only one replica's.
        nan = tf.constant(math.nan)
        gradients = [each if each is None else tf.where(fine, each, ops.cast(nan, each.dtype)) for each in gradients]
        replicas.choose(usable, apply, lambda *_: None, gradients)
    elif model.jit_compile:
        # A program of XLA's stops at a condition until the host has read it; a selection is a part of the update.
        moved = [*model.trainable_weights, *optimizer.variables, *model.averaging.variables, *model.kl_variables]
        values = [tf.identity(each) for each in moved]
        follow(gradients, means, before)
        for variable, value in zip([*moved, *model._moved_without_gradient()], [*values, *before], strict=True):
            variable.assign(tf.where(fine, tf.identity(variable), value))
        return
    replicas.choose(fine, follow, leave, gradients, means, before)


def steps_between_looks() -> int:
    """Every step is checked; on a GPU every 50th, because checking waits for the device."""
    return 50 if tf.config.list_physical_devices("GPU") else 1


@contextmanager
def named(argument: str) -> Iterator[None]:
    """A block whose refusals name the argument they are about."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"{argument}: {error}") from None


class Looks(keras.callbacks.Callback):
    """Checks the record during `fit`, `evaluate` or `predict`, and that there is a batch at all."""

    def __init__(self) -> None:
        super().__init__()
        self._every = steps_between_looks()
        self._last = -1  # batch after which it was checked
        self._fits = self._validates = False
        self._trained = self._tested = self._predicted = False

    def _begin(self) -> None:
        self.model.watch.begin()
        self._last = -1

    def _look(self) -> None:
        with named("validation_data") if self._validates else nullcontext():
            self.model.watch.look(self.model)

    def _batch_end(self, batch: int) -> None:
        # Always after the first one: it shows most faults.
        if self._last < 0 or batch - self._last >= self._every:
            self._look()
            self._last = batch

    def _end(self, any_batch: bool) -> None:
        self._look()
        if not any_batch:
            with named("validation_data") if self._validates else nullcontext():
                raise image_batches.empty_dataset()

    def on_train_begin(self, logs: Any = None) -> None:
        self._fits = True

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._begin()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._trained = True
        self._batch_end(batch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._end(self._trained)

    def on_test_begin(self, logs: Any = None) -> None:
        self._look()  # at the epoch that is validated
        self._begin()
        self._validates, self._tested = self._fits, False

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self._tested = True
        self._batch_end(batch)

    def on_test_end(self, logs: Any = None) -> None:
        self._end(self._tested)
        self._validates = False

    def on_predict_begin(self, logs: Any = None) -> None:
        self._begin()

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        self._predicted = True
        self._batch_end(batch)

    def on_predict_end(self, logs: Any = None) -> None:
        self._end(self._predicted)
