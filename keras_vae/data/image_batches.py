"""What an image may be: one rule for arrays, tensors and datasets, and one message for each way to break it.

Images are (batch, height, width, channels), finite and in [0, 1], of any real type; uint8 counts 0..255, True is 1.
"""

from __future__ import annotations

import math
import re
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_vae.support.errors import InputError

RANGE_TOLERANCE = 1e-3  # beyond [0, 1]: what resizing overshoots

ImageShape = tuple[int, int, int]


def unpack(data: Any) -> Any:
    """The images of what Keras hands a step: images, (images, labels), or a dict with the key "image".

    Raises:
        InputError: there are sample weights, or no key "image".
    """
    if isinstance(data, tuple | list):
        if len(data) > 2 and data[2] is not None:
            raise InputError("sample weights are given: the bound counts every image alike; leave them out")
        data = data[0]
    if isinstance(data, dict):
        if "image" not in data:
            raise InputError(f"batches have the keys {', '.join(map(str, data))}: name the images 'image'")
        data = data["image"]
    return data


def check(images: Any, image_shape: ImageShape | None = None) -> None:
    """Refuses an array or an eager tensor that is not a batch of images.

    Args:
        images: all of them are looked at.
        image_shape: (height, width, channels) that they must have; any by default.

    Raises:
        InputError: it is refused.
    """
    if isinstance(images, tf.RaggedTensor | tf.SparseTensor):
        raise InputError(f"images are a {type(images).__name__}: give a dense tensor, of images of one size")
    check_dtype(images.dtype)
    check_shape(tuple(images.shape), image_shape)
    if not images.shape[0]:
        raise InputError(f"an array of shape {tuple(images.shape)} has no image in it")
    if _is_uint8(images.dtype):
        return
    if tf.is_tensor(images):
        total, low, high = np.array(summary(images))
    else:
        images = np.asarray(images)
        low, high = float(images.min()), float(images.max())  # NaN where one is
        total = low + high
    try:
        check_summary(total, low, high)
    except InputError:
        if math.isfinite(total):
            raise
        finite = np.array(np.isfinite(np.asarray(images, np.float32)).all(axis=(1, 2, 3)))
        raise InputError(
            f"{int((~finite).sum())} of {len(finite)} images hold NaN or infinite values, first image "
            f"{int(np.argmin(finite))}: leave them out, as images[np.isfinite(images).all((1, 2, 3))] does"
        ) from None


def as_array(images: Any) -> Any:
    """The same tensor, or an array of anything else that NumPy makes one of, such as a list of images.

    Raises:
        InputError: images of different shapes.
    """
    if isinstance(images, tf.Variable | keras.Variable):
        return tf.convert_to_tensor(images)
    if tf.is_tensor(images):
        return images
    try:
        return np.asarray(images)
    except ValueError as error:
        raise InputError("images have different shapes: give one array, or tensors of one shape") from error


def check_dtype(dtype: Any) -> None:
    """Refuses numbers that are no brightness: text, objects, complex numbers.

    Raises:
        InputError: it is refused.
    """
    try:
        kind = tf.as_dtype(dtype)
    except TypeError:
        kind = tf.string
    if not (kind.is_floating or kind.is_integer or kind.is_bool):
        raise InputError(f"images are of type {dtype}: give floats in [0, 1], or 0..255 as uint8")


def check_shape(shape: tuple[int | None, ...], image_shape: ImageShape | None = None) -> None:
    """Refuses what is not a batch of images of a shape. Sides that are None are not known, and pass.

    Raises:
        InputError: it is refused, with what to do.
    """
    wanted = "(batch, height, width, channels)"
    fits = len(shape) == 4
    if image_shape is not None:
        wanted = f"(batch, {', '.join(map(str, image_shape))})"
        fits = fits and all(side in (None, own) for side, own in zip(shape[1:], image_shape, strict=True))
    if fits:
        return
    advice = f"give {wanted}"
    if len(shape) == 3 and (shape == image_shape or (image_shape is None and shape[2] in (1, 3))):
        advice = f"an image without its batch: {advice}, as images[None] is, or a dataset's .batch(64)"
    elif len(shape) == 3 and (image_shape is None or shape[1:] == image_shape[:2]):
        advice = f"the channel is missing: {advice}, as images[..., None] is"
    elif len(shape) == 4:
        advice = f"this model takes {wanted}"
        if image_shape is not None and shape[1:3] == image_shape[:2] and shape[3] == 1:
            advice += ": repeat the grey channel, as np.repeat(images, 3, axis=-1) does"
    text = ", ".join("?" if side is None else str(side) for side in shape)
    raise InputError(f"images have shape ({text}): {advice}")


def check_summary(total: float, low: float, high: float, where: str = "") -> None:
    """Refuses images by what `summary` found.

    Args:
        where: the place, " in batch 3".

    Raises:
        InputError: they are refused.
    """
    if not math.isfinite(total):  # first: XLA's smallest value of NaN alone is infinity, as of nothing
        raise InputError(f"images hold NaN or infinite values{where}: leave those images out")
    if low > high:
        raise InputError(f"there is no image{where}: leave out batches that are empty")
    if low >= -RANGE_TOLERANCE and high <= 1.0 + RANGE_TOLERANCE:
        return
    advice = "scale them to [0, 1], or pass 0..255 images as uint8"
    if -1.0 - RANGE_TOLERANCE <= low < 0 and high <= 1.0 + RANGE_TOLERANCE:
        advice = "scale them to [0, 1], as (images + 1) / 2 does"
    raise InputError(f"images range from {low:g} to {high:g}{where}: {advice}")


def summary(images: Any) -> Any:
    """Sum, smallest and largest value of images, float32 (3,): the sum is not finite where one value is not.

    Of uint8 images, which are in range whatever they show, no value is looked at: it is that of black and white.
    """
    if _is_uint8(images.dtype):
        return tf.where(tf.size(images) > 0, [1.0, 0.0, 1.0], [0.0, math.inf, -math.inf])
    images = tf.cast(images, tf.float32)
    return tf.stack([tf.reduce_sum(images), tf.reduce_min(images), tf.reduce_max(images)])


def in_range(total: Any, low: Any, high: Any) -> Any:
    """What `check_summary` passes, as a boolean tensor."""
    inside = tf.logical_and(low >= -RANGE_TOLERANCE, high <= 1.0 + RANGE_TOLERANCE)
    return tf.reduce_all([tf.math.is_finite(total), inside, low <= high])  # of no image the lowest is infinite


def as_float32(images: Any, image_shape: ImageShape) -> Any:
    """Images as a float32 tensor of that shape, uint8 scaled; their values are not looked at. Raises as `shaped`."""
    images = shaped(images, image_shape)
    if _is_uint8(images.dtype):
        return tf.cast(images, tf.float32) / 255.0
    return tf.cast(images, tf.float32)


def shaped(images: Any, image_shape: ImageShape) -> Any:
    """Images as a tensor of that shape and of their own type.

    Raises:
        InputError: of another shape or type. Sides that are known only when they are computed fail then, and
            `worded` says so.
    """
    images = tf.convert_to_tensor(images)
    check_dtype(images.dtype)
    if images.shape.rank is not None:
        check_shape(tuple(images.shape), image_shape)
    if not images.shape[1:].is_fully_defined():
        images = tf.ensure_shape(images, (None, *image_shape))
    return images


def worded(error: Exception, image_shape: ImageShape) -> InputError | None:
    """What a shape that was computed and is wrong comes to; None for another error."""
    found = re.search(r"Shape of tensor \S+ \[([\d,]*)\] is not compatible with expected shape", str(error))
    if found is None:
        return None
    try:
        check_shape(tuple(int(side) for side in found.group(1).split(",") if side), image_shape)
    except InputError as refused:
        return refused
    return None


def checked_dataset(dataset: tf.data.Dataset, image_shape: ImageShape, steps: int | None, option: str) -> Any:
    """A dataset of batches that a model can take, with the images' shape where it did not say it.

    Args:
        dataset: of images, (images, labels), or dicts with the key "image".
        image_shape: (height, width, channels) of the model.
        steps: batches that are asked for, or None for all.
        option: the argument that says so; empty where there is none.

    Raises:
        InputError: it is empty, never ends, or holds something else.
    """
    cardinality = int(dataset.cardinality())
    if cardinality == tf.data.INFINITE_CARDINALITY and steps is None:
        limited = f"give {option}=..., or " if option else ""
        raise InputError(f"the dataset never ends: {limited}leave out .repeat()")
    if cardinality == 0:
        raise empty_dataset()
    spec = unpack(dataset.element_spec)
    if not isinstance(spec, tf.TensorSpec):
        raise InputError(
            f"the dataset's images are {type(spec).__name__.removesuffix('Spec')}s: give tensors of one size"
        )
    check_dtype(spec.dtype)
    if spec.shape.rank is not None:
        check_shape(tuple(spec.shape), image_shape)
        if spec.shape[1:].is_fully_defined():
            return dataset

    def shaped(*element: Any) -> Any:
        images = tf.ensure_shape(unpack(element if len(element) > 1 else element[0]), (None, *image_shape))
        first = {**element[0], "image": images} if isinstance(element[0], dict) else images
        return (first, *element[1:]) if len(element) > 1 else first

    return dataset.map(shaped)


def empty_dataset() -> InputError:
    """What is said of a dataset without a batch."""
    return InputError("the dataset is empty: give one with at least one batch of images")


def _is_uint8(dtype: Any) -> bool:
    return tf.as_dtype(dtype) == tf.uint8
