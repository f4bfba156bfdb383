"""Everything used of Keras and TensorFlow beyond their public API, why, and the last version that needed it.

Everything else in the package keeps to the public API; look here first when a new Keras breaks something.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras


def all_layers(network: keras.Model) -> list[keras.layers.Layer]:
    """Every layer in a network, those within other layers and models too.

    Keras 3.15 has no public way to them: `layers` stops at the first level.
    """
    return list(network._flatten_layers())


def trained_variables(optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """The variables that an optimizer was built for. Keras 3.15 does not expose them."""
    return list(optimizer._trainable_variables)


def moving_averages(optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """The averages of an optimizer with `use_ema=True`, in the order of `trained_variables`.

    Keras 3.15 hands them out by overwriting the weights alone, at the end of `fit` or in `SwapEMAWeights`
    (keras-team/keras#18949); evaluation and export need them besides the weights.
    """
    return list(optimizer._model_variables_moving_average)


_steps_traced = 0  # of replicas, in turn
_known_gradients: set[str] = set()


def freed_with_its_model(step: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a training step, which takes its own gradients: what is traced of it is freed with its model.

    TensorFlow 2.21 registers the gradient of each `tf.custom_gradient` in a graph under a name of its own, and never
    forgets it, nor the graph. Keras's optimizers have one where they apply a step: 30 MB for each model that is fitted.
    """

    @functools.wraps(step)
    def traced(*arguments: Any) -> Any:
        global _steps_traced, _known_gradients
        import tensorflow as tf
        from tensorflow.python.framework import ops

        if tf.executing_eagerly():
            return step(*arguments)
        registered = ops.gradient_registry._registry
        if not _steps_traced:
            _known_gradients = set(registered)
        _steps_traced += 1
        try:
            return step(*arguments)
        finally:
            _steps_traced -= 1
            if not _steps_traced:
                for name in set(registered) - _known_gradients:
                    if name.startswith("CustomGradient-"):
                        registered.pop(name, None)

    return traced


def is_deterministic() -> bool:
    """Whether TensorFlow computes the same bits every time, as it was told to. TensorFlow 2.21 does not say.

    Keras 3.15 then leaves `jit_compile` out without a word.
    """
    from tensorflow.python.framework import config

    return config.is_op_determinism_enabled()


def is_within_fit(options: Mapping[str, Any]) -> bool:
    """Whether `evaluate` was called by `fit`, which Keras 3.15 shows by a private option."""
    return "_use_cached_eval_dataset" in options


class BuiltBeforehand:
    """A base of models that are built when they are made.

    `fit` of Keras 3.15 builds and compiles a model symbolically from the first batch, and fails to do so with a batch
    that is shared by several workers (keras-team/keras#20585).
    """

    def _maybe_symbolic_build(self, *args: Any, **kwargs: Any) -> None:
        """Nothing."""


class RaisedAsIs:
    """A base of exceptions whose message stays as it is.

    Keras 3.15 rewrites what a model's `call` raises into a paragraph that lists the arguments, except for exceptions
    that it has marked so already (keras-team/keras#23183).
    """

    _keras_call_info_injected = True
