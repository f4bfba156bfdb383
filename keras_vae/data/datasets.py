"""A `tf.data.Dataset` of images as a source."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from keras_vae.data import image_batches
from keras_vae.data.image_files import HELD_OUT_PERCENT
from keras_vae.data.images import Images, Skips, fits_in_memory
from keras_vae.data.pipelines import CORES, Examples, Indexed, cached
from keras_vae.data.sources import Opened, Request, Source, fitted, output_shape
from keras_vae.support import progress
from keras_vae.support.errors import InputError

NAME = "dataset"


def takes(source: Source) -> bool:
    """Whether it is a dataset."""
    return isinstance(source, tf.data.Dataset)


def check(source: tf.data.Dataset, image_size: int | None) -> None:
    """Refuses nothing: what is wrong with a dataset shows when it is read."""


def open(source: tf.data.Dataset, request: Request) -> Opened:
    """A dataset, read once and kept where there is room for it.

    Images are held out by a hash of their pixels, because the dataset may reshuffle them each time it is read.

    Raises:
        InputError: it never ends, fails, holds something other than images, or fewer than two.
    """
    images, own_shape = _images_of(source)
    known = int(images.cardinality())
    if known == tf.data.INFINITE_CARDINALITY:
        raise InputError("the dataset never ends: give it without .repeat()")
    shape = output_shape(NAME, own_shape, request.image_size)

    def prepare(image: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        found = tf.constant([0.0, 0.0, 1.0])
        if image.dtype != tf.uint8:
            image = tf.cast(image, tf.float32)
            found = image_batches.summary(image)
            image = tf.cast(tf.round(tf.clip_by_value(image, 0.0, 1.0) * 255.0), tf.uint8)
        example = fitted(image, own_shape, shape, request.crop)
        bucket = tf.strings.to_hash_bucket_fast(tf.io.serialize_tensor(example["image"]), 100)
        return example, found, bucket

    prepared = images.map(prepare, num_parallel_calls=CORES)
    buckets, kept = _read(prepared, known)
    count = len(buckets)
    if count < 2:
        raise InputError(f"{NAME} of {count} images: give at least 2, one of them to hold out")
    held_out = buckets < HELD_OUT_PERCENT
    skips = Skips(NAME, count)
    if kept is not None:
        if held_out.all() or not held_out.any():  # a handful, where chance left one side empty
            held_out = np.arange(count) == int(np.argmin(buckets))
        stored = Images.of_array(kept)
        by_index = Indexed(stored, np.flatnonzero(~held_out)), Indexed(stored, np.flatnonzero(held_out))
        return Opened(NAME, shape, by_index[0], by_index[1], skips, own_shape=own_shape)

    def part(test: bool, size: int) -> Examples:
        side = prepared.filter(lambda *each: (each[2] < HELD_OUT_PERCENT) == test).map(lambda *each: each[0])
        return Examples(side, size, shape)

    train, test = cached(part(False, int((~held_out).sum())), part(True, int(held_out.sum())))
    return Opened(NAME, shape, train, test, skips, own_shape=own_shape)


def _images_of(dataset: tf.data.Dataset) -> tuple[tf.data.Dataset, tuple[int | None, ...]]:
    """The images of a dataset one by one, and their static shape, (height, width, channels)."""

    def image_of(*element: Any) -> Any:
        first = element[0]
        return first.get("image") if isinstance(first, dict) else first

    spec = dataset.element_spec
    spec = image_of(*spec) if isinstance(spec, tuple) else image_of(spec)
    no_images = InputError(
        "there are no images in the dataset's elements: give (height, width, channels), or dicts with `image`"
    )
    if not isinstance(spec, tf.TensorSpec):
        raise no_images
    image_batches.check_dtype(spec.dtype)
    images, shape = dataset.map(image_of), spec.shape
    if shape.rank is None or None in shape[-1:]:  # as of files decoded in a map: the first one tells
        try:
            first = next(iter(images.take(1)), None)
        except tf.errors.OpError as error:
            raise InputError(f"{NAME} fails at its first image: {' '.join(str(error).split())[:200]}") from error
        if first is None:
            raise image_batches.empty_dataset()
        shape = tf.TensorShape([None] * (len(first.shape) - 1) + list(first.shape[-1:]))
        images = images.map(lambda image: tf.ensure_shape(image, shape))
    if shape.rank not in (3, 4):
        raise no_images
    return (images.unbatch(), tuple(shape[1:])) if shape.rank == 4 else (images, tuple(shape))


def _read(prepared: tf.data.Dataset, known: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads all images once: each one's hash bucket, and the images, uint8, where they fit in memory."""
    kept: list[np.ndarray] | None = []
    buckets: list[int] = []
    with progress.bar(known if known >= 0 else None, "reading the dataset", "images") as bar:
        try:
            for example, found, bucket in prepared.as_numpy_iterator():
                total, low, high = map(float, found)
                image_batches.check_summary(total, low, high, where=f" in image {len(buckets)}")
                # They are copied in the end: as much again has to fit.
                if kept is not None and len(kept) % 1024 == 0 and not fits_in_memory(len(kept) * example["image"].size):
                    kept = None
                if kept is not None:
                    kept.append(example["image"])
                buckets.append(bucket)
                bar.update(1)
        except tf.errors.OpError as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{NAME} fails after {len(buckets)} images: {reason}") from error
    return np.array(buckets), np.stack(kept) if kept else None
