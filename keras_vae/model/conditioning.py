"""Conditions in a compiled step: of the labels that images come with, and unknown for a share of them."""

from __future__ import annotations

from typing import Any

import numpy as np
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
    labels = tf.convert_to_tensor(labels)
    size, shape = len(condition), labels.shape
    whole = labels.dtype.is_integer or labels.dtype.is_bool
    if whole and condition.exclusive and (shape.rank == 1 or (shape.rank == 2 and shape[1] == 1)):
        labels = tf.cast(tf.reshape(labels, (-1,)), tf.int64)
        known = tf.logical_and(labels >= -1, labels < size)
        return tf.where(known[:, tf.newaxis], tf.one_hot(labels, size), float("nan"))
    if not (whole or labels.dtype.is_floating) or shape.rank != 2 or shape[1] not in (None, size):
        wanted = f"(batch,) class numbers, or (batch, {size})" if condition.exclusive else f"(batch, {size})"
        raise InputError(f"labels have shape {tuple(shape)} and type {labels.dtype.name}: give {wanted} numbers")
    labels = tf.ensure_shape(labels, (None, size))
    if not whole:
        return tf.cast(labels, tf.float32)
    return tf.where(tf.cast(labels, tf.int32) > 0, 1.0, 0.0 if condition.exclusive else -1.0)


def check_labels(condition: Condition | None, images: Any, labels: Any, needed: bool = False) -> None:
    """Refuses labels that a conditional model cannot use; those of a dataset as far as its shapes tell.

    Args:
        condition: the model's, or None: then there is nothing to refuse.
        images: checked images, a dict or a dataset.
        labels: given apart, or None.
        needed: whether there must be some.

    Raises:
        InputError: they are refused.
    """
    if condition is None:
        return
    if isinstance(images, tf.data.Dataset):
        spec = labels_of(images.element_spec)
        if spec is not None:
            of_labels(tf.zeros([side or 1 for side in spec.shape], spec.dtype), condition)
        elif needed:
            raise missing(condition)
        return
    found = labels_of((images, labels))
    if found is not None and hasattr(found, "__len__"):
        condition.rows(np.asarray(found), len(image_batches.unpack(images)))
    elif needed and found is None and (hasattr(images, "shape") or isinstance(images, dict)):
        raise missing(condition)


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
    return of_labels(asked, condition) if tf.is_tensor(asked) else tf.constant(condition.rows(asked, int(count)))


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
