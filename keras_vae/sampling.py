"""What `keras-vae sample` does. An .onnx file takes neither TensorFlow nor Keras."""

from __future__ import annotations

from pathlib import Path

from keras_vae import pictures
from keras_vae.files import check_output_file
from keras_vae.models import open_model


def sample(path: Path, out: Path, count: int, seed: int) -> None:
    """Writes a grid of decoded draws from the prior.

    Raises:
        InputError: no model, or a picture that cannot be written.
    """
    check_output_file(out, pictures.ENDINGS)
    pictures.save(pictures.grid(open_model(path).sample(count, seed)), out)
