"""What `compile` decides: which optimizer, the loss scale of float16, and whether XLA compiles the step."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from keras_vae.model.optimizers import Muon
from keras_vae.model.presets import DEFAULT_LEARNING_RATE
from keras_vae.support import keras_internals
from keras_vae.support.errors import InputError

# Where float16's loss scale starts. Keras starts at 2^15, meant for losses near 1. Likelihoods are sums over pixels:
# the first dozen steps would overflow and be skipped until the scale has come down to this.
INITIAL_LOSS_SCALE = 4.0
# The paper's features are averaged over the pixels: the more pixels, the smaller their gradients. At 32x32 a scale of
# 16 is right and 1024 overflows; at 256x256 1024 is right.
PIXELS_PER_LOSS_SCALE = 64


def optimizer_for(optimizer: Any, variables: list[Any]) -> keras.optimizers.Optimizer:
    """The requested optimizer, or Adam with the paper's learning rate.

    Raises:
        InputError: Keras does not know it, or it belongs to another model.
    """
    if optimizer is None:
        return keras.optimizers.Adam(DEFAULT_LEARNING_RATE)
    try:
        found: Any = Muon() if str(optimizer).lower() == "muon" else keras.optimizers.get(optimizer)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"unknown optimizer {optimizer!r}: give a Keras optimizer, or a name such as 'adam' or 'muon'"
        ) from error
    inner = getattr(found, "inner_optimizer", found)
    if inner.built and [id(each) for each in keras_internals.trained_variables(inner)] != [
        id(each) for each in variables
    ]:
        raise InputError(
            "the optimizer was made for other weights, of another model or before some were frozen: give a new one"
        )
    return found


def with_loss_scale(optimizer: keras.optimizers.Optimizer, initial_scale: float) -> keras.optimizers.Optimizer:
    """Wraps an optimizer for float16 as Keras would, but starting from a scale that suits such losses."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=initial_scale)


def initial_loss_scale(image_shape: tuple[int, int, int], sums_over_pixels: bool) -> float:
    """Where float16's loss scale starts.

    Args:
        image_shape: (height, width, channels).
        sums_over_pixels: whether the loss has terms in nats; otherwise it is an average over features.
    """
    if sums_over_pixels:
        return INITIAL_LOSS_SCALE
    height, width, _ = image_shape
    return max(INITIAL_LOSS_SCALE, 2.0 ** math.floor(math.log2(height * width / PIXELS_PER_LOSS_SCALE)))


@dataclass(frozen=True)
class Xla:
    """What XLA compiles of a model.

    Attributes:
        step: the training step, as one program.
        parts: the parts of the training step between what replicas exchange, by TensorFlow's auto-clustering.
        evaluation: evaluation and prediction too.
        why: what was decided and why, in words.
    """

    step: bool
    parts: bool
    evaluation: bool
    why: str


def xla_for(asked: bool | str, run_eagerly: bool, strategy: tf.distribute.Strategy, needs_xla: bool) -> Xla:
    """Decides what XLA compiles.

    Args:
        asked: True, False or "auto": training on GPUs, where it is faster; elsewhere only what cannot run without it.
        run_eagerly: whether steps run eagerly.
        strategy: the model's.
        needs_xla: whether this machine can compute in the model's precision only through XLA.

    Raises:
        InputError: the options contradict each other.
    """
    if asked not in (True, False, "auto"):
        raise InputError(f"jit_compile={asked!r}: give True, False or 'auto'")
    asked = asked if isinstance(asked, str) else bool(asked)  # 1, or NumPy's
    replicas = strategy.num_replicas_in_sync
    deterministic = keras_internals.is_deterministic()
    if deterministic and needs_xla:
        raise InputError(
            "float16 on a CPU needs XLA, which compiles nothing while TensorFlow computes deterministically: use "
            "mixed_bfloat16 or float32"
        )
    if needs_xla and replicas > 1:
        raise InputError(
            f"float16 on a CPU runs only when XLA compiles the whole step, which it cannot for {replicas} replicas: "
            "use mixed_bfloat16 or float32"
        )
    if needs_xla and (run_eagerly or not asked):
        raise InputError(
            "float16 on a CPU runs only when compiled by XLA: leave out jit_compile and run_eagerly, "
            "or use mixed_bfloat16 or float32"
        )
    gpus = bool(tf.config.list_physical_devices("GPU"))
    on = not (run_eagerly or deterministic) and (needs_xla or (gpus if asked == "auto" else bool(asked)))
    # A program for each shape of batch takes half a minute to compile on a GPU, more than an evaluation takes.
    evaluation = on and replicas == 1 and (needs_xla or asked is True)
    reasons = (
        (deterministic, "off (TensorFlow computes deterministically)"),
        (run_eagerly, "off (steps run eagerly)"),
        (not on, "off (no GPU)" if asked == "auto" else "off (as asked)"),
        (replicas > 1, f"on (for the parts of a step between what {replicas} replicas exchange)"),
        (needs_xla, "on (float16 on a CPU needs it)"),
        (True, "on (a GPU)" if asked == "auto" else "on (as asked)"),
    )
    why = next(reason for applies, reason in reasons if applies)
    return Xla(on and replicas == 1, on and replicas > 1, evaluation, why)


def clustered(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, compiled by XLA where it can be, while it runs: TensorFlow's switch is the process's."""

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        before = tf.config.optimizer.get_jit()
        tf.config.optimizer.set_jit("autoclustering")
        try:
            return function(*arguments)
        finally:
            tf.config.optimizer.set_jit(before)

    return run
