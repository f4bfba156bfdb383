"""Imports a module when a command needs it: `--help` must not wait for TensorFlow."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from keras_vae.support.backend import LOG_LEVEL, load_tensorflow


def with_tensorflow(module: str) -> Any:
    """Imports a module that needs TensorFlow, and keeps TensorFlow's startup messages off the terminal.

    Raises:
        InputError: Keras is set to another backend.
    """
    os.environ.setdefault(LOG_LEVEL, "2")
    load_tensorflow()
    return importlib.import_module(module)


def for_model(model: Path, module: str) -> Any:
    """Imports a module, with TensorFlow unless the model is an .onnx file, which runs without it."""
    return importlib.import_module(module) if model.suffix == ".onnx" else with_tensorflow(module)
