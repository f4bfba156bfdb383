"""The images of a run: those it was trained on, or others in their size and crop."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from keras_vae.runs.opening import Model
from keras_vae.support.errors import InputError
from keras_vae.support.pictures import LUMA

if TYPE_CHECKING:
    from keras_vae import data
    from keras_vae.model.vae import VAE


def data_of(
    model: Model,
    vae: VAE,
    source: str | None,
    batch_size: int,
    attributes: bool = False,
    only_held_out: bool = False,
    conditions: bool = False,
) -> data.ImageData:
    """The images that a model was trained on, or others, in its size and crop.

    Where others have another size, it says that they are resized. With `conditions` batches are dicts that have those
    too, as the run was trained on.

    Raises:
        InputError: it does not say what it was trained on, or the images are of no use to it.
    """
    from keras_vae import data  # TensorFlow, which an .onnx file does without

    given = source
    source = model.config.get("data") if source is None else source
    if source is None:
        raise InputError(f"{model.path} does not say what it was trained on: give --data")
    height, width, channels = vae.image_shape
    size = height if height == width else None  # images that are not square come in their own size
    try:
        images = data.load(
            source,
            size,
            batch_size,
            crop=model.config.get("crop"),
            attributes=attributes,
            only_held_out=only_held_out,
            condition=model.config.get("condition") if conditions else None,
        )
    except InputError as error:
        if given is not None:
            raise
        raise InputError(f"{error} ({model.path} was trained on it; --data takes other images)") from error
    if images.image_shape != vae.image_shape:
        found, wanted = ("x".join(map(str, shape)) for shape in (images.image_shape, vae.image_shape))
        raise InputError(f"the images of {source} are {found}: {model.path} takes {wanted}")
    if given is not None and images.own_shape != (height, width, channels):
        if images.own_shape is None:  # each has its own, the model's perhaps
            told = f"images of {source} that are not {height}x{width} are cropped and resized to it for the model"
        else:
            own = "x".join(str(side or "?") for side in images.own_shape[:2])
            told = f"the images of {source} are {own}: cropped and resized to {height}x{width} for the model"
        print(told, file=sys.stderr)
    return images


def read_images(model: Model, paths: Sequence[Path]) -> np.ndarray:
    """Image files as a model takes them: float32 (count, height, width, channels) in [0, 1].

    Raises:
        InputError: a file is missing or cannot be read, or the model's images are not square.
    """
    from keras_vae.data.image_files import UnreadableError, decode

    height, width, channels = model.whole("encoding images").image_shape
    if height != width:
        raise InputError(f"{model.path} takes images of {height}x{width}: files are cropped to squares; give --codes")
    found = []
    for path in paths:
        if not path.is_file():
            if path.is_dir():
                raise InputError(f"{path} is a folder, not an image: name a file in it")
            raise InputError(f"no image at {path}")
        try:
            found.append(decode(path, height, model.config.get("crop")))
        except UnreadableError as error:
            raise InputError(f"cannot read the image {path}: {error}") from error
    images = np.stack(found).astype(np.float32) / 255.0
    return images if channels == 3 else images @ LUMA[:, np.newaxis]
