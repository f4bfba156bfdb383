"""Loads TensorFlow without its startup messages, and refuses a Keras that is set to another backend."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keras_vae.support import quiet
from keras_vae.support.errors import InputError

LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
WORTH_SAYING = re.compile(r"[WEF]\d{4} ")  # in absl's log: warnings, errors and fatal errors
NO_GPU = "failed call to cuInit"


def require_tensorflow() -> None:
    """Checks the environment and then Keras's configuration file, as Keras does.

    Raises:
        InputError: Keras is set to another backend than TensorFlow.
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
    """Imports TensorFlow, unless it is imported already, without the dozen lines that it prints on any machine.

    One of them is an error if there is no GPU. Other warnings and errors are printed, now and later, or whatever
    TF_CPP_MIN_LOG_LEVEL asks for, which TensorFlow reads once; with 0 nothing is held back.

    Raises:
        InputError: Keras is set to another backend than TensorFlow.
    """
    require_tensorflow()
    if "tensorflow" in sys.modules or os.environ.get(LOG_LEVEL) == "0":
        return
    asked = LOG_LEVEL in os.environ
    if not asked:
        os.environ[LOG_LEVEL] = "1"
    try:
        with _without_greetings():
            import tensorflow as tf

            tf.config.list_physical_devices()  # looks for a GPU, and complains where there is none
    finally:
        if not asked:
            del os.environ[LOG_LEVEL]


@contextmanager
def _without_greetings() -> Iterator[None]:
    """Holds standard error back during a block, then prints its warnings and errors, except the one about no GPU."""
    if not quiet.has_stderr():
        yield
        return
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        undo = quiet.redirect_stderr(said.fileno())
        try:
            yield
        finally:
            undo()
            said.seek(0)
            for line in said:
                if WORTH_SAYING.match(line) and NO_GPU not in line:
                    print(line, end="", file=sys.stderr)
