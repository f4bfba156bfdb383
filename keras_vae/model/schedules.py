"""Schedules of the KL's weight, as Keras callbacks: give one to `fit(callbacks=[...])`.

`fit` makes the schedule a part of the training step: the weight is computed on the device, from the optimizer's count
of steps, so that a resumed run continues where it stopped, and nothing waits for a figure in between. It is shown in
the logs as `beta`, and can be read as `vae.beta`.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_vae.support.errors import InputError, check_count, check_weight

LEAST_WEIGHT = 1e-6  # of `TargetKL`; its inverse is the largest


class KLWeight(keras.callbacks.Callback):
    """What sets the weight of the KL while `fit` trains. Both methods are traced into the step."""

    def before_step(self, beta: Any, step: Any, initial: float) -> Any:
        """The weight of a step.

        Args:
            beta: that of the step before, float32 ().
            step: number of this one, 0 being the first, an integer ().
            initial: the `beta` that the model was made with.
        """
        return beta

    def after_step(self, beta: Any, kl: Any) -> Any:
        """The weight after a step, from its own and its mean KL in nats, both float32 ()."""
        return beta

    def settings(self) -> Any:
        """What tells it from another: a step that was traced with these need not be traced anew."""
        own = {name: value for name, value in vars(self).items() if name not in vars(keras.callbacks.Callback())}
        return type(self), tuple(sorted((name, repr(value)) for name, value in own.items()))

    def on_train_begin(self, logs: Any = None) -> None:
        if not hasattr(self.model, "beta"):
            raise InputError(f"{type(self).__name__} sets the beta of a keras_vae.VAE: this model has none")


class KLSchedule(KLWeight):
    """A weight of the KL for every training step; subclasses implement `weight`.

    Args:
        end: the final weight; by default the `beta` that the model was made with.
    """

    def __init__(self, end: float | None = None) -> None:
        super().__init__()
        self.end = None if end is None else check_weight("end", end)

    def weight(self, step: Any, end: float) -> Any:
        """The weight at a step, 0 being the first: an integer tensor (), so compute with `keras.ops`."""
        raise NotImplementedError

    def before_step(self, beta: Any, step: Any, initial: float) -> Any:
        return ops.cast(self.weight(step, initial if self.end is None else self.end), "float32")


class LinearWarmup(KLSchedule):
    """From `start` to `end` along a straight line, then constant (Bowman et al. 2016, arXiv 1511.06349).

    Args:
        steps: training steps until `end`.
        start: weight at the first step.
        end: weight at the end; the model's own by default.

    Raises:
        InputError: steps below 1, or a weight that is not a number of at least 0.

    Example:
        >>> vae.fit(images, epochs=20, callbacks=[LinearWarmup(steps=2000)])
    """

    def __init__(self, steps: int, start: float = 0.0, end: float | None = None) -> None:
        super().__init__(end)
        self.steps = check_count("steps", steps)
        self.start = check_weight("start", start)

    def weight(self, step: Any, end: float) -> Any:
        share = ops.cast(ops.minimum(step, self.steps), "float32") / self.steps
        return self.start + (end - self.start) * self._progress(share)

    def _progress(self, share: Any) -> Any:
        return share


class CosineWarmup(LinearWarmup):
    """From `start` to `end` along half a cosine, slow at both ends, then constant. Arguments as `LinearWarmup`."""

    def _progress(self, share: Any) -> Any:
        return 0.5 - 0.5 * ops.cos(math.pi * share)


class CyclicalAnnealing(KLSchedule):
    """Warm-ups one after the other: each cycle rises from 0 along a line, then stays at `end`.

    Fu et al. 2019, arXiv 1903.10145, whose settings are four cycles, rising for half of each.

    Args:
        steps: training steps of all the cycles together; afterwards the weight stays at `end`.
        cycles: number of cycles.
        rising: share of each cycle in which the weight rises.
        end: the weight at the top; the model's own by default.

    Raises:
        InputError: steps or cycles below 1, or a share outside of 0 to 1.
    """

    def __init__(self, steps: int, cycles: int = 4, rising: float = 0.5, end: float | None = None) -> None:
        super().__init__(end)
        self.steps = check_count("steps", steps)
        self.cycles = check_count("cycles", cycles)
        if not 0.0 < rising <= 1.0:
            raise InputError(f"rising={rising}: give the share of a cycle that rises, above 0 and at most 1")
        self.rising = rising

    def weight(self, step: Any, end: float) -> Any:
        # In integers: a cycle begins at a step, not at a fraction that may be rounded down.
        share = ops.cast(ops.mod(step * self.cycles, self.steps), "float32") / self.steps
        return ops.where(step < self.steps, end * ops.minimum(share / self.rising, 1.0), end)


class TargetKL(KLWeight):
    """Steers the KL to a number of nats, raising its weight where it is above and lowering it where it is below.

    Objectives compare only at the same rate, and each reaches it with another weight. A controller with an
    integral term alone, on the logarithm of the weight (after ControlVAE, Shao et al. 2020, arXiv 2004.05988).

    Args:
        nats: the KL to steer to, in nats per image.
        gain: change of the weight's logarithm per step and relative error, which counts as 1 at most.

    Raises:
        InputError: nats or gain not above 0.
    """

    def __init__(self, nats: float, gain: float = 0.01) -> None:
        super().__init__()
        for name, value in (("nats", nats), ("gain", gain)):
            if not (isinstance(value, numbers.Real) and math.isfinite(value) and value > 0):
                raise InputError(f"{name}={value!r}: give a number above 0")
        self.nats = nats
        self.gain = gain

    def on_train_begin(self, logs: Any = None) -> None:
        super().on_train_begin()
        if not self.model.beta > 0:
            raise InputError("TargetKL multiplies the model's beta, which is 0: begin with a positive one, such as 1")
        check_target(self.nats, self.model.free_bits, self.model.latent_dim)

    def after_step(self, beta: Any, kl: Any) -> Any:
        error = ops.clip(kl / self.nats - 1.0, -1.0, 1.0)
        # A KL that the data cannot reach, whatever its weight, would drive the weight out of float32.
        return ops.clip(beta * ops.exp(self.gain * error), LEAST_WEIGHT, 1.0 / LEAST_WEIGHT)


# Names that `TrainingConfig.kl_schedule` takes, besides "constant".
KL_SCHEDULES = {
    "linear": LinearWarmup,
    "cosine": CosineWarmup,
    "cyclical": CyclicalAnnealing,
}


def check_target(nats: float, free_bits: float, latent_dim: int) -> None:
    """Refuses a target for the KL below what free bits leave uncharged.

    Raises:
        InputError: it is refused.
    """
    if free_bits * latent_dim >= nats:
        raise InputError(
            f"kl_target={nats:g}: free_bits={free_bits:g} of {latent_dim} latents leave {free_bits * latent_dim:g} "
            "uncharged, and the KL stays above: give more nats or fewer free bits"
        )


def check_traceable(schedule: KLWeight | None) -> None:
    """Refuses a schedule that TensorFlow cannot make a part of a training step, or whose weight is none.

    Raises:
        InputError: it is refused.
    """
    if schedule is None:
        return
    name = type(schedule).__name__
    number, count = tf.TensorSpec((), tf.float32), tf.TensorSpec((), tf.int64)
    try:
        before = tf.function(schedule.before_step, autograph=False).get_concrete_function(number, count, 1.0)
        tf.function(schedule.after_step, autograph=False).get_concrete_function(number, number)
    # Of Python's `if`, of functions that take numbers alone, of NumPy, of a `weight` that is not there.
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise InputError(
            f"{name}: write weight(self, step, end) with keras.ops, for the step is a tensor: such as "
            "ops.minimum(step / 1000, 1.0), or ops.where for an if"
        ) from error
    for step in (0, *(10**power for power in range(7))):
        weight = np.array(before(tf.constant(1.0), tf.constant(step, tf.int64)))
        if weight.shape or not (math.isfinite(weight) and weight >= 0):
            raise InputError(f"{name}: the weight at step {step} is {weight}: give a single number of at least 0")


def only_one(callbacks: list[Any]) -> KLWeight | None:
    """The callback that sets beta, if there is one.

    Raises:
        InputError: there are several.
    """
    found = [each for each in callbacks if isinstance(each, KLWeight)]
    if len(found) > 1:
        raise InputError(f"{' and '.join(type(each).__name__ for each in found)} both set beta: give one of them")
    return found[0] if found else None
