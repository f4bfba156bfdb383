"""Averaged weights: what keeps the moving averages, when they are updated, and how they replace the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_vae.support import keras_internals


class AveragedWeights:
    """Exponential moving averages of a model's weights and statistics (Polyak and Juditsky 1992).

    Keras's optimizers average the weights (`use_ema=True`) and nothing else. Moving means, moving variances and
    calibrated variances belong to the weights that they were measured with, so they are averaged here, with the
    optimizer's momentum. With an optimizer that does not average, there are no averages and nothing happens.

    Args:
        statistics: returns the variables to average besides the weights.

    Attributes:
        variables: the statistics' averages, `tf.Variable`s in the order of `statistics()`.
    """

    def __init__(self, statistics: Callable[[], list[Any]]) -> None:
        self.statistics = statistics
        self.variables: list[tf.Variable] = []
        self._optimizer: Any = None
        self._not_loaded: list[tuple[Any, Any]] = []

    def begin(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Follows an optimizer from now on; the statistics' averages start from their present values."""
        inner = getattr(optimizer, "inner_optimizer", optimizer)  # of a LossScaleOptimizer
        self._optimizer = inner if getattr(inner, "use_ema", False) else None
        self.variables = [tf.Variable(np.array(each)) for each in self.statistics()] if self._optimizer else []

    def statistics_pairs(self) -> list[tuple[Any, Any]]:
        """Each of the statistics with its average."""
        return list(zip(self.statistics(), self.variables, strict=True)) if self._optimizer else []

    def pairs(self) -> list[tuple[Any, Any]]:
        """Each variable with its average, weights first; none before the first training step."""
        if self._optimizer is None or not int(ops.convert_to_numpy(self._optimizer.iterations)):
            return []
        weights = zip(
            keras_internals.trained_variables(self._optimizer),
            keras_internals.moving_averages(self._optimizer),
            strict=True,
        )
        return [*weights, *self.statistics_pairs()]

    def update(self) -> None:
        """Averages the statistics, right after the optimizer has averaged the weights."""
        if self._optimizer is None:
            return
        momentum = ops.where(self._optimizer.iterations > 1, self._optimizer.ema_momentum, 0.0)
        for variable, average in self.statistics_pairs():
            share = ops.cast(momentum, average.dtype)
            average.assign(share * average + (1.0 - share) * variable)

    def save(self, store: Any) -> None:
        """Writes the statistics' averages into one of Keras's stores."""
        for index, average in enumerate(self.variables):
            store[f"statistics_average_{index}"] = average.numpy()

    def load(self, store: Any) -> None:
        """Reads them; those that are missing, of a model saved without averaging, wait for `start_missing`."""
        self._not_loaded = []
        for index, (variable, average) in enumerate(self.statistics_pairs()):
            name = f"statistics_average_{index}"
            if name in store.keys():  # noqa: SIM118 - Keras's stores have no `in`
                average.assign(store[name])
            else:
                self._not_loaded.append((variable, average))

    def start_missing(self) -> None:
        """Starts averages that a file did not hold from the statistics that it did."""
        for variable, average in self._not_loaded:
            average.assign(variable)


@contextmanager
def swapped(pairs: list[tuple[Any, Any]]) -> Iterator[None]:
    """A block in which each variable has its average's value; afterwards its own again, to the last bit.

    (Keras's callback `SwapEMAWeights` swaps by adding and subtracting, which changes the weights a little.)
    """
    with restored([variable for variable, _ in pairs]):
        for variable, average in pairs:
            variable.assign(average)
        yield


@contextmanager
def restored(variables: list[Any], only_on_failure: bool = False) -> Iterator[None]:
    """Gives variables their present values back when the block ends, or only when it fails."""
    before = [np.array(variable) for variable in variables]
    failed = True
    try:
        yield
        failed = False
    finally:
        if failed or not only_on_failure:
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)
