"""What `keras-vae reconstruct` does, apart from parsing and printing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_vae.data.image_batches import unpack
from keras_vae.evaluation.fidelity import psnr, sharpness_ratio
from keras_vae.model.conditioning import labels_of
from keras_vae.runs.opening import BATCH, in_batches, open_model
from keras_vae.runs.run_images import data_of, read_images
from keras_vae.support import pictures
from keras_vae.support.conditions import asked_for, in_words
from keras_vae.support.errors import InputError
from keras_vae.support.files import check_output_file
from keras_vae.support.true_float32 import true_float32


@true_float32(device=None)
def reconstruct(
    path: Path,
    source: str | None,
    out: Path,
    count: int,
    files: Sequence[Path] = (),
    labels: Sequence[str] = (),
    attributes: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes images above their reconstructions, and above what they are as of something else.

    Args:
        path: the model.
        source: where held-out images are from; what the run trained on.
        out: the picture.
        count: held-out images.
        files: image files to take instead, cropped and resized as for training.
        labels: of a conditional model, classes to draw them as, a row for each.
        attributes: the same of attributes, as `keras_vae.cli.sampling.sample` takes them.

    Returns:
        `picture`, its `rows` where something was asked for, `images`, and over these images `psnr` (dB) and
        `sharpness` (1 is the originals').

    Raises:
        InputError: no model, a decoder alone, unusable images, or a picture that cannot be written.
    """
    check_output_file(out, pictures.ENDINGS)
    if files and source is not None:
        raise InputError("--image and --data are given: give one of them")
    model = open_model(path)
    vae = model.whole("reconstructing")
    asked = asked_for(vae.condition, labels, attributes)
    known = None  # of image files, and of other images
    if files:
        originals = read_images(model, files)
    else:
        of_run = source is None and vae.condition is not None
        images = data_of(model, vae, source, batch_size=1, only_held_out=True, conditions=of_run)
        batches = list(images.test.take(count).as_numpy_iterator())
        originals = np.concatenate([unpack(batch) for batch in batches])
        known = np.concatenate([labels_of(batch) for batch in batches]) if of_run else None
    given = originals if known is None else {"image": originals, "condition": known}
    reconstructions = vae.predict(given, batch_size=BATCH, verbose=0)

    def transferred(asked: Any) -> np.ndarray:
        """The same images as of something else."""

        def run(rows: np.ndarray) -> np.ndarray:
            made = vae.transfer(originals[rows], asked, None if known is None else known[rows])
            return keras.ops.convert_to_numpy(made)

        return in_batches(run, np.arange(len(originals)))

    rows = ["originals", "reconstructions", *map(in_words, asked)] if asked else None
    pictures.save(pictures.side_by_side(originals, reconstructions, *map(transferred, asked), labels=rows), out)
    return {
        "picture": str(out),
        **({"rows": rows} if rows else {}),
        "images": len(originals),
        "psnr": psnr(originals, reconstructions),
        "sharpness": sharpness_ratio(originals, reconstructions),
    }
