"""tf.data pipelines of image batches: shuffled, augmented and scaled."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import tensorflow as tf

from keras_vae.data.images import Images

CORES = os.cpu_count() or 1
PREFETCH = 2  # batches made ready while the model works on one
SHUFFLE_BYTES = 2**28  # of the buffer in which examples that come in sequence are shuffled
SHUFFLE_EXAMPLES = 16_384


def shuffled(
    images: Images, indices: np.ndarray, batch_size: int, seed: int, attributes: bool, flip: bool, random_crop: int
) -> tf.data.Dataset:
    """Full batches in an order drawn anew each epoch, for training.

    The order is a pseudo-random permutation that is computed, not stored (`tf.random.experimental.index_shuffle`), so
    that it shuffles the whole set and takes no memory. Images that cannot be read leave their places to others, and an
    epoch has as many batches as if there were none.
    """
    count = len(indices)

    def order(epoch: tf.Tensor) -> tf.data.Dataset:
        # Once through all of them, and a second time for the places of those that cannot be read.
        return tf.data.Dataset.range(2).flat_map(lambda time: once(tf.stack([epoch, time])))

    def once(key: tf.Tensor) -> tf.data.Dataset:
        places = tf.data.Dataset.range(count).batch(batch_size)
        return places.map(lambda place: tf.random.experimental.index_shuffle(place, key, tf.cast(count - 1, tf.int64)))

    epochs = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).take(1)
    read = epochs.flat_map(order).map(lambda places: _read(images, indices, places), num_parallel_calls=CORES)
    batches = read.rebatch(batch_size, drop_remainder=True).take(count // batch_size)
    return _finish(batches, attributes, seed, flip, random_crop, count // batch_size)


def in_order(images: Images, indices: np.ndarray, batch_size: int, attributes: bool) -> tf.data.Dataset:
    """Batches in a fixed order, for evaluation; the last one, and those with unreadable images, are smaller."""
    places = tf.data.Dataset.range(len(indices)).batch(batch_size)
    read = places.map(lambda places: _read(images, indices, places), num_parallel_calls=CORES)
    return _finish(read, attributes, None, False, 0, -(-len(indices) // batch_size))


def _read(images: Images, indices: np.ndarray, places: tf.Tensor) -> dict[str, tf.Tensor]:
    def read(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pixels, good = images.read(indices[places])
        after = int(places[-1])
        while not len(pixels):  # a batch of none has no mean: the next image that can be read stands in
            after = (after + 1) % len(indices)
            pixels, good = images.read(indices[[after]])
        if images.attributes is None:
            return pixels, np.empty((len(pixels), 0), np.uint8)
        return pixels, images.attributes[good]

    pixels, attributes = tf.numpy_function(read, [places], (tf.uint8, tf.uint8), stateful=False)
    pixels.set_shape((None, *images.shape))
    attributes.set_shape((None, 0 if images.attributes is None else images.attributes.shape[1]))
    return {"image": pixels, "attributes": attributes}


def from_examples(
    examples: tf.data.Dataset,
    shape: tuple[int, int, int],
    batch_size: int,
    count: int,
    attributes: bool,
    seed: int | None = None,
    flip: bool = False,
    random_crop: int = 0,
) -> tf.data.Dataset:
    """Batches of examples {"image": uint8, "attributes": uint8} that come in sequence.

    With a seed they are shuffled, in a buffer of at most 256 MiB, and only full batches are made.
    """
    examples = examples.take(count)
    if seed is None:
        return _finish(examples.batch(batch_size), attributes, None, False, 0, -(-count // batch_size))
    buffer = min(count, SHUFFLE_EXAMPLES, max(batch_size, SHUFFLE_BYTES // int(np.prod(shape))))
    examples = examples.shuffle(buffer, seed=seed, reshuffle_each_iteration=True)
    batches = examples.batch(batch_size, drop_remainder=True)
    return _finish(batches, attributes, seed, flip, random_crop, count // batch_size)


def _finish(
    batches: tf.data.Dataset, attributes: bool, seed: int | None, flip: bool, random_crop: int, count: int
) -> tf.data.Dataset:
    # With autotuning (TensorFlow 2.21) four runs stood idle for 33 to 57 s, three of them where one epoch's iterator
    # gives way to the next; without it none did. Why was not established; a guess is its thread, which sleeps at times.
    options = tf.data.Options()
    options.autotune.enabled = False

    def finish(batch: dict[str, tf.Tensor], *seeds: tf.Tensor) -> Any:
        image = batch["image"]
        if flip:
            image = tf.image.stateless_random_flip_left_right(image, seeds[0][:2])
        if random_crop:
            image = _shift(image, random_crop, seeds[0][2:])
        image = tf.cast(image, tf.float32) / 255.0
        return {"image": image, "attributes": batch["attributes"]} if attributes else image

    if flip or random_crop:
        draws = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(4)
        batches = tf.data.Dataset.zip(batches, draws)
    batches = batches.map(finish, num_parallel_calls=CORES).apply(tf.data.experimental.assert_cardinality(count))
    return batches.prefetch(PREFETCH).with_options(options)


def _shift(images: tf.Tensor, most: int, seed: tf.Tensor) -> tf.Tensor:
    """Each image moved by up to so many pixels either way, its edges mirrored into what opens up."""
    batch, height, width = tf.shape(images)[0], images.shape[1], images.shape[2]
    padded = tf.pad(images, [[0, 0], [most, most], [most, most], [0, 0]], "REFLECT")
    offsets = tf.random.stateless_uniform((2, batch, 1), seed, 0, 2 * most + 1, tf.int32)
    padded = tf.gather(padded, offsets[0] + tf.range(height), axis=1, batch_dims=1)
    return tf.gather(padded, offsets[1] + tf.range(width), axis=2, batch_dims=1)
