"""Loads TensorFlow without its greetings, and refuses a Keras that is set to another backend."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from keras_vae.errors import InputError

LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"


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


def load_tensorflow() -> None:
    """Imports TensorFlow, where nothing has yet, without the dozen lines it prints on any machine.

    Among them is an error where there is no GPU. Of what it has to say later its warnings and errors are printed, or
    what TF_CPP_MIN_LOG_LEVEL asks for, which it reads once; with 0 it greets as ever.

    Raises:
        InputError: Keras is set to something other than TensorFlow.
    """
    require_tensorflow()
    if "tensorflow" in sys.modules or os.environ.get(LOG_LEVEL) == "0":
        return
    from keras_vae.export.quiet import quiet_stderr

    asked = LOG_LEVEL in os.environ
    if not asked:
        os.environ[LOG_LEVEL] = "1"
    try:
        with quiet_stderr():
            import tensorflow as tf

            tf.config.list_physical_devices()  # looks for a GPU, and complains where there is none
    finally:
        if not asked:
            del os.environ[LOG_LEVEL]
