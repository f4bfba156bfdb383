"""A VAE in a .keras file."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from keras_vae.support.errors import InputError
from keras_vae.support.files import write_aside

if TYPE_CHECKING:
    from keras_vae.model.vae import VAE


def load_vae(file: Path) -> VAE:
    """A VAE as it was saved, optimizer and noise too.

    Raises:
        InputError: the file is damaged, or holds something else.
    """
    import keras

    from keras_vae.model.vae import VAE

    if not zipfile.is_zipfile(file):
        raise InputError(f"cannot read {file} as a Keras model: it is damaged, or no .keras file")
    try:
        vae = keras.saving.load_model(file)
    except Exception as error:  # a damaged file raises whatever its damage leads to
        raise InputError(f"cannot read {file} as a Keras model: {str(error).splitlines()[0]}") from error
    if not isinstance(vae, VAE):
        raise InputError(
            f"{file} holds a {type(vae).__name__}, not a keras_vae.VAE: give a model that keras-vae trained"
        )
    return vae


def save_vae(vae: VAE, path: Path) -> None:
    """Writes a .keras file whole, on the disk when it is done, or not at all."""
    with write_aside(path, durable=True) as aside:
        vae.save(aside)
