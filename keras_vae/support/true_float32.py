"""Computes what is compared in true float32, on any machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import tensorflow as tf

from keras_vae.support.shared import SharedChange

CPU = "CPU:0"


@contextlib.contextmanager
def true_float32(device: str | None = CPU) -> Iterator[None]:
    """A block in which TensorFlow multiplies float32 as float32; also a decorator. Blocks may overlap, in threads too.

    NVIDIA's cards of compute capability 8.0 and up round the factors of float32 products and convolutions to the ten
    bits of TF32, which changes images by a thousandth. TensorFlow has a switch for that, of the whole process, but what
    XLA has compiled and what cuDNN has been tuned for with TF32 keep it; a CPU has no TF32. So references are computed
    on the CPU, operation by operation, and the switch is off for what TensorFlow places on a card all the same.

    Args:
        device: where operations are placed; None leaves that to TensorFlow, for figures of so many images that a CPU
            would take too long. Then compile nothing with XLA before the block that must be exact in it.
    """
    with _without_tf32, contextlib.nullcontext() if device is None else tf.device(device):
        yield


def _switch_tf32_off() -> Callable[[], None]:
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    return lambda: tf.config.experimental.enable_tensor_float_32_execution(before)


_without_tf32 = SharedChange(_switch_tf32_off)
