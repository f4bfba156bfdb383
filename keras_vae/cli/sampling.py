"""What `keras-vae sample` does. For an .onnx file it imports neither TensorFlow nor Keras."""

from __future__ import annotations

import math
from pathlib import Path

from keras_vae.runs.opening import open_model
from keras_vae.support import pictures
from keras_vae.support.errors import InputError
from keras_vae.support.files import check_output_file
from keras_vae.support.names import check_prior


def sample(path: Path, out: Path, count: int, seed: int, prior: str = "learned", temperature: float = 1.0) -> None:
    """Writes a grid of decoded draws from the prior.

    Args:
        path: any MODEL with a prior, that is, not a decoder alone.
        out: the picture.
        count: number of images.
        seed: seed of the noise.
        prior: "learned", the model's own, or "standard", the standard normal.
        temperature: the noise's standard deviation.

    Raises:
        InputError, ExportError: there is no such model or prior, or the picture cannot be written.
    """
    check_output_file(out, pictures.ENDINGS)
    check_prior(prior)
    if not (math.isfinite(temperature) and temperature >= 0):
        raise InputError(f"--temperature {temperature}: give a number of at least 0, such as 0.7")
    images = open_model(path).sample(count, seed, temperature, prior == "standard")
    pictures.save(pictures.grid(images), out)
