"""Conditions in a compiled step: of the labels that images come with, and unknown for a share of them."""

from __future__ import annotations

import warnings
from typing import Any

import tensorflow as tf
from keras import ops

from keras_vae.data import image_batches
from keras_vae.support.conditions import Condition, check_none
from keras_vae.support.errors import InputError

KEYS = ("condition", "label")  # of batches that are dicts
UNKNOWN = 0.1  # share of the training images whose condition is left out
PARTLY = 0.2  # share of them of whose attributes some are


def labels_of(data: Any) -> Any:
    """What a batch says of its images: the labels of (images, labels), or of a dict; None if it says nothing."""
    if isinstance(data, tuple | list):
        if len(data) > 1 and data[1] is not None:
            return data[1]
        data = data[0]
    if isinstance(data, dict):
        return next((data[key] for key in KEYS if key in data), None)
    return None


def needed(data: Any, condition: Condition) -> Any:
    """As `labels_of`.

    Raises:
        InputError: the batch says nothing of its images.
    """
    labels = labels_of(data)
    if labels is None:
        raise missing(condition)
    return labels


def missing(condition: Condition) -> InputError:
    """What is said of images that come without what a model is conditional on."""
    what = "class" if condition.exclusive else "attributes"
    return InputError(
        f"this model is trained on images with their {what}: give fit(images, labels), a dataset of (images, labels), "
        f"or dicts with 'image' and {' or '.join(map(repr, KEYS))}"
    )


def of_labels(labels: Any, condition: Condition) -> Any:
    """Labels of images as conditions, float32 (batch, names): as `Condition.rows` has them, of tensors.

    Args:
        labels: whole numbers, (batch,) or (batch, 1) of classes, -1 where it is not known, or (batch, names) of 1 and 0
            (or -1); or float conditions, (batch, names). A class that there is not becomes NaN.

    Raises:
        InputError: labels of another shape or type.
    """
    labels, size = tf.convert_to_tensor(labels), len(condition)
    _check_spec(tf.TensorSpec(labels.shape, labels.dtype), condition)
    if labels.dtype.is_floating:
        return tf.cast(tf.ensure_shape(labels, (None, size)), tf.float32)
    labels = tf.cast(labels, tf.int64)
    if not condition.exclusive:
        return tf.where(tf.ensure_shape(labels, (None, size)) > 0, 1.0, -1.0)
    # Numbers or a row for each: a step that has seen both no longer knows which before it runs.
    count = tf.shape(labels)[0]  # of a replica without images, none
    columns = tf.maximum(tf.size(labels) // tf.maximum(count, 1), 1)
    labels = tf.reshape(labels, (count, columns))
    numbers = labels[:, 0]
    of_numbers = tf.where(((numbers >= -1) & (numbers < size))[:, tf.newaxis], tf.one_hot(numbers, size), float("nan"))
    of_rows = tf.where(tf.gather(labels, tf.minimum(tf.range(size), columns - 1), axis=1) > 0, 1.0, 0.0)
    return tf.where(columns == 1, of_numbers, tf.where(columns == size, of_rows, float("nan")))


def one_each(conditions: Any, images: Any) -> Any:
    """Conditions, (labels, names), as many as there are images: NaN where there were more labels or fewer."""
    there, count = tf.shape(conditions)[0], tf.shape(images)[0]
    found = tf.gather(conditions, tf.minimum(tf.range(count), there - 1))
    return found + tf.where(there == count, 0.0, float("nan"))


def _check_spec(spec: Any, condition: Condition) -> None:
    """Refuses labels that are neither numbers of classes, (batch,) or (batch, 1), nor rows, (batch, names).

    Raises:
        InputError: they are neither.
    """
    if not isinstance(spec, tf.TensorSpec):
        raise InputError(f"labels are of {type(spec).__name__}: give one dense tensor of them, a row for each image")
    size, shape = len(condition), spec.shape
    whole = spec.dtype.is_integer or spec.dtype.is_bool
    if (whole or spec.dtype.is_floating) and shape.rank is None:
        return
    if whole and condition.exclusive and (shape.rank == 1 or (shape.rank == 2 and shape[1] == 1)):
        return
    if not (whole or spec.dtype.is_floating) or shape.rank != 2 or shape[1] not in (None, size):
        wanted = f"numbers of classes, (batch,), or (batch, {size})" if condition.exclusive else f"(batch, {size})"
        found = ", ".join("batch" if side is None else str(side) for side in shape) if shape.rank is not None else "?"
        raise InputError(f"labels have shape ({found}) and type {spec.dtype.name}: give {wanted}")


def in_memory(images: dict[str, Any], values: Any, condition: Condition | None) -> dict[str, Any]:
    """A dict of images in memory as Keras can take it: the images, and conditions where there are labels.

    Args:
        images: the dict.
        values: its images, checked.
        condition: the model's, or None.

    Raises:
        InputError: labels that are refused.
    """
    found = labels_of(images)
    if condition is None or found is None:
        _warn_of_idle(condition, images)
        return {"image": values}
    return {"image": values, KEYS[0]: condition.of_images(found, len(values))}


def _warn_of_idle(condition: Condition | None, images: Any) -> None:
    if condition is None and KEYS[0] in _keys(images):
        warnings.warn(
            "the images come with conditions, and the model takes none: give VAE(condition=...)", stacklevel=4
        )


def checked_labels(condition: Condition | None, images: Any, labels: Any, needed: bool = False) -> Any:
    """The labels as a step gets them; refused if a conditional model cannot use them.

    Those of an array of images come back as conditions; of those of a dataset the shapes are looked at.

    Args:
        condition: the model's, or None: then there is nothing to refuse.
        images: checked images, a dict or a dataset.
        labels: given apart, or None.
        needed: whether there must be some.

    Returns:
        What to give Keras beside the images.

    Raises:
        InputError: they are refused.
    """
    if condition is None:
        _warn_of_idle(condition, images)
        return labels
    if isinstance(images, tf.data.Dataset):
        spec = labels_of(images.element_spec)
        if spec is not None:
            _check_spec(spec, condition)
        elif needed:
            raise missing(condition)
        return labels
    found = labels_of((images, labels))
    given = image_batches.unpack(images)
    if found is not None and hasattr(given, "shape"):
        rows = condition.of_images(found, len(given))
        return None if labels is None else rows
    if needed and found is None and (hasattr(images, "shape") or isinstance(images, dict)):
        raise missing(condition)
    return labels


def _keys(images: Any) -> Any:
    images = images.element_spec if isinstance(images, tf.data.Dataset) else images
    return images if isinstance(images, dict) else ()


def rows(condition: Condition | None, asked: Any, count: Any) -> Any:
    """Conditions of images as the networks take them, float32 (count, names); None of a model without any.

    Args:
        condition: the model's, or None.
        asked: as `Condition.rows` takes it, or a tensor of labels.
        count: of images.

    Raises:
        InputError: a condition that the model does not know.
    """
    if condition is None:
        check_none(asked)
        return None
    if asked is None:
        return tf.zeros((count, len(condition)))
    if isinstance(asked, tf.RaggedTensor | tf.SparseTensor):
        raise InputError(f"conditions are of {type(asked).__name__}: give one dense tensor, a row for each image")
    if tf.is_tensor(asked) and not tf.executing_eagerly():
        return of_labels(asked, condition)
    if tf.is_tensor(asked):
        asked = tf.convert_to_tensor(asked)
        asked = (tf.cast(asked, tf.float32) if asked.dtype.is_floating else asked).numpy()  # numpy has no bfloat16
    return tf.constant(condition.rows(asked, int(count)))


def draws(condition: Condition | None) -> int:
    """How many numbers `partly_unknown` takes for each image."""
    return 0 if condition is None else 1 if condition.exclusive else 1 + len(condition)


def partly_unknown(known: Any, noise: Any) -> Any:
    """Conditions with a tenth of them left out, and of attributes, in a fifth of the images, some.

    So that the same model draws images of any kind, or of which some attributes are asked for: as classifier-free
    guidance has it (Ho and Salimans 2022, arXiv 2207.12598).

    Args:
        known: float32 (batch, names).
        noise: standard normal, float32 (batch, `draws`).
    """
    chances = 0.5 * tf.math.erfc(-noise * 0.5**0.5)  # uniform
    first, others = chances[:, :1], chances[:, 1:]
    if not others.shape[1]:
        return tf.where(first < UNKNOWN, 0.0, known)
    some = ops.clip((first - UNKNOWN) / PARTLY, 0.0, 1.0)  # uniform where it is below 1
    share = tf.where(first < UNKNOWN, 1.0, tf.where(some < 1.0, some, 0.0))
    return tf.where(others < share, 0.0, known)
