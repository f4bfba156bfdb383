"""What the commands that measure a model do, apart from parsing and printing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vae import data, pictures
from keras_vae.errors import InputError
from keras_vae.evaluation.fidelity import psnr, sharpness_ratio
from keras_vae.exploring import read_images
from keras_vae.export.reference import true_float32
from keras_vae.files import check_output_file
from keras_vae.models import BATCH, Model, open_model

if TYPE_CHECKING:
    from keras_vae.vae import VAE


@true_float32(device=None)
def reconstruct(path: Path, source: str | None, out: Path, count: int, files: Sequence[Path] = ()) -> dict[str, Any]:
    """Writes images above their reconstructions.

    Args:
        path: the model.
        source: where held-out images are from; what the run trained on.
        out: the picture.
        count: held-out images.
        files: image files to take instead, cropped and resized as for training.

    Returns:
        `picture`, `images`, and over these images `psnr` (dB) and `sharpness` (1 is the originals').

    Raises:
        InputError: no model, a decoder alone, unusable images, or a picture that cannot be written.
    """
    check_output_file(out, pictures.ENDINGS)
    if files and source is not None:
        raise InputError("--image and --data are given: give one of them")
    model = open_model(path)
    vae = model.whole("reconstructing")
    if files:
        originals = read_images(model, files)
    else:
        images = data_of(model, vae, source, batch_size=1, only_held_out=True)
        originals = np.concatenate(list(images.test.take(count).as_numpy_iterator()))
    reconstructions = vae.predict(originals, batch_size=BATCH, verbose=0)
    pictures.save(pictures.side_by_side(originals, reconstructions), out)
    return {
        "picture": str(out),
        "images": len(originals),
        "psnr": psnr(originals, reconstructions),
        "sharpness": sharpness_ratio(originals, reconstructions),
    }


def data_of(
    model: Model,
    vae: VAE,
    source: str | None,
    batch_size: int,
    attributes: bool = False,
    only_held_out: bool = False,
) -> data.ImageData:
    """The images that a model was trained on, or others, in its size and crop.

    Where others have another size, it says that they are resized.

    Raises:
        InputError: it does not say what it was trained on, or the images are of no use to it.
    """
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
