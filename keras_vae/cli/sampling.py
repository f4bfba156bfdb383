"""What `keras-vae sample` does. For an .onnx file it imports neither TensorFlow nor Keras."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_vae.runs.opening import open_model
from keras_vae.support import pictures
from keras_vae.support.conditions import asked_for
from keras_vae.support.errors import InputError
from keras_vae.support.files import check_output_file
from keras_vae.support.names import check_prior

COUNT, A_ROW = 64, 12


def sample(
    path: Path,
    out: Path,
    count: int | None,
    seed: int,
    prior: str = "learned",
    temperature: float = 1.0,
    labels: Sequence[str] = (),
    attributes: Sequence[str] = (),
) -> str:
    """Writes a grid of decoded draws from the prior.

    Args:
        path: any MODEL with a prior, that is, not a decoder alone.
        out: the picture.
        count: number of images, 64 by default; of each row where there is one for a class, 12 by default.
        seed: seed of the noise.
        prior: "learned", the model's own, or "standard", the standard normal.
        temperature: the noise's standard deviation.
        labels: classes to draw, a row for each if they are several; none for all.
        attributes: each "NAME=1" or "NAME=0", or several with commas between them; the same.

    Returns:
        What was written, in words.

    Raises:
        InputError, ExportError: there is no such model, prior, class or attribute, or the picture cannot be written.
    """
    check_output_file(out, pictures.ENDINGS)
    check_prior(prior)
    if not (math.isfinite(temperature) and temperature >= 0):
        raise InputError(f"--temperature {temperature}: give a number of at least 0, such as 0.7")
    model = open_model(path)
    condition = model.condition
    asked = asked_for(condition, labels, attributes)

    def draw(rows: np.ndarray | None, count: int) -> np.ndarray:
        return model.sample(count, seed, temperature, prior == "standard", rows)

    if condition is None or len(asked) == 1:
        count = count or COUNT
        rows = None if condition is None else condition.rows(asked[0], count)
        pictures.save(pictures.grid(draw(rows, count)), out)
        return f"{count} sample{'s' if count > 1 else ''} written to {out}"
    count = count or A_ROW
    pictures.save(pictures.by_condition(lambda rows: draw(rows, count), condition, count, asked or None), out)
    many = f"{len(asked)} rows" if asked else f"a row for each {'class' if condition.exclusive else 'attribute'}"
    return f"{many} of {count} sample{'s' if count > 1 else ''} written to {out}"
