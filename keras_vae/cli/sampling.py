"""What `keras-vae sample` does. An .onnx file takes neither TensorFlow nor Keras."""

from __future__ import annotations

import math
from pathlib import Path

from keras_vae.model.presets import check_prior
from keras_vae.runs.opening import open_model
from keras_vae.support import pictures
from keras_vae.support.errors import InputError
from keras_vae.support.files import check_output_file


def sample(path: Path, out: Path, count: int, seed: int, prior: str = "learned", temperature: float = 1.0) -> None:
    """Writes a grid of decoded draws from the prior.

    Args:
        path: any MODEL that knows its prior: all but a decoder alone.
        out: the picture.
        count: images.
        seed: of the draw.
        prior: "learned", the model's own, or "standard", the standard normal.
        temperature: the noise's standard deviation.

    Raises:
        InputError, ExportError: no model, no such prior, or a picture that cannot be written.
    """
    check_output_file(out, pictures.ENDINGS)
    check_prior(prior)
    if not (math.isfinite(temperature) and temperature >= 0):
        raise InputError(f"--temperature {temperature}: give a number from 0 on, such as 0.7")
    images = open_model(path).sample(count, seed, temperature, prior == "standard")
    pictures.save(pictures.grid(images), out)
