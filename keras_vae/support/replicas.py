"""Sums, means and draws over the whole batch, where `tf.distribute` shares it among replicas.

For use within a replica of a training step; anywhere else, and with one replica, they are plain sums, means and draws
at no extra cost. Each is the same number on every replica, and gradients pass through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import ops

SHARE_MARK = "fewer images than replicas"


def count() -> int:
    """Number of replicas that share the batch."""
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def total(values: Any) -> Any:
    """Sum over replicas of a tensor, or of each of a list of tensors."""
    if count() == 1:
        return values
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


def gathered(values: Any) -> Any:
    """(...) to (replicas, ...): every replica's tensor, of a shape that all have in common."""
    if count() == 1:
        return values[tf.newaxis]
    own = tf.one_hot(_index(), count(), dtype=values.dtype)
    return total(tf.tensordot(own, values, axes=0))


def batch_size(values: Any) -> Any:
    """Number of rows of the whole batch, float32, of which `values` are this replica's."""
    return total(ops.cast(ops.shape(values)[0], "float32"))


def mean(values: Any) -> Any:
    """Mean over the rows of the whole batch: (rows, ...) to (...), float32."""
    if count() == 1:
        return ops.mean(values, axis=0)
    return total(ops.sum(values, axis=0)) / batch_size(values)


def moments(images: Any) -> tuple[Any, Any]:
    """Mean and biased variance of each channel over the whole batch: (rows, height, width, channels) to (channels,).

    Replicas' moments are merged as in Chan et al. 1979, in one exchange and without differences of large sums.
    """
    mean, variance = tf.nn.moments(ops.cast(images, "float32"), (0, 1, 2))
    rows = ops.cast(ops.shape(images)[0], "float32")
    none = tf.zeros_like(mean)  # of a replica without rows, in a batch smaller than the number of replicas
    parts = tf.stack([tf.where(rows > 0, mean, none), tf.where(rows > 0, variance, none), none + rows])
    means, variances, counts = tf.unstack(gathered(parts), axis=1)
    shares = counts / tf.reduce_sum(counts, 0)
    mean = tf.reduce_sum(shares * means, 0)
    return mean, tf.reduce_sum(shares * (variances + tf.square(means - mean)), 0)


def one_for_each(images: Any) -> Any:
    """The same images: with several replicas, each must get one; a step without fails, and says `SHARE_MARK`.

    A replica without images has no batch statistics, and oneDNN cannot convolve an empty batch.
    """
    if count() == 1:
        return images
    with tf.control_dependencies([tf.debugging.Assert(tf.shape(images)[0] > 0, [SHARE_MARK])]):
        return tf.identity(images)


def at_least_one(images: Any) -> Any:
    """The same images, or one black image if there are none: oneDNN cannot convolve an empty batch.

    A replica gets none if the batch is smaller than the number of replicas. Of anything else with rows, None too.
    """
    if images is None or images.shape[0]:  # it is known that there are some
        return images
    missing = tf.cast(tf.equal(tf.shape(images)[0], 0), tf.int32)
    # Not by tf.pad: oneDNN fuses it with a convolution, and drops the batch's padding (TensorFlow 2.21).
    return tf.concat([images, tf.zeros((missing, *images.shape[1:]), images.dtype)], 0)


class NoiseByPlace(keras.random.SeedGenerator):
    """Standard normal draws that depend only on the seed and a row's position in the data, whatever the batches.

    The state is the seed and the number of rows drawn so far. The bits are Philox's (Salmon et al. 2011), whose
    counter is set to the row's position: the same on every device, compiled by XLA or not, where Keras's normal draws
    differ.

    Args:
        seed: as `keras.random.SeedGenerator`.
        stream: draws of the same seed and another stream are independent.
    """

    WORDS = 4  # that one step of Philox's counter gives

    def __init__(self, seed: int | None = None, name: str | None = None, stream: int = 0) -> None:
        super().__init__(seed, name=name)
        self.stream = stream

    def begin(self) -> None:
        """The next row is the first again."""
        self.state.assign(self.state * ops.convert_to_tensor([1, 0], self.state.dtype))

    def draw(self, shape: Any) -> Any:
        """float32 (rows, size), of this replica's rows; `shape` says both."""
        rows, size = shape
        counts = tf.cast(gathered(ops.cast(rows, "float32")), tf.int64)
        seed, place = tf.unstack(tf.cast(tf.convert_to_tensor(self.state), tf.int64))
        before = 0 if count() == 1 else tf.reduce_sum(counts[: _index()])
        steps = -(-size // self.WORDS)
        bits = tf.raw_ops.StatelessRandomUniformFullIntV2(
            shape=(rows, steps * self.WORDS),
            key=tf.cast(seed, tf.uint64)[tf.newaxis],
            counter=tf.cast(tf.stack([(place + before) * steps, self.stream]), tf.uint64),
            alg=tf.random.Algorithm.PHILOX.value,
            dtype=tf.uint32,
        )[:, :size]
        total = tf.cast(tf.reduce_sum(counts), self.state.dtype)
        self.state.assign(self.state + tf.stack([tf.zeros_like(total), total]))
        # One bit is the sign; 23 are a tail probability between 0 and 1/2, which float32 holds to the last bit.
        sign = 1.0 - 2.0 * tf.cast(bits & 1, tf.float32)
        tail = (tf.cast(tf.bitwise.right_shift(bits, tf.constant(9, tf.uint32)), tf.float32) + 0.5) * 2.0**-24
        return sign * tf.math.ndtri(tail)


def choose(fine: Any, then: Callable[..., None], otherwise: Callable[..., None], *arguments: Any) -> None:
    """Calls one function or the other, on every replica the same one: both may assign variables.

    Args:
        fine: boolean, the same on every replica.
        then, otherwise: what is called with the arguments where it is true, and where it is false.
        *arguments: of each replica: tensors, or lists of them.
    """

    if not tf.distribute.has_strategy():  # one with a single replica merges replicas too
        tf.cond(fine, lambda: then(*arguments), lambda: otherwise(*arguments))
        return

    def merged(strategy: tf.distribute.Strategy, fine: Any, *arguments: Any) -> None:
        # `tf.distribute` takes no condition within a replica whose branch merges replicas, as optimizers do.
        def on_each(function: Callable[..., None]) -> None:
            strategy.extended.call_for_each_replica(function, args=arguments)

        first = strategy.experimental_local_results(fine)[0]
        tf.cond(first, lambda: on_each(then), lambda: on_each(otherwise))

    tf.distribute.get_replica_context().merge_call(merged, args=(fine, *arguments))


def _index() -> Any:
    return tf.distribute.get_replica_context().replica_id_in_sync_group
