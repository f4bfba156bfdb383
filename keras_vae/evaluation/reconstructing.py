"""What `keras-vae reconstruct` does, apart from parsing and printing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_vae.evaluation.fidelity import psnr, sharpness_ratio
from keras_vae.runs.opening import BATCH, open_model
from keras_vae.runs.run_images import data_of, read_images
from keras_vae.support import pictures
from keras_vae.support.errors import InputError
from keras_vae.support.files import check_output_file
from keras_vae.support.true_float32 import true_float32


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
