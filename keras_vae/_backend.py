"""Refuses, before anything is loaded, a Keras that is set to another backend."""

from __future__ import annotations

import json
import os
from pathlib import Path

from keras_vae.errors import InputError


def require_tensorflow() -> None:
    """Looks where Keras looks: the environment, then its configuration file.

    Raises:
        InputError: Keras is set to something other than TensorFlow.
    """
    backend, where = os.environ.get("KERAS_BACKEND"), "KERAS_BACKEND"
    if not backend:
        file = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "keras.json"
        try:
            backend, where = json.loads(file.read_text()).get("backend"), f"the backend in {file}"
        except (OSError, ValueError, AttributeError):
            return  # Keras's default is TensorFlow
    if backend and backend != "tensorflow":
        raise InputError(f"{where} is {backend!r}, and keras-vae runs on TensorFlow: set it to tensorflow")
