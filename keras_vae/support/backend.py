"""Loads TensorFlow without its greetings, and refuses a Keras that is set to another backend."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keras_vae.support.errors import InputError

LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
STDERR = 2  # of the process, which TensorFlow writes to, whatever sys.stderr is
WORTH_SAYING = re.compile(r"[WEF]\d{4} ")  # of absl's log: warnings, errors and what is fatal
NO_GPU = "failed call to cuInit"


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

    Among them is an error where there is no GPU. Its other warnings and errors are printed, now and later, or what
    TF_CPP_MIN_LOG_LEVEL asks for, which it reads once; with 0 it greets as ever.

    Raises:
        InputError: Keras is set to something other than TensorFlow.
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
    """Within it, standard error is kept; afterwards warnings and errors are printed, but for that of no GPU."""
    try:
        kept = os.dup(STDERR)
    except OSError:  # there is none
        yield
        return
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        os.dup2(said.fileno(), STDERR)
        try:
            yield
        finally:
            os.dup2(kept, STDERR)
            os.close(kept)
            said.seek(0)
            for line in said:
                if WORTH_SAYING.match(line) and NO_GPU not in line:
                    print(line, end="", file=sys.stderr)
