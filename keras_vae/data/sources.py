"""What each kind of source has in common: how its images are requested, and what it is opened as.

A kind of source is a module with the functions of `Kind`: `folders`, `arrays`, `datasets`, `tfds.sets`, `avatars`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeGuard

import numpy as np
import tensorflow as tf

from keras_vae.data import tables
from keras_vae.data.images import Skips
from keras_vae.data.pipelines import Part
from keras_vae.support.conditions import Condition
from keras_vae.support.errors import InputError
from keras_vae.support.names import ALL, LABEL, position, quoted

DEFAULT_SIZE = 64

Named: TypeAlias = str | os.PathLike[str]
Source: TypeAlias = Named | np.ndarray | tf.data.Dataset


@dataclass(frozen=True)
class Request:
    """How the images of a source are wanted; the attributes are arguments of `keras_vae.data.load`."""

    image_size: int | None = None
    crop: int | None = None
    attributes: bool | None = False
    strict: bool = False
    only_held_out: bool = False
    condition: str | Sequence[str] | None = None

    def condition_of(self, name: str, names: tuple[str, ...], exclusive: bool) -> Condition | None:
        """What a source's images are asked for by; it needs no image, so a set is refused before it is prepared.

        Args:
            name: the source, for messages.
            names: of its attributes or classes.
            exclusive: whether they are classes.

        Raises:
            InputError: attributes or classes are wanted that it does not have.
        """
        if (self.attributes or self.condition is not None) and not names:
            hint = tables.hint(Path(name)) if Path(name).is_dir() else ""
            raise InputError(
                f"{name} has no attributes: {hint or 'give a table of them, attributes.csv, or a subfolder a class'}"
            )
        asked = self.condition
        if asked is None:
            return None
        if not isinstance(asked, str) and not (
            isinstance(asked, list | tuple) and asked and all(isinstance(each, str) for each in asked)
        ):
            raise InputError(f"condition={asked!r}: give {LABEL!r}, {ALL!r}, or names of attributes")
        if asked == LABEL and LABEL not in names and not exclusive:
            raise InputError(
                f"{name} has attributes, not classes: give names of these, {', '.join(map(quoted, names))}, or {ALL}"
            )
        if asked == ALL or (asked == LABEL and exclusive):
            return Condition(names, exclusive)
        if exclusive:
            given = asked if isinstance(asked, str) else ",".join(asked)
            raise InputError(f"{name} has classes, {', '.join(names)}: give {LABEL}, not {given}")
        asked = (asked,) if isinstance(asked, str) else asked
        return Condition(tuple(names[position(each, names)] for each in asked))


@dataclass(frozen=True)
class Opened:
    """A source whose images can be read.

    Attributes:
        name: the source, as it was given.
        image_shape: (height, width, channels) after cropping and resizing.
        train, test: images to train on, and those held out.
        skips: images that the source lists and that are not used; it fills as they are read.
        attribute_names: names of the 0/1 attributes.
        exclusive: whether these are classes, of which each image has one.
        own_shape: the shape before cropping and resizing; None where each image has its own.
    """

    name: str
    image_shape: tuple[int, int, int]
    train: Part
    test: Part
    skips: Skips
    attribute_names: tuple[str, ...] = ()
    own_shape: tuple[int | None, ...] | None = None
    exclusive: bool = False


class Kind(Protocol):
    """The interface of the modules that open sources, one for each kind."""

    def takes(self, source: Source) -> bool:
        """Whether a source is of this kind."""

    def check(self, source: Any, image_size: int | None) -> None:
        """Refuses a source of this kind, as far as that can be done without reading its images.

        Raises:
            InputError: the source cannot be used.
        """

    def open(self, source: Any, request: Request) -> Opened:
        """Opens a source of this kind, downloading or drawing its images where that has not been done.

        Raises:
            InputError: the source cannot be used.
        """


def is_named(source: Source) -> TypeGuard[Named]:
    """Whether a source is given by a name or path rather than as an array or dataset."""
    return isinstance(source, str | os.PathLike)


def output_shape(name: str, shape: Sequence[int | None], image_size: int | None) -> tuple[int, int, int]:
    """The shape to which images are resized: their own where all have one and no size is requested.

    Args:
        name: the source, for the message.
        shape: the images' own (height, width, channels), None where a side varies.
        image_size: pixels a side, or None.

    Raises:
        InputError: it is not the shape of an image of 1 or 3 channels.
    """
    if len(shape) != 3 or shape[2] is None or shape[2] not in (1, 3):
        raise InputError(f"the images of {name} are of shape {tuple(shape)}: give images of 1 or 3 channels")
    height, width, channels = shape[0], shape[1], shape[2]
    if image_size is None and height is not None and width is not None:
        return height, width, channels
    size = image_size or DEFAULT_SIZE
    return size, size, channels


def fitted(
    image: tf.Tensor, own: Sequence[int | None], shape: tuple[int, int, int], crop: int | None
) -> dict[str, tf.Tensor]:
    """An image cropped and resized to a shape, as an example without attributes.

    Args:
        image: uint8 (height, width, channels).
        own: its static shape, None where a side varies.
        shape: the shape wanted.
        crop: pixels a side of the centred part that is cut out, at most; None for the largest there is.

    Returns:
        `image`, uint8 of that shape, and `attributes`, uint8 (0,).
    """
    if tuple(own) != shape or crop is not None:
        image = _crop_and_resize(image, shape[0], shape[1], crop)
    return {"image": tf.ensure_shape(image, shape), "attributes": tf.zeros((0,), tf.uint8)}


def _crop_and_resize(image: tf.Tensor, height: int, width: int, limit: int | None) -> tf.Tensor:
    """The largest centred part of the wanted proportions, its sides at most `limit`, antialiased, as uint8."""
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    if limit is not None:
        size = tf.minimum(size, float(limit))
    scale = tf.minimum(size[0] / height, size[1] / width)
    crop = tf.maximum(1, tf.cast(tf.round(scale * tf.constant([height, width], tf.float32)), tf.int32))
    offset = (tf.shape(image)[:2] - crop) // 2
    image = tf.image.crop_to_bounding_box(image, offset[0], offset[1], crop[0], crop[1])
    image = tf.image.resize(image, (height, width), antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
