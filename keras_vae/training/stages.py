"""Seconds spent in each stage of a run, and how much of the time may pass between training steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from keras_vae.runs import checkpoints
from keras_vae.training import strategies
from keras_vae.training.clock import Progress

BETWEEN = ("validation", "pictures", "checkpoints")
SHARE = 0.05  # of the time, that these may take together
SECONDS_AT_MOST = 60.0  # between one round of them and the next, whatever their share


class Stages(keras.callbacks.Callback):
    """Measures what a run spends its time on, and says when an epoch is to end with validation and pictures.

    On a fast device an epoch may take a second, and what follows it several. So that follows the first epoch and the
    last, and of the others those that come a minute after the last round, or for which there is time. Must be the first
    callback.

    Args:
        always: whether every epoch ends with validation, pictures and a checkpoint.

    Attributes:
        seconds: spent so far, by stage.
        due: whether the epoch that ends does so with all of them.
    """

    def __init__(self, always: bool = False) -> None:
        super().__init__()
        self.always = always
        self.seconds: dict[str, float] = {}
        self.due = False
        self.progress: Progress | None = None
        self._began = self._last_round = time.perf_counter()
        self._last_cost: float | None = None
        self._spent_before = self._spent = 0.0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """A block whose seconds are a stage's."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    @property
    def between_steps(self) -> float:
        """Seconds that validation, pictures and checkpoints have taken."""
        return sum(self.seconds.get(stage, 0.0) for stage in BETWEEN)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._step_began = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        stage = "steps" if "first step" in self.seconds else "first step"  # in which TensorFlow compiles
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - self._step_began

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        assert self.progress is not None
        self.progress.device_is_done()
        now = time.perf_counter()
        if self.due:
            if self._last_cost is None:  # the first round compiles: neither it nor the time until then counts
                self._began, self._spent = now, self.between_steps
            self._last_cost = self.between_steps - self._spent_before
        self.due = self._agreed(self._is_due(now))
        if self.due:
            self._last_round, self._spent_before = now, self.between_steps

    def _is_due(self, now: float) -> bool:
        if self.always or self.model.stop_training or self._last_cost is None:
            return True
        if now - self._last_round >= SECONDS_AT_MOST:
            return True
        return self.between_steps - self._spent + self._last_cost <= SHARE * (now - self._began)

    def _agreed(self, due: bool) -> bool:
        return strategies.agreed(self.model.distribute_strategy, [float(due)])[0] > 0


class Validation(keras.callbacks.Callback):
    """Evaluates the model at the end of epochs, as `fit(validation_data=...)` does after each: `val_` figures.

    Args:
        stages: of the run; they say after which epochs.
        images: held-out images.
        steps: batches of them, where their number cannot be told.
    """

    def __init__(self, stages: Stages, images: tf.data.Dataset, steps: int | None) -> None:
        super().__init__()
        self.stages = stages
        self.images = images
        self.steps = steps

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if not self.stages.due:
            return
        training = checkpoints.metrics_of(self.model)  # of an epoch that may be resumed
        with self.stages.timed("validation"):
            found = self.model.evaluate(self.images, steps=self.steps, verbose=0, return_dict=True)
        checkpoints.restore_metrics(self.model, training)
        if logs is not None:
            logs |= {f"val_{name}": value for name, value in found.items()}
